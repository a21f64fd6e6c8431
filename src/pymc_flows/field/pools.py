"""Noise of a field given hyperparameters, from which draws of the posterior are made.

Groups that are not Gaussian are resampled by their weights. For a few draws that is done at the
hyperparameters of each. For many draws it is done at a few values of the hyperparameters, the
anchors, and each draw takes noise of the nearest one: the difference between the posterior and the
Gaussian, in units of the Gaussian, hardly depends on the hyperparameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable

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
# With this share of effective draws, the separator differs from the Gaussian in mean and spread
# alone.
EVEN = 0.9

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
    anchors = _Anchors(marginal, hyper, repeats, rng)
    return anchors if anchors.can_serve else direct


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
        needed = min(MOST_POOL, used * marginal.weigh(gaussian).within / NOISE)
        n_inner = max(n_inner, 2 ** math.ceil(math.log2(max(needed, 1.0))))
    return n_outer, n_inner


class _Anchors:
    """Noise that was resampled at a few of the values of the hyperparameters.

    The weights of the separator depend on all groups together. So its noise is drawn from a
    Gaussian, whose mean and spread are estimated from weighted draws at the anchors.
    """

    def __init__(
        self,
        marginal: Marginal,
        hyper: np.ndarray,
        repeats: np.ndarray,
        rng: np.random.Generator,
    ):
        self._rng, self._repeats = rng, repeats
        groups = marginal.posterior.groups
        self._separator = np.flatnonzero(groups < 0)
        chosen = np.unique(np.linspace(0, len(hyper) - 1, ANCHORS).astype(int))
        noise = NormalNoise.make(groups, ANCHOR_POOL, rng)
        scale = np.maximum(hyper.std(axis=0), 1e-300)
        distance = np.square((hyper[:, None] - hyper[chosen]) / scale).sum(axis=2)
        self._nearest = distance.argmin(axis=1)
        self._pools, self._used = [], np.zeros(len(chosen), int)
        self.can_serve = True
        outer, separators = [], []
        for k, gaussian in marginal.gaussians(hyper[chosen]):
            if gaussian is None:
                self.can_serve = False
                return
            n = int(repeats[self._nearest == k].sum())
            weights = marginal.weigh_others(gaussian, noise.shifted(rng), keep=True)
            self._pools.append(rng.permutation(weights.resample(n, rng, groups)))
            if len(self._separator):
                found = marginal.weigh_others(
                    gaussian, marginal.noise.shifted(rng), n_outer=marginal.n_outer, keep=True
                )
                assert found.noise is not None
                outer.append(np.exp(found.outer - found.outer.max()))
                separators.append(found.noise[:, 0, self._separator])
        self._set_separator(outer, separators)

    def _set_separator(self, outer: list[np.ndarray], separators: list[np.ndarray]) -> None:
        """Estimate the mean and the spread of the separator's noise."""
        self._mean, self._spread = np.zeros(0), np.ones(0)
        if not outer:
            return
        n = len(outer[0])
        weights = np.concatenate([w / w.mean() for w in outer])
        draws = np.concatenate(separators)
        self.can_serve = bool(weights.mean() ** 2 >= EVEN * np.square(weights).mean())
        # Differences from the same draws without weights have little noise. The mean weight of an
        # anchor contains each of its weights, which takes away 1 / n of the difference.
        excess = (weights - 1)[:, None] * n / (n - 1)
        self._mean = _told(excess * draws)
        squares = np.square(draws - self._mean)
        variance = 1 + np.square(self._mean) + _told(excess * squares)
        self._spread = np.sqrt(np.maximum(variance, 0.1))

    def __call__(self, i: int, gaussian: FieldGaussian) -> np.ndarray:
        """Noise for value i; each can be asked for once."""
        k, n = self._nearest[i], self._repeats[i]
        pool = self._pools[k]
        found = pool[self._used[k] : self._used[k] + n]
        self._used[k] += n
        if len(self._separator):
            normal = self._rng.standard_normal((n, len(self._separator)))
            found[:, self._separator] = self._mean + self._spread * normal
        return found


def _told(values: np.ndarray) -> np.ndarray:
    """Means (k,) of rows (n, k), shrunk towards 0 by their noise."""
    mean, noise = values.mean(axis=0), values.var(axis=0, ddof=1) / len(values)
    return mean * np.clip(1 - noise / np.maximum(np.square(mean), 1e-300), 0.0, 1.0)
