"""Noise of a field given hyperparameters, from which draws of the posterior are made.

Groups that are not Gaussian are resampled by their weights. For a few draws that is done at the
value of the hyperparameters of each. For many it is done at a few values, the anchors: the way from
the Gaussian to the posterior, in units of the Gaussian, hardly depends on the hyperparameters, so
that noise of the nearest anchor serves.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from pymc_flows.field.conditional.gaussian import FieldGaussian
from pymc_flows.field.conditional.noise import NormalNoise
from pymc_flows.field.marginal import Marginal

# Draws of a group given hyperparameters, from which some are chosen: fewest and most of them; and
# most draws of the separator.
POOL, MOST_POOL, OUTER = 8, 64, 8
# Variance that the noise of groups may have in a log weight of the separator.
NOISE = 0.05
# Anchors, and draws of each group there.
ANCHORS, ANCHOR_POOL = 32, 64
# Share of effective draws of the separator from which on mean and spread say how it differs from
# the Gaussian.
EVEN = 0.9

# Of a value, by its number and with its Gaussian: noise (repeats, n_field).
type Noise = Callable[[int, FieldGaussian], np.ndarray]


def field_noise(
    marginal: Marginal,
    hyper: np.ndarray,
    repeats: np.ndarray,
    share: float,
    rng: np.random.Generator,
) -> Noise:
    """Choose how noise is drawn for values of the hyperparameters (n, n_hyper).

    Parameters
    ----------
    marginal : Marginal
    hyper : ndarray
    repeats : ndarray of int, shape (n,)
        Draws of the field at each.
    share : float
        Share of effective draws of the worst group.
    rng : Generator
    """
    n_field = marginal.conditional.modes.posterior.n_field
    if marginal.is_gaussian:
        return lambda i, gaussian: rng.standard_normal((repeats[i], n_field))
    pool = _pool(float(repeats.mean()), share, marginal, hyper[:1])
    noise = NormalNoise.make(_groups(marginal), math.prod(pool), rng)

    def direct(i: int, gaussian: FieldGaussian) -> np.ndarray:
        other = noise.shifted(rng)
        weights = marginal.weigh_others(gaussian, other, n_outer=pool[0], keep=True)
        return weights.resample(repeats[i], rng, _groups(marginal))

    if len(hyper) * math.prod(pool) <= ANCHORS * (ANCHOR_POOL + len(marginal.noise)):
        return direct
    anchors = _Anchors(marginal, hyper, repeats, rng)
    return anchors if anchors.can_serve else direct


def _pool(n: float, share: float, marginal: Marginal, hyper: np.ndarray) -> tuple[int, int]:
    """Draws of the separator, and of the groups given each, from which n are chosen.

    Of what the weights correct, a share is lost of 1 / (effective number of these draws). Where
    weights are nearly even, there is little to correct, and few of them do. Weights of the
    separator have the noise of all groups' means, so that these need draws enough.
    """
    wanted = 2 ** math.ceil(math.log2(max(POOL, 2 * n) / max(share, 1e-2) ** 2))
    if (_groups(marginal) >= 0).all():
        return 1, min(wanted, MOST_POOL)
    n_outer = min(wanted // 2, OUTER)
    n_inner = min(wanted // n_outer, MOST_POOL // OUTER)
    [(_, gaussian)] = marginal.gaussians(hyper)
    if gaussian is not None:
        used = len(marginal.noise) // marginal.n_outer
        needed = used * marginal.weigh(gaussian).within / NOISE
        n_inner = min(max(n_inner, 2 ** math.ceil(math.log2(max(needed, 1.0)))), MOST_POOL)
    return n_outer, n_inner


def _groups(marginal: Marginal) -> np.ndarray:
    return marginal.conditional.modes.posterior.groups


class _Anchors:
    """Noise that was resampled at a few of the values of the hyperparameters.

    That of the separator, whose weights belong to all groups together, is drawn from a Gaussian
    with the mean and the spread of what is resampled, as far as these can be told from the
    noise's.
    """

    def __init__(
        self,
        marginal: Marginal,
        hyper: np.ndarray,
        repeats: np.ndarray,
        rng: np.random.Generator,
    ):
        self._rng, self._repeats = rng, repeats
        groups = _groups(marginal)
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
        """Mean and spread of the separator's noise."""
        self._mean, self._spread = np.zeros(0), np.ones(0)
        if not outer:
            return
        n = len(outer[0])
        weights = np.concatenate([w / w.mean() for w in outer])
        draws = np.concatenate(separators)
        self.can_serve = bool(weights.mean() ** 2 >= EVEN * np.square(weights).mean())
        # As differences to the same draws without weights, they have little noise.
        # The mean weight at an anchor contains each weight, and so some of the difference.
        excess = (weights - 1)[:, None] * n / (n - 1)
        self._mean = _told(excess * draws)
        squares = np.square(draws - self._mean)
        variance = 1 + np.square(self._mean) + _told(excess * squares)
        self._spread = np.sqrt(np.maximum(variance, 0.1))

    def __call__(self, i: int, gaussian: FieldGaussian) -> np.ndarray:
        """Noise for the value with a number."""
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
