"""The mode of the marginal density over hyperparameters, and its curvature."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pymc_flows.errors import FitError
from pymc_flows.field.conditional.gaussian import FieldGaussian
from pymc_flows.field.conditional.mapping import ConditionalField, Expectation, Surface
from pymc_flows.field.options import FieldOptions, Progress

# A step must gain this share of what the gradient promises.
ARMIJO = 1e-4
# A step that does not gain is shortened by this, so many times at most.
SHORTER, MOST_SHORTER = 1 / 4, 8
# Where less than this is promised, in nats, no gain is the rounding of the lower bound.
NEAR = 0.1
# Widest range of the first curvatures, relative to their mean.
RANGE = 1e4
# Differences of the gradient: this share of a standard deviation, between these bounds.
SHARE, LEAST, MOST = 0.5, 0.01, 0.5
# A standard deviation of a hyperparameter that its curvature does not bound.
WIDEST = 3.0


@dataclass(frozen=True, eq=False)
class HyperMode:
    """The mode over hyperparameters.

    Attributes
    ----------
    gaussian : FieldGaussian
        There.
    log_marginal : float
        The lower bound of the marginal log density there, in nats.
    covariance : ndarray, shape (n_hyper, n_hyper)
        Inverse of minus the Hessian of the log marginal.
    surface : Surface
        Predicts the mode of the field around it.
    """

    gaussian: FieldGaussian
    log_marginal: float
    covariance: np.ndarray
    surface: Surface


def find_mode(
    conditional: ConditionalField,
    hyper: np.ndarray,
    field: np.ndarray,
    options: FieldOptions,
    progress: Progress,
) -> tuple[FieldGaussian, Expectation, np.ndarray]:
    """Maximise the lower bound of the marginal log density (BFGS with bounded steps).

    Its gradient is E ∂ log p / ∂ hyperparameters under the Gaussian over the field, so that the
    cost does not depend on the number of hyperparameters.

    Parameters
    ----------
    conditional : ConditionalField
    hyper, field : ndarray
        Where to begin, (n_hyper,) and (n_field,).
    options : FieldOptions
    progress : Progress

    Returns
    -------
    gaussian : FieldGaussian
    expectation : Expectation
    inverse : ndarray, shape (n_hyper, n_hyper)
        BFGS's estimate of the covariance.

    Raises
    ------
    FitError
        If there is no Gaussian over the field at the start.
    """
    first = conditional.at(hyper[None], field[None], steps=options.first_newton_steps)[0]
    if first is None:
        raise FitError(
            "the field has no mode at the starting values of the hyperparameters: its log density "
            "is not finite there, or its curvature not positive definite\n"
            "Give other starting values, or choose the hyperparameters yourself."
        )
    gaussian, found = first, conditional.expect([first])[0]
    inverse = np.diag(1 / np.maximum(1.0, np.abs(found.gradient)))
    fresh = True
    for _ in range(options.search_steps):
        step = np.clip(inverse @ found.gradient, -options.max_step, options.max_step)
        promised = float(step @ found.gradient)
        if promised <= 0 and not fresh:  # clipping turned it around
            inverse = np.diag(1 / np.maximum(1.0, np.abs(found.gradient)))
            fresh = True
            continue
        if promised < options.search_tolerance:
            break
        moved = _advance(conditional, gaussian, found, step)
        progress.tell("mode of the hyperparameters")
        if moved is None:
            if fresh or promised < NEAR:
                break
            inverse, fresh = np.diag(1 / np.maximum(1.0, np.abs(found.gradient))), True
            continue
        new, expected = moved
        inverse = _updated(
            inverse, new.hyper - gaussian.hyper, found.gradient - expected.gradient, scale=fresh
        )
        fresh = False
        gaussian, found = new, expected
    return gaussian, found, inverse


def _advance(
    conditional: ConditionalField, gaussian: FieldGaussian, found: Expectation, step: np.ndarray
) -> tuple[FieldGaussian, Expectation] | None:
    """Go along a step as far as that gains; None if it does not."""
    promised = float(step @ found.gradient)
    share = 1.0
    slack = 1e-10 * (1 + abs(found.elbo))
    for _ in range(MOST_SHORTER if promised > NEAR else 1):
        there = conditional.at((gaussian.hyper + share * step)[None], gaussian.mean[None])[0]
        if there is not None:
            expected = conditional.expect([there])[0]
            usable = np.isfinite(expected.elbo) and np.isfinite(expected.gradient).all()
            if usable and expected.elbo >= found.elbo + ARMIJO * share * promised - slack:
                return there, expected
        share *= SHORTER
    return None


def _updated(inverse: np.ndarray, s: np.ndarray, y: np.ndarray, *, scale: bool) -> np.ndarray:
    """BFGS; y is the decrease of the gradient along s."""
    product = float(s @ y)
    if product <= 1e-10 * np.linalg.norm(s) * np.linalg.norm(y):
        return inverse
    if scale:  # each coordinate by its own secant, where that is positive
        mean = product / float(y @ y)
        own = np.divide(s, y, out=np.full(len(s), mean), where=s * y > 0)
        inverse = np.diag(np.clip(own, mean / RANGE, mean * RANGE))
    left = np.eye(len(s)) - np.outer(s, y) / product
    return left @ inverse @ left.T + np.outer(s, s) / product


def curve(
    conditional: ConditionalField,
    gaussian: FieldGaussian,
    found: Expectation,
    inverse: np.ndarray,
    progress: Progress,
) -> HyperMode:
    """Curvature of the log marginal by differences of its gradient, and of the field's mode.

    Parameters
    ----------
    conditional : ConditionalField
    gaussian, found, inverse
        As `find_mode` returned them.
    progress : Progress
    """
    n = len(gaussian.hyper)
    reach = np.clip(SHARE * np.sqrt(np.diagonal(inverse)), LEAST, MOST)
    hessian = np.zeros((n, n))
    slopes, bends = np.zeros((n, len(gaussian.mean))), np.zeros((n, len(gaussian.mean)))
    size = max(1, conditional.chunk // 2)
    for begin in range(0, n, size):
        rows = np.arange(begin, min(begin + size, n))
        shifts = np.eye(n)[rows] * reach[rows, None]
        hyper = np.concatenate([gaussian.hyper + shifts, gaussian.hyper - shifts])
        start = np.repeat(gaussian.mean[None], len(hyper), axis=0)
        around = conditional.at(hyper, start)
        ends = [g for g in around if g is not None]
        expected = dict(zip(map(id, ends), conditional.expect(ends) if ends else [], strict=True))
        for k, i in enumerate(rows):
            above, below = around[k], around[k + len(rows)]
            if above is None or below is None:
                hessian[i, i] = 1 / WIDEST**2
                continue
            up, down = expected[id(above)], expected[id(below)]
            hessian[i] = (down.gradient - up.gradient) / (2 * reach[i])
            slopes[i] = (above.mean - below.mean) / (2 * reach[i])
            bends[i] = (above.mean - 2 * gaussian.mean + below.mean) / reach[i] ** 2
        progress.tell("curvature of the hyperparameters")
    surface = Surface(gaussian.hyper, gaussian.mean, slopes, bends, 2 * reach)
    return HyperMode(gaussian, found.elbo, _inverse(hessian), surface)


def _inverse(hessian: np.ndarray) -> np.ndarray:
    """Covariance; directions without curvature get a width of their own."""
    hessian = np.where(np.isfinite(hessian), hessian, 0.0)
    values, vectors = np.linalg.eigh((hessian + hessian.T) / 2)
    values = np.where(values > 1 / WIDEST**2, values, 1 / WIDEST**2)
    return (vectors / values) @ vectors.T
