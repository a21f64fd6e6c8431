"""Noise of a field given hyperparameters, from which draws of the posterior are made.

Groups that are not Gaussian are resampled by their weights. For a few draws that is done at the
hyperparameters of each. For many draws it is done at a few values of the hyperparameters, the
anchors, and each draw takes noise of the nearest one: the difference between the posterior and the
Gaussian, in units of the Gaussian, hardly depends on the hyperparameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from pymc_flows.field.conditional.gaussian import FieldGaussian
from pymc_flows.field.conditional.noise import NormalNoise
from pymc_flows.field.marginal import Marginal

# Fewest and most draws of a group from which some are chosen; most draws of the separator.
POOL, MOST_POOL, OUTER = 8, 64, 8
# Variance that the noise of groups may have in a log weight of the separator.
NOISE = 0.05
# Number of anchors, and draws of each group there.
ANCHORS, ANCHOR_POOL = 32, 64
# The separator counts as Gaussian, but for its mean and spread, if this share of its draws is
# effective and no coordinate is more skewed than this. Fewest draws that tell unevenness.
EVEN, SKEWED, TELLING = 0.9, 0.3, 32
# Elsewhere: most draws of it at an anchor, draws of each group given each, and numbers in all of
# them, unless these are too few for `OUTER` draws.
BLOCKS, IN_BLOCK, MOST_NUMBERS = 64, 8, 3e7

type Noise = Callable[[int, FieldGaussian], np.ndarray]
"""Noise (repeats, n_field) for a value of the hyperparameters: from its index and Gaussian."""


def field_noise(
    marginal: Marginal,
    hyper: np.ndarray,
    repeats: np.ndarray,
    share: float,
    rng: np.random.Generator,
) -> Noise:
    """Make the function that draws noise for values of the hyperparameters (n, n_hyper).

    Parameters
    ----------
    marginal : Marginal
    hyper : ndarray
    repeats : ndarray of int, shape (n,)
        Number of draws of the field at each value.
    share : float
        Share of effective draws in the worst group.
    rng : Generator
    """
    n_field = marginal.posterior.n_field
    if marginal.is_gaussian:
        return lambda i, gaussian: rng.standard_normal((repeats[i], n_field))
    pool = _pool(float(repeats.mean()), share, marginal, hyper[:1])
    noise = NormalNoise.make(marginal.posterior.groups, math.prod(pool), rng)

    def direct(i: int, gaussian: FieldGaussian) -> np.ndarray:
        other = noise.shifted(rng)
        weights = marginal.weigh_others(gaussian, other, n_outer=pool[0], keep=True)
        return weights.resample(repeats[i], rng, marginal.posterior.groups)

    if len(hyper) * math.prod(pool) <= ANCHORS * (ANCHOR_POOL + len(marginal.noise)):
        return direct
    most = max(OUTER, min(BLOCKS, int(MOST_NUMBERS / (IN_BLOCK * n_field))))
    for blocks in (0, most) if marginal.skew is None else (most,):
        anchors = _Anchors(marginal, hyper, repeats, rng, blocks)
        if anchors.can_serve:
            return anchors
        if not anchors.is_complete:
            break
        del anchors  # its noise may take as much memory as all draws
    return direct


def _pool(n: float, share: float, marginal: Marginal, hyper: np.ndarray) -> tuple[int, int]:
    """Numbers of draws of the separator, and of groups given each, from which n are chosen.

    The draws lose a share of 1 / (their effective number) of what the weights correct. Where
    weights are nearly even there is little to correct, and few draws suffice. The weights of the
    separator contain the noise of all groups' means, so groups need enough draws.
    """
    wanted = 2 ** math.ceil(math.log2(max(POOL, 2 * n) / max(share, 1e-2) ** 2))
    if (marginal.posterior.groups >= 0).all():
        return 1, min(wanted, MOST_POOL)
    n_outer = min(wanted // 2, OUTER)
    n_inner = min(wanted // n_outer, MOST_POOL // OUTER)
    [(_, gaussian)] = marginal.gaussians(hyper)
    if gaussian is not None:
        used = len(marginal.noise) // marginal.n_outer
        needed = min(MOST_POOL, used * marginal.weigh(gaussian).variances()[0] / NOISE)
        n_inner = max(n_inner, 2 ** math.ceil(math.log2(max(needed, 1.0))))
    return n_outer, n_inner


class _Anchors:
    """Noise that was resampled at a few of the values of the hyperparameters.

    The weights of the separator depend on all groups together. With ``blocks`` 0 its noise is
    drawn from a Gaussian, whose mean and spread are estimated from weighted draws at the anchors;
    else it is resampled, together with the groups, from so many draws of it at each anchor.
    """

    def __init__(
        self,
        marginal: Marginal,
        hyper: np.ndarray,
        repeats: np.ndarray,
        rng: np.random.Generator,
        blocks: int,
    ):
        self._rng, self._repeats = rng, repeats
        groups = marginal.posterior.groups
        self._gaussian_part = np.flatnonzero(groups < 0) if not blocks else np.zeros(0, int)
        chosen = np.unique(np.linspace(0, len(hyper) - 1, ANCHORS).astype(int))
        noise = NormalNoise.make(groups, blocks * IN_BLOCK or ANCHOR_POOL, rng)
        scale = np.maximum(hyper.std(axis=0), 1e-300)
        distance = np.square((hyper[:, None] - hyper[chosen]) / scale).sum(axis=2)
        self._nearest = distance.argmin(axis=1)
        self._pools, self._used = [], np.zeros(len(chosen), int)
        self.can_serve = self.is_complete = True
        outer: list[np.ndarray] = []
        separators: list[np.ndarray] = []
        for k, gaussian in marginal.gaussians(hyper[chosen]):
            self.is_complete = gaussian is not None
            is_uneven = sum(map(len, outer)) >= TELLING and not _are_even(outer)
            if gaussian is None or is_uneven:
                self.can_serve = False
                return
            n = int(repeats[self._nearest == k].sum())
            weights = marginal.weigh_others(
                gaussian, noise.shifted(rng), n_outer=max(blocks, 1), keep=True
            )
            self._pools.append(rng.permutation(weights.resample(n, rng, groups)))
            if len(self._gaussian_part):
                found = marginal.weigh_others(
                    gaussian, marginal.noise.shifted(rng), n_outer=marginal.n_outer, keep=True
                )
                assert found.noise is not None
                outer.append(np.exp(found.outer - found.outer.max()))
                separators.append(found.noise[:, 0, self._gaussian_part])
        self._set_separator(outer, separators)

    def _set_separator(self, outer: list[np.ndarray], separators: list[np.ndarray]) -> None:
        """Estimate the mean and the spread of the separator's noise."""
        self._mean, self._spread = np.zeros(0), np.ones(0)
        if not outer:
            return
        n, weights, draws = len(outer[0]), _joined(outer), np.concatenate(separators)
        # Differences from the same draws without weights have little noise. The mean weight of an
        # anchor contains each of its weights, which takes away 1 / n of the difference.
        excess = (weights - 1)[:, None] * n / (n - 1)
        self._mean = _told(excess * draws)
        m, z = self._mean, draws - self._mean
        # Without weights, the second and third moments about m are 1 + m² and −3m − m³.
        variance = 1 + m**2 + _told(excess * z**2)
        self._spread = np.sqrt(np.maximum(variance, 0.1))
        skewness = (_told(excess * z**3) - 3 * m - m**3) / self._spread**3
        self.can_serve = _are_even(outer) and bool((np.abs(skewness) <= SKEWED).all())

    def __call__(self, i: int, gaussian: FieldGaussian) -> np.ndarray:
        """Noise for value i; each can be asked for once."""
        k, n = self._nearest[i], self._repeats[i]
        pool = self._pools[k]
        found = pool[self._used[k] : self._used[k] + n]
        self._used[k] += n
        if len(self._gaussian_part):
            normal = self._rng.standard_normal((n, len(self._gaussian_part)))
            found[:, self._gaussian_part] = self._mean + self._spread * normal
        return found


def _joined(weights: Sequence[np.ndarray]) -> np.ndarray:
    """Weights of all anchors, of the same mean at each."""
    return np.concatenate([w / w.mean() for w in weights])


def _are_even(weights: Sequence[np.ndarray]) -> bool:
    """Whether the share of effective draws is large."""
    found = _joined(weights)
    return bool(found.mean() ** 2 >= EVEN * np.square(found).mean())


def _told(values: np.ndarray) -> np.ndarray:
    """Means (k,) of rows (n, k), shrunk towards 0 by their noise."""
    mean, noise = values.mean(axis=0), values.var(axis=0, ddof=1) / len(values)
    return mean * np.clip(1 - noise / np.maximum(np.square(mean), 1e-300), 0.0, 1.0)
