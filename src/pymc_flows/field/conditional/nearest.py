"""The Gaussian nearest to the field given hyperparameters: the one with the largest lower bound.

Where the field is far from Gaussian, the curvature at its mode says little about its spread: in an
item response model, abilities and discriminations multiply each other, and the mode is many
standard deviations away from the mean. The Gaussian with the largest lower bound E log p + entropy
has E ∇ log p = 0 and the precision E[−∇² log p], with expectations under itself (Opper &
Archambeau, The variational Gaussian approximation revisited, Neural Computation 21(3), 2009). Steps
towards both are natural-gradient steps (Khan & Rue, The Bayesian learning rule, JMLR 24(281),
2023).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pymc_flows.field.conditional.gaussian import FieldGaussian
from pymc_flows.field.conditional.newton import FieldModes
from pymc_flows.field.factors import NotPositiveDefinite

# A step that lowers the bound is shortened by this factor; most lengths that are tried.
SHORTER, MOST_LENGTHS = 1 / 3, 4
# A step may lower the bound by this share of it, which is rounding.
ROUNDING = 1e-10


def nearest_gaussian(
    modes: FieldModes,
    gaussian: FieldGaussian,
    points: np.ndarray,
    *,
    steps: int,
    tolerance: float,
) -> FieldGaussian:
    """Maximise the lower bound over mean and precision, starting from a Gaussian.

    Parameters
    ----------
    modes : FieldModes
    gaussian : FieldGaussian
        Its precision is the curvature at its mean, plus its excess if it has one.
    points : ndarray, shape (n, n_field)
        Points over which expectations are taken, in the coordinates of the noise; symmetric.
    steps : int
        Largest number of steps; each takes a curvature and a gradient per point.
    tolerance : float
        Gain of a step, in nats, below which it is the last.

    Returns
    -------
    FieldGaussian
        With ``excess`` and ``averages``.
    """
    posterior = modes.posterior
    hyper = gaussian.hyper
    precision = modes.curvature(hyper, gaussian.mean)
    if gaussian.excess is not None:
        precision = precision + gaussian.excess
    value, gradient = _averages(modes, gaussian, points)
    for _ in range(steps):
        target = _expected_curvature(modes, gaussian, points)
        share, moved = 1.0, None
        for _ in range(MOST_LENGTHS):
            mixed = (1 - share) * precision + share * target
            moved = _moved(modes, gaussian, mixed, share * gradient[posterior.field])
            if moved is not None:
                there, slope = _averages(modes, moved, points)
                before = value + gaussian.log_normalizer
                gained = there + moved.log_normalizer - before
                if np.isfinite(slope).all() and gained >= -ROUNDING * (1 + abs(before)):
                    break
            share, moved = share * SHORTER, None
        if moved is None:
            break
        gaussian, precision, value, gradient = moved, mixed, there, slope
        if gained < tolerance:
            break
    at_mean = modes.curvature(hyper, gaussian.mean)
    log_joint, _ = posterior.value_and_grad(posterior.join(hyper, gaussian.mean))
    return replace(
        gaussian,
        log_joint=float(log_joint[0]),
        excess=precision - at_mean,
        averages=(value, gradient),
    )


def _expected_curvature(
    modes: FieldModes, gaussian: FieldGaussian, points: np.ndarray
) -> np.ndarray:
    """Entries of the mean curvature over the points."""
    first, *rest = gaussian.place(points)
    total = modes.curvature(gaussian.hyper, first)
    for field in rest:
        total += modes.curvature(gaussian.hyper, field)
    return total / len(points)


def _averages(
    modes: FieldModes, gaussian: FieldGaussian, points: np.ndarray
) -> tuple[float, np.ndarray]:
    """Expected log density, in nats, and expected gradient (dim,)."""
    posterior = modes.posterior
    values, gradients = posterior.value_and_grad(
        posterior.join(gaussian.hyper, gaussian.place(points))
    )
    return float(values.mean()), gradients.mean(axis=0)


def _moved(
    modes: FieldModes, gaussian: FieldGaussian, precision: np.ndarray, push: np.ndarray
) -> FieldGaussian | None:
    """The Gaussian with this precision, its mean moved by Q⁻¹ push; None if Q has no factor."""
    try:
        factor = modes.factor(precision)
    except NotPositiveDefinite:
        return None
    return replace(gaussian, mean=gaussian.mean + factor.solve(push), factor=factor, averages=None)
