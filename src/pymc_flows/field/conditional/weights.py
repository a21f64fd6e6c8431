"""Importance weights that factorise over groups.

Given hyperparameters g and the field s of the separator, groups are independent, so that
p(y | g) = E_s[w(s) ∏ᵢ E[wᵢ]]. Weights are averaged group by group: what counts is how well the
Gaussian describes each group, not the number of groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pymc_flows.field.conditional.gaussian import FieldGaussian
from pymc_flows.field.conditional.noise import NormalNoise
from pymc_flows.field.conditional.skew import Skew
from pymc_flows.field.conditional.tails import log_mixture, spreads
from pymc_flows.field.posterior import Posterior

# Bytes of points that are held at once.
BYTES = 300e6
# Differences of log weights below this share of the log density are rounding.
ROUNDING = 1e-9


@dataclass(frozen=True, eq=False)
class GroupWeights:
    """Weights p/q of draws of the field, by group.

    Draws come in ``n_outer`` blocks of ``n_inner``; the draws of a block share the separator.

    Attributes
    ----------
    noise : ndarray, shape (n_outer, n_inner, n_field), or None
        The draws in the coordinates of the noise, if they were kept.
    shared : ndarray, shape (n_outer,)
        Log weight of the separator and the hyperparameters, which belong to no group, in nats.
    by_group : ndarray, shape (n_outer, n_inner, n_groups)
        Log weights of groups given the separator, in nats.
    even : ndarray, shape (n_outer, n_inner, n_groups), or None
        Log weights that groups would have if they were Gaussian; None if these are 0, because no
        proposal has wider tails.
    """

    noise: np.ndarray | None
    shared: np.ndarray
    by_group: np.ndarray
    even: np.ndarray | None = None

    @property
    def means(self) -> np.ndarray:
        """Log of each group's mean weight (n_outer, n_groups), in nats.

        With wider tails, it is relative to the mean weight of a Gaussian group. That is 1 apart
        from noise, which both share, so that the mean weight of a Gaussian group has none.
        """
        found = _log_mean_exp(self.by_group, axis=1)
        return found if self.even is None else found - _log_mean_exp(self.even, axis=1)

    @cached_property
    def outer(self) -> np.ndarray:
        """Log weights (n_outer,) of blocks, in nats: each estimates log p(y, g) from one s."""
        return self.shared + self.means.sum(axis=1)

    @property
    def log_marginal(self) -> float:
        """Estimate of the log density of hyperparameters and data, in nats."""
        return float(_log_mean_exp(self.outer, axis=0))

    def variances(self, reference: GroupWeights | None = None) -> tuple[float, float]:
        """Variances by the noise of the draws, in nats² (delta method).

        Parameters
        ----------
        reference : GroupWeights, optional
            Of the same draws at other hyperparameters: the variances are then those of differences
            from these weights, in which much of the noise cancels.

        Returns
        -------
        within : float
            Variance of the log weight of a block, given its draw of the separator.
        total : float
            Variance of `log_marginal`.
        """
        weights = self._by_group() - (0.0 if reference is None else reference._by_group())
        within = float(_variances(weights).sum(axis=1).mean())
        if len(self.shared) == 1:
            return within, within
        blocks = self._by_block() - (0.0 if reference is None else reference._by_block())
        return within, float(blocks.var(ddof=1)) / len(blocks)

    def _by_group(self) -> np.ndarray:
        """Weights relative to the mean of each group; with wider tails, minus those of `even`."""
        weights = _relative(self.by_group)
        return weights if self.even is None else weights - _relative(self.even)

    def _by_block(self) -> np.ndarray:
        """Weights of blocks, relative to their mean."""
        weights = np.exp(self.outer - self.outer.max())
        return weights / weights.mean()

    @property
    def error(self) -> float:
        """Standard error of `log_marginal`, in nats."""
        if len(self.shared) == 1:
            return self.variances()[0] ** 0.5
        return (float(self._by_block().var(ddof=1)) / len(self.shared)) ** 0.5

    @property
    def ess(self) -> np.ndarray:
        """Effective number of the ``n_inner`` draws (n_groups,), the smallest of all blocks.

        It is 0 where no weight is finite.
        """
        n = self.by_group.shape[1]
        found = n / (1 + n * _variances(_relative(self.by_group)))
        return np.nan_to_num(found, nan=0.0).min(axis=0)

    @property
    def outer_ess(self) -> float:
        """Effective number of the ``n_outer`` blocks; NaN where no weight is finite."""
        weights = self._by_block()
        return float(weights.sum() ** 2 / np.square(weights).sum())

    @property
    def is_even(self) -> bool:
        """Whether all weights are equal, as they are if the field is Gaussian given g."""
        rounding = ROUNDING * (1 + np.abs(self.by_group).sum(axis=2).max())
        spread = np.ptp(self.by_group, axis=1).max(initial=0.0)
        return bool(spread < rounding and np.ptp(self.outer) < rounding)

    def resample(self, n: int, rng: np.random.Generator, groups: np.ndarray) -> np.ndarray:
        """Resample the noise (n, n_field) by the weights; the draws must have been kept.

        Each group is resampled on its own from its ``n_inner`` draws.

        Parameters
        ----------
        n : int
        rng : Generator
        groups : ndarray of int, shape (n_field,)
        """
        if self.noise is None:
            raise RuntimeError("the draws behind these weights were not kept")
        outer = np.exp(self.outer - self.outer.max())
        blocks = _systematic(outer[None] / outer.sum(), n, rng)[0]
        found = np.empty((n, self.noise.shape[2]))
        for block in np.unique(blocks):
            rows = np.flatnonzero(blocks == block)
            weights = np.exp(self.by_group[block] - self.by_group[block].max(axis=0)).T
            chosen = _systematic(weights / weights.sum(axis=1, keepdims=True), len(rows), rng)
            chosen = rng.permuted(chosen, axis=1)  # groups are independent
            inner = self.noise[block]
            element = np.where(groups >= 0, groups, 0)
            picked = chosen[element] if len(chosen) else np.zeros((len(groups), len(rows)), int)
            found[rows] = np.take_along_axis(inner, picked.T, axis=0)
            found[np.ix_(rows, np.flatnonzero(groups < 0))] = inner[0, groups < 0]
        return found


def weigh_groups(
    posterior: Posterior,
    gaussian: FieldGaussian,
    noise: NormalNoise,
    *,
    n_outer: int = 1,
    wide: np.ndarray | None = None,
    skew: Skew | None = None,
    keep: bool = False,
) -> GroupWeights:
    """Weigh draws of the field by group.

    Parameters
    ----------
    posterior : Posterior
    gaussian : FieldGaussian
    noise : NormalNoise
        n_outer · n_inner draws. The separator takes the first n_outer of them.
    n_outer : int
        Number of blocks; 1 if there is no separator.
    wide : ndarray of bool, shape (n_groups,), optional
        Groups whose proposal has wider tails, see `tails`; by default none.
    skew : Skew, optional
        Makes skewed draws of the separator from normal ones.
    keep : bool
        Whether to keep the noise of the draws.
    """
    groups = posterior.groups
    in_group = groups >= 0
    n_inner = len(noise) // n_outer
    wide = np.zeros(posterior.n_groups, bool) if wide is None else wide
    sizes = np.bincount(groups[in_group], minlength=posterior.n_groups)[wide]
    widened = np.flatnonzero(in_group & np.append(wide, False)[groups])  # −1 is the last one
    wider = spreads(n_inner)
    # The first rows of the sequence are spread evenly; every n_inner-th row would not be.
    separator = noise.rows(0, n_outer)[:, ~in_group]
    log_q = -0.5 * np.square(separator).sum(axis=1)
    if skew is not None:
        separator, change = skew(separator)
        log_q += change
    shared, by_group, even, kept = [], [], [], []
    rows = max(1, int(BYTES // (8 * 4 * posterior.dim)))
    for start in range(0, len(noise), rows):
        white = noise.rows(start, min(start + rows, len(noise)))
        block, place = np.divmod(np.arange(start, start + len(white)), n_inner)
        white[:, ~in_group] = separator[block]
        far = np.flatnonzero(wider[place] > 1)
        white[np.ix_(far, widened)] *= wider[place[far], None]
        field = gaussian.place(white)
        common, own = posterior.by_group(posterior.join(gaussian.hyper, field))
        # Draws of groups that are out of range have no density; the others of a block may have one.
        impossible = np.isnan(own) | ~np.isfinite(common)[:, None]
        own = np.where(impossible, -np.inf, own)
        squares = _sums(np.square(white), groups, posterior.n_groups)
        mixture = np.zeros_like(squares)
        mixture[:, wide] = log_mixture(squares[:, wide], sizes, wider)
        shared.append(np.where(np.isfinite(common), common, -np.inf))
        by_group.append(own + 0.5 * squares - mixture)
        if wide.any():
            even.append(-mixture)
        if keep:
            kept.append(white)

    def blocks(parts: list[np.ndarray]) -> np.ndarray:
        return np.concatenate(parts).reshape(n_outer, n_inner, -1)

    return GroupWeights(
        blocks(kept) if keep else None,
        blocks(shared).max(axis=(1, 2)) - log_q + gaussian.log_normalizer,
        blocks(by_group),
        blocks(even) if wide.any() else None,
    )


def _sums(values: np.ndarray, groups: np.ndarray, n_groups: int) -> np.ndarray:
    """Sums (n, n_groups) over the elements of each group."""
    inside = np.flatnonzero(groups >= 0)
    order = inside[np.argsort(groups[inside], kind="stable")]
    if len(order) == 0:
        return np.zeros((len(values), n_groups))
    sizes = np.bincount(groups[inside], minlength=n_groups)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    return np.add.reduceat(values[:, order], starts, axis=1)


def _relative(log_weights: np.ndarray) -> np.ndarray:
    """Weights relative to their mean over draws; NaN where no weight is finite."""
    with np.errstate(invalid="ignore"):
        return np.exp(log_weights - _log_mean_exp(log_weights, axis=1)[:, None])


def _variances(weights: np.ndarray) -> np.ndarray:
    """Variances of means over draws (n_outer, n_groups)."""
    return weights.var(axis=1, ddof=1) / weights.shape[1]


def _log_mean_exp(values: np.ndarray, axis: int) -> np.ndarray:
    top = values.max(axis=axis, keepdims=True)
    safe = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        found = np.log(np.exp(values - safe).mean(axis=axis, keepdims=True)) + safe
    return found.squeeze(axis)


def _systematic(weights: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Systematic resampling: indices (m, n), for each row of weights (m, k) that sum to 1."""
    places = (rng.random((len(weights), 1)) + np.arange(n)) / n
    total = np.cumsum(weights, axis=1)
    total[:, -1] = 1.0
    # All rows are searched at once: row i lies between i and i + 1 of one line.
    line = (total + np.arange(len(weights))[:, None]).ravel()
    found = np.searchsorted(line, (places + np.arange(len(weights))[:, None]).ravel(), side="right")
    k = weights.shape[1]
    return np.clip(found.reshape(len(weights), n) - k * np.arange(len(weights))[:, None], 0, k - 1)
