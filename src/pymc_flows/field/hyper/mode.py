"""The mode of the marginal density over hyperparameters, and its curvature."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pymc_flows.errors import FitError
from pymc_flows.field.conditional.gaussian import FieldGaussian
from pymc_flows.field.conditional.mapping import ConditionalField, Expectation, Surface
from pymc_flows.field.hyper.objective import Objective, objective_of
from pymc_flows.field.options import Progress

# Most Newton steps for the first mode of the field, from the start of the model.
FIRST_STEPS = 100
# Most steps of BFGS.
STEPS = 60
# Longest first step in each hyperparameter, in unconstrained units.
MAX_STEP = 1.0
# Gain, in nats, below which the search ends.
SMALLEST_GAIN = 1e-2
# Most hyperparameters that are moved or followed one by one.
MAX_AXES = 16
# A step must gain this share of the gain that the gradient promises.
ARMIJO = 1e-4
# A step that does not gain is shortened by this factor; most lengths that are tried.
SHORTER, MOST_LENGTHS = 1 / 4, 8
# The bound on steps is raised by this factor where a step has reached it.
FARTHER = 4.0
# A step that promises less than this, in nats, may fail to gain because of rounding.
NEAR = 0.1
# The first curvatures lie within this factor of their mean.
RANGE = 1e4
# Steps of differences of gradients: this share of a standard deviation, between these bounds.
SHARE, LEAST, MOST = 0.5, 0.01, 0.5
# Standard deviation of a hyperparameter whose curvature is not known.
WIDEST = 3.0
# Smallest gradient that is divided by, in nats per unit.
SMALLEST = 1e-6
# Least curvature in any direction, in units of that of the coordinates.
FLATTEST = 1e-3
# BFGS starts again from the curvature where it ended, this many times at most.
MOST_CLIMBS = 6


@dataclass(frozen=True, eq=False)
class HyperMode:
    """The mode over hyperparameters.

    Attributes
    ----------
    gaussian : FieldGaussian
        The Gaussian over the field at the mode.
    expectation : Expectation
        Lower bound of the marginal log density at the mode, and its gradient.
    covariance : ndarray, shape (n_hyper, n_hyper)
        Inverse of minus the Hessian of the log marginal.
    surface : Surface
        Predicts the mode of the field for other hyperparameters.
    shift : Surface, optional
        Predicts mean − mode of the field; None if mean and mode are the same.
    """

    gaussian: FieldGaussian
    expectation: Expectation
    covariance: np.ndarray
    surface: Surface
    shift: Surface | None = None

    @property
    def promises(self) -> float:
        """Expected gain of a Newton step from here, in nats."""
        gradient = self.expectation.gradient
        return 0.5 * float(gradient @ self.covariance @ gradient)


def find_mode(
    conditional: ConditionalField,
    hyper: np.ndarray,
    field: np.ndarray,
    progress: Progress,
) -> HyperMode:
    """Maximise the lower bound of the marginal log density, or Laplace's approximation of it.

    It takes BFGS with bounded steps. If the curvature at the end promises more, BFGS starts again
    with this curvature.

    The gradient of the bound is E ∂ log p / ∂ hyperparameters under the Gaussian over the field.
    Its cost does not depend on the number of hyperparameters.

    Parameters
    ----------
    conditional : ConditionalField
    hyper, field : ndarray
        Where to begin, (n_hyper,) and (n_field,).
    progress : Progress

    Returns
    -------
    HyperMode

    Raises
    ------
    FitError
        If there is no Gaussian over the field at the start.
    """
    [first] = conditional.at(hyper[None], field[None], steps=FIRST_STEPS)
    if first is None:
        raise FitError(
            "the field has no mode at the starting values of the hyperparameters: its log density "
            "is not finite there, or its curvature not positive definite\n"
            "Give other starting values, or choose the hyperparameters yourself."
        )
    conditional.corrects = not conditional.is_gaussian(first)
    gaussian = first
    if conditional.corrects:
        [gaussian] = conditional.centred([first])
        gaussian = conditional.adapt(gaussian)
    objective = objective_of(conditional)
    if objective is not conditional:
        gaussian = first
    [found] = objective.expect([gaussian])
    gaussian, found = _settle(objective, conditional.posterior.locations, gaussian, found, progress)
    gaussian, found, inverse = _climb(objective, gaussian, found, None, progress)
    mode = _curve(objective, gaussian, found, inverse, progress)
    if conditional.corrects and not conditional.is_far:
        [centred] = conditional.centred([mode.gaussian])
        gaussian = conditional.adapt(centred)
        if gaussian is not centred:
            objective = conditional
            [found] = objective.expect([gaussian])
            mode = _curve(objective, gaussian, found, mode.covariance, progress)
    for _ in range(MOST_CLIMBS):
        if mode.promises < NEAR:
            break
        gaussian, found, inverse = _climb(
            objective, mode.gaussian, mode.expectation, mode.covariance, progress
        )
        # With few points, expected gradients differ a little from the slopes of expected values.
        if found.elbo - mode.expectation.elbo < SMALLEST_GAIN:
            break
        mode = _curve(objective, gaussian, found, inverse, progress)
    if objective is not conditional and conditional.corrects:  # a constant shift will do
        [centred] = conditional.centred([mode.gaussian])
        mode = replace(mode, gaussian=centred, shift=Surface(centred.hyper, shift_of(centred)))
    return mode


def _settle(
    objective: Objective,
    locations: np.ndarray,
    gaussian: FieldGaussian,
    found: Expectation,
    progress: Progress,
) -> tuple[FieldGaussian, Expectation]:
    """Take Newton steps in the locations alone, whose marginal is often nearly quadratic.

    The steps have no bound, since locations have the units of the data. Where they end hardly
    depends on the scales.
    """
    places = np.flatnonzero(locations)
    if not 0 < len(places) <= MAX_AXES:
        return gaussian, found
    for _ in range(MOST_CLIMBS):
        hyper = gaussian.hyper + LEAST * np.eye(len(gaussian.hyper))[places]
        around = objective.near(hyper, gaussian)
        ends = [g for g in around if g is not None]
        if len(ends) < len(places):
            break
        gradients = np.stack([e.gradient[places] for e in objective.expect(ends)])
        inverse = _inverse((found.gradient[places] - gradients) / LEAST)
        step = np.zeros(len(gaussian.hyper))
        step[places] = inverse @ found.gradient[places]
        promised = 0.5 * float(step @ found.gradient)
        moved = None
        if promised > SMALLEST_GAIN:
            moved = _advance(objective, gaussian, found, step)
        progress.tell("locations")
        if moved is None:
            break
        gaussian, found = moved
    return gaussian, found


def _climb(
    objective: Objective,
    gaussian: FieldGaussian,
    found: Expectation,
    inverse: np.ndarray | None,
    progress: Progress,
) -> tuple[FieldGaussian, Expectation, np.ndarray]:
    """Run BFGS; return where it ends, and its estimate of the covariance (n_hyper, n_hyper)."""
    caps = np.full(len(gaussian.hyper), MAX_STEP)
    fresh = inverse is None
    if inverse is None:
        inverse = _first(found)
    else:
        caps = np.maximum(caps, np.sqrt(np.diagonal(inverse)))
    for _ in range(STEPS):
        step = np.clip(inverse @ found.gradient, -caps, caps)
        promised = float(step @ found.gradient)
        if promised <= 0 and not fresh:  # clipping turned it around
            inverse, fresh = _first(found), True
            continue
        if promised < SMALLEST_GAIN:
            break
        moved = _advance(objective, gaussian, found, step)
        progress.tell("mode of the hyperparameters")
        if moved is None:
            if fresh or promised < NEAR:
                break
            inverse, fresh = _first(found), True
            continue
        new, expected = moved
        taken = np.abs(new.hyper - gaussian.hyper)
        # Hyperparameters that reached their bound may go farther: they may have large units.
        caps = np.where(taken >= 0.99 * caps, FARTHER * caps, np.maximum(caps, MAX_STEP))
        if (taken < 0.99 * np.abs(step)).any():
            caps = np.maximum(MAX_STEP, 2 * taken)
        inverse = _updated(
            inverse, new.hyper - gaussian.hyper, found.gradient - expected.gradient, scale=fresh
        )
        fresh = False
        gaussian, found = new, expected
    return gaussian, found, inverse


def _first(found: Expectation) -> np.ndarray:
    """A diagonal metric with which the first step reaches its bound, on plateaus too."""
    return np.diag(MAX_STEP / np.maximum(np.abs(found.gradient), SMALLEST))


def _advance(
    objective: Objective, gaussian: FieldGaussian, found: Expectation, step: np.ndarray
) -> tuple[FieldGaussian, Expectation] | None:
    """Take a step, shortened until it gains; None if it does not."""
    promised = float(step @ found.gradient)
    share = 1.0
    slack = 1e-10 * (1 + abs(found.elbo))
    for _ in range(MOST_LENGTHS if promised > NEAR else 1):
        [there] = objective.near((gaussian.hyper + share * step)[None], gaussian)
        if there is not None:
            [expected] = objective.expect([there])
            usable = np.isfinite(expected.elbo) and np.isfinite(expected.gradient).all()
            if usable and expected.elbo >= found.elbo + ARMIJO * share * promised - slack:
                return there, expected
        share *= SHORTER
    return None


def _updated(inverse: np.ndarray, s: np.ndarray, y: np.ndarray, *, scale: bool) -> np.ndarray:
    """The BFGS update after a step s, along which the gradient decreased by y."""
    product = float(s @ y)
    if product <= 1e-10 * np.linalg.norm(s) * np.linalg.norm(y):
        return inverse
    if scale:  # of each coordinate by its own secant, where that is positive
        mean = product / float(y @ y)
        own = np.divide(s, y, out=np.full(len(s), mean), where=s * y > 0)
        inverse = np.diag(np.clip(own, mean / RANGE, mean * RANGE))
    left = np.eye(len(s)) - np.outer(s, y) / product
    return left @ inverse @ left.T + np.outer(s, s) / product


def _curve(
    objective: Objective,
    gaussian: FieldGaussian,
    found: Expectation,
    inverse: np.ndarray,
    progress: Progress,
) -> HyperMode:
    """Difference the gradient of the log marginal, and the predicted vectors, along each axis.

    ``found`` is the expectation under ``gaussian``. ``inverse`` is a rough covariance (n_hyper,
    n_hyper), by which the steps of the differences are chosen.
    """
    n = len(gaussian.hyper)
    reach = np.clip(SHARE * np.sqrt(np.diagonal(inverse)), LEAST, MOST)
    hessian = np.zeros((n, n))
    modes, shifts = _Differences(gaussian.mode, reach), None
    if gaussian.shift is not None:
        shifts = _Differences(gaussian.shift, reach)
    excess = None
    if gaussian.excess is not None:
        excess = np.concatenate([gaussian.excess[None], np.zeros((n, len(gaussian.excess)))])
    size = max(1, objective.chunk // 2)
    for begin in range(0, n, size):
        rows = np.arange(begin, min(begin + size, n))
        steps = np.eye(n)[rows] * reach[rows, None]
        hyper = np.concatenate([gaussian.hyper + steps, gaussian.hyper - steps])
        around = objective.near(hyper, gaussian)
        ends = [g for g in around if g is not None]
        expected = dict(zip(map(id, ends), objective.expect(ends), strict=True))
        for k, i in enumerate(rows.tolist()):
            above, below = around[k], around[k + len(rows)]
            if above is None or below is None:
                hessian[i, i] = 1 / WIDEST**2
                continue
            up, down = expected[id(above)], expected[id(below)]
            hessian[i] = (down.gradient - up.gradient) / (2 * reach[i])
            modes.take(i, above.mode, below.mode)
            if excess is not None and above.excess is not None and below.excess is not None:
                excess[1 + i] = (above.excess - below.excess) / (2 * reach[i])
            if shifts is not None:
                shifts.take(i, shift_of(above), shift_of(below))
        progress.tell("curvature of the hyperparameters")
    surface = replace(modes.surface(gaussian.hyper), excess=excess)
    shift = None if shifts is None else shifts.surface(gaussian.hyper)
    return HyperMode(gaussian, found, _inverse(hessian), surface, shift)


class _Differences:
    """First and second differences of a vector along each hyperparameter."""

    def __init__(self, middle: np.ndarray, reach: np.ndarray):
        shape = len(reach), len(middle)
        self.middle, self.reach = middle, reach
        self.slopes, self.bends = np.zeros(shape), np.zeros(shape)

    def take(self, i: int, above: np.ndarray, below: np.ndarray) -> None:
        """Difference the vectors at both ends of axis i."""
        self.slopes[i] = (above - below) / (2 * self.reach[i])
        self.bends[i] = (above - 2 * self.middle + below) / self.reach[i] ** 2

    def surface(self, center: np.ndarray) -> Surface:
        """The surface with these derivatives."""
        return Surface(center, self.middle, self.slopes, self.bends, 2 * self.reach)


def shift_of(gaussian: FieldGaussian) -> np.ndarray:
    """Mean − mode (n_field,), in the coordinates of the noise."""
    return np.zeros(len(gaussian.mean)) if gaussian.shift is None else gaussian.shift


def _inverse(hessian: np.ndarray) -> np.ndarray:
    """Inverse of a Hessian whose eigenvalues, in units of its diagonal, are made positive."""
    hessian = np.where(np.isfinite(hessian), hessian, 0.0)
    hessian = (hessian + hessian.T) / 2
    diagonal = np.abs(np.diagonal(hessian))
    sd = np.where(diagonal > 0, 1 / np.sqrt(np.where(diagonal > 0, diagonal, 1.0)), WIDEST)
    values, vectors = np.linalg.eigh(hessian * sd * sd[:, None])
    root = sd[:, None] * vectors / np.sqrt(np.maximum(np.abs(values), FLATTEST))
    return root @ root.T
