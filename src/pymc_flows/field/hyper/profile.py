"""Profiles of the marginal along its axes, and a distribution with these profiles.

If the data leave a scale near 0, the marginal of its logarithm has an exponential tail, with much
of the mass far from the mode, where a Gaussian or Student-t distribution at the mode has no draws.
So the marginal is followed along each axis as far as it matters.

Axes are those of the correlations around the mode, and tails seldom follow these: where a scale no
longer matters, the other hyperparameters stay where they are. So they follow an axis only as far as
`NEAR`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from pymc_flows.field.conditional.mapping import ConditionalField
from pymc_flows.field.conditional.noise import sobol
from pymc_flows.field.hyper.mode import HyperMode
from pymc_flows.field.hyper.proposal import lower_factor
from pymc_flows.field.options import Progress

# Distances from the mode at which the marginal is evaluated, in standard deviations.
KNOTS = (0.75, 1.5, 2.5, 4.0, 6.0, 9.0, 13.0, 18.0, 25.0, 35.0, 50.0)
# How far other hyperparameters follow an axis, in standard deviations.
NEAR = 2.0
# An axis is followed until the log marginal has fallen by this, in nats.
DEPTH = 8.0
# Least slope of a tail, and slope on a side where the marginal has no values, in nats per standard
# deviation.
SLOPE, UNKNOWN = 0.05, 1.0
# The distribution is wider than the profiles by this factor, since these are narrower than
# marginals.
WIDER = 1.2


@dataclass(frozen=True, eq=False)
class PiecewiseExponential:
    """A density on the line whose logarithm is linear between knots and beyond them.

    Attributes
    ----------
    knots : ndarray, shape (k,)
        Increasing, at least one.
    values : ndarray, shape (k,)
        Log densities there, up to a constant, in nats.
    left, right : float
        Slopes of the tails: the left one positive, the right one negative.
    """

    knots: np.ndarray
    values: np.ndarray
    left: float
    right: float

    def stretched(self, factor: float) -> PiecewiseExponential:
        """The same density, wider by a factor."""
        return PiecewiseExponential(
            factor * self.knots, self.values, self.left / factor, self.right / factor
        )

    def _masses(self) -> np.ndarray:
        """Log masses (k + 1,) of the tails and the pieces between them."""
        width, rise = np.diff(self.knots), np.diff(self.values)
        # ∫ exp(linear) = width · exp(max) · (1 − exp(−|rise|)) / |rise|
        fall = np.maximum(np.abs(rise), 1e-9)
        inner = np.log(width) + np.maximum(self.values[1:], self.values[:-1])
        inner += np.log(-np.expm1(-fall) / fall)
        left = self.values[0] - math.log(self.left)
        right = self.values[-1] - math.log(-self.right)
        return np.concatenate([[left], inner, [right]])

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        """Log density at x, in nats."""
        masses = self._masses()
        total = masses.max() + math.log(np.exp(masses - masses.max()).sum())
        inside = np.interp(x, self.knots, self.values)
        below = np.minimum(x - self.knots[0], 0.0) * self.left
        above = np.maximum(x - self.knots[-1], 0.0) * self.right
        return inside + below + above - total

    def quantile(self, uniform: np.ndarray) -> np.ndarray:
        """The inverse of the distribution function."""
        masses = self._masses()
        weights = np.exp(masses - masses.max())
        ends = np.cumsum(weights) / weights.sum()
        piece = np.minimum(np.searchsorted(ends, uniform), len(weights) - 1)
        starts = np.concatenate([[0.0], ends[:-1]])
        share = np.clip((uniform - starts[piece]) / (ends - starts)[piece], 1e-15, 1 - 1e-15)
        found = np.empty_like(uniform)
        is_left, is_right = piece == 0, piece == len(weights) - 1
        found[is_left] = self.knots[0] + np.log(share[is_left]) / self.left
        found[is_right] = self.knots[-1] + np.log1p(-share[is_right]) / self.right
        inner = ~(is_left | is_right)
        i, u = piece[inner] - 1, share[inner]
        width, rise = np.diff(self.knots)[i], np.diff(self.values)[i]
        steep = np.where(np.abs(rise) < 1e-9, 1.0, rise)
        inverse = np.where(np.abs(rise) < 1e-9, u, np.log1p(u * np.expm1(steep)) / steep)
        found[inner] = self.knots[i] + width * inverse
        return found


@dataclass(frozen=True, eq=False)
class ProfileProposal:
    """g = loc + L z near the mode, with independent z, each with the profile along its axis.

    Attributes
    ----------
    loc : ndarray, shape (n_hyper,)
    lower : ndarray, shape (n_hyper, n_hyper)
        L, lower-triangular.
    axes : tuple of PiecewiseExponential
    """

    loc: np.ndarray
    lower: np.ndarray
    axes: tuple[PiecewiseExponential, ...]

    def stretched(self, which: np.ndarray, factor: float) -> ProfileProposal:
        """The same distribution, with some of its axes (bool, n_hyper) wider by a factor."""
        axes = zip(self.axes, which, strict=True)
        return replace(self, axes=tuple(a.stretched(factor) if on else a for a, on in axes))

    def draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Draw ``n`` points (n, n_hyper), from a scrambled Sobol' sequence."""
        uniform = sobol(n, len(self.loc), rng)
        z = [axis.quantile(u) for axis, u in zip(self.axes, uniform.T, strict=True)]
        return self.loc + _bent(np.reshape(z, (len(self.loc), n)).T, self.lower)

    def log_prob(self, hyper: np.ndarray) -> np.ndarray:
        """Log density (n,) at points (n, n_hyper), in nats."""
        if not len(self.loc):
            return np.zeros(len(hyper))
        z = np.empty((len(self.loc), len(hyper)))
        for i, row in enumerate(self.lower):
            left = hyper[:, i] - self.loc[i] - row[:i] @ np.clip(z[:i], -NEAR, NEAR)
            z[i] = left / row[i]
        parts = [axis.log_prob(x) for axis, x in zip(self.axes, z, strict=True)]
        return np.sum(parts, axis=0) - float(np.log(np.diagonal(self.lower)).sum())


def _bent(z: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """L z (n, n_hyper) for rows z, where the part that an axis adds to others is bounded."""
    scale = np.diagonal(lower)
    return z * scale + np.clip(z, -NEAR, NEAR) @ (lower - np.diag(scale)).T


@dataclass
class _Walk:
    """The way along an axis to one side; distances and log marginals start with the mode's."""

    direction: np.ndarray
    field: np.ndarray
    distances: list[float]
    values: list[float]
    done: bool = False

    @property
    def slope(self) -> float:
        """How much the log density of the wider distribution falls per unit beyond the end."""
        if len(self.values) == 1:
            return UNKNOWN
        width = WIDER * self.distances[-1] - WIDER * self.distances[-2]
        return max((self.values[-2] - self.values[-1]) / width, SLOPE)


def follow_axes(
    conditional: ConditionalField, mode: HyperMode, progress: Progress
) -> ProfileProposal:
    """Follow the Laplace marginal along its axes, from the mode.

    Parameters
    ----------
    conditional : ConditionalField
    mode : HyperMode
    progress : Progress
    """
    lower = lower_factor(mode.covariance)
    loc, top = mode.gaussian.hyper, mode.gaussian.log_marginal
    walks = [
        _Walk(sign * axis, mode.gaussian.mode, [0.0], [0.0])
        for axis in np.eye(len(loc))
        for sign in (-1.0, 1.0)
    ]
    for distance in KNOTS:
        active = [walk for walk in walks if not walk.done]
        for begin in range(0, len(active), conditional.chunk):
            part = active[begin : begin + conditional.chunk]
            hyper = loc + _bent(distance * np.stack([walk.direction for walk in part]), lower)
            found = conditional.at(hyper, np.stack([walk.field for walk in part]))
            for walk, gaussian in zip(part, found, strict=True):
                value = -math.inf if gaussian is None else gaussian.log_marginal - top
                if gaussian is None or not math.isfinite(value):
                    walk.done = True
                    continue
                walk.field = gaussian.mode
                walk.distances.append(distance)
                walk.values.append(value)
                walk.done = value < -DEPTH
            progress.tell("profiles of the hyperparameters")
    axes = tuple(_joined(*walks[i : i + 2]) for i in range(0, len(walks), 2))
    return ProfileProposal(loc, lower, axes)


def _joined(below: _Walk, above: _Walk) -> PiecewiseExponential:
    """The density along an axis from its two sides."""
    knots = np.array([-d for d in below.distances[:0:-1]] + above.distances) * WIDER
    values = np.array(below.values[:0:-1] + above.values)
    return PiecewiseExponential(knots, values, below.slope, -above.slope)
