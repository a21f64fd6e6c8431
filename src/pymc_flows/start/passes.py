"""From a start that one batch of rows has found to one by all rows, in a few passes over them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import numpy as np

from pymc_flows.flows.frame import Frame
from pymc_flows.model.log_density import LogDensity, n_data
from pymc_flows.model.logp import ModelDensity
from pymc_flows.model.streams import stream_of
from pymc_flows.start.ascent import ascend
from pymc_flows.start.options import FEWEST, MAX_DENSE, SEARCH, share_of_draws
from pymc_flows.start.target import Target
from pymc_flows.support.deadline import Deadline
from pymc_flows.support.evaluations import Evaluations

_log = logging.getLogger(__name__)

# A batch of a thousandth of the rows is 30 standard deviations off; its curvature, by 20 % say,
# and each of the passes leaves that share of the way.
MAX_PASSES = 8
# A step no longer than this, in standard deviations, is followed by one with the exact curvature;
# after one no longer than that, there is nothing left to gain: what is left is its square.
CLOSE, NEAR = 1.0, 0.1
# Of a central difference of gradients, in standard deviations.
STEP = 0.02
# In more dimensions than `MAX_DENSE`, without second derivatives.
LINE_SEARCHES = 20
# A draw is evaluated at each row: of many rows, so few of the usual draws judge a fit.
FEWEST_OF_STREAM = 0.05


def share_for(density: ModelDensity) -> float:
    """How many of the usual draws are evaluated with the data of a model."""
    fewest = FEWEST if stream_of(density) is None else FEWEST_OF_STREAM
    return share_of_draws(n_data(density), fewest=fewest)


def on_all_rows(
    density: ModelDensity,
    frame: Frame,
    evaluations: Evaluations | None = None,
    deadline: Deadline | None = None,
) -> Frame:
    """Move a Gaussian that a batch of rows has found to the mode and the curvature of all rows.

    The first passes over the rows compute a gradient each, and take steps with the curvature of the
    batch; then one computes differences of gradients in the directions of the Gaussian, for a step
    of Newton's method.

    Parameters
    ----------
    density : ModelDensity
        Of a model that sees its rows batch by batch.
    frame : Frame
    evaluations : Evaluations, optional
        Counts on from these.
    deadline : Deadline, optional
        When it has passed, no further pass begins.

    Returns
    -------
    Frame
        The given one where the log density of all rows is not concave around it: with modes that
        are apart there is more than one way to go.
    """
    deadline, target = deadline or Deadline(), _target(density, evaluations)
    if frame.scale is None:
        return frame
    if len(frame.center) > MAX_DENSE:
        path = ascend(target, frame, replace(SEARCH, line_searches=LINE_SEARCHES), deadline)
        return replace(frame, center=path[-1]) if path else frame
    at = frame
    for _ in range(MAX_PASSES):
        at = _approached(target, at, deadline)
        if deadline.has_passed:
            return frame
        found = _expansion(target, at)
        if not np.linalg.eigvalsh(found.curvature)[0] > 0:
            _log.info("The log density of all rows is not concave at the start by one batch.")
            return frame
        _EXPANSIONS[density] = found
        step = np.linalg.solve(found.curvature, found.gradient)
        at = replace(_curved(at, found.curvature), center=at.forward(step))
        if found.gradient @ step < NEAR**2 * len(step):
            break
    _log.info("Start: by all rows, in passes over them; %s.", target.evaluations)
    return at


def _approached(target: Target, frame: Frame, deadline: Deadline) -> Frame:
    """The Gaussian near to the mode of all rows, by steps with its own curvature."""
    best, last, step = frame, -np.inf, np.zeros(len(frame.center))
    for _ in range(MAX_PASSES):
        if deadline.has_passed:
            break
        [value], [gradient] = target.value_and_grad(frame.center[None])
        if value > last:
            best, last, step = frame, value, frame.pullback(gradient)
            if step @ step < CLOSE**2 * len(step):
                break
        else:  # too far: half of the way
            step = step / 2
        frame = replace(best, center=best.forward(step))
    return best


@dataclass(frozen=True, eq=False)
class _Expansion:
    """A log density to second order, in the coordinates of a Gaussian, at its centre."""

    frame: Frame
    value: float
    gradient: np.ndarray
    curvature: np.ndarray


# The last one of each density. They live as long as that.
_EXPANSIONS: WeakKeyDictionary[ModelDensity, _Expansion] = WeakKeyDictionary()


def nearly(
    density: ModelDensity, frame: Frame, evaluations: Evaluations | None = None
) -> Callable[[np.ndarray], np.ndarray]:
    """The log density with that of all rows to second order, for any number of draws.

    Of many rows it is that near to a posterior; the prior, of scales say, is taken as it is. It
    takes one pass over the rows, or none after `on_all_rows`.

    Parameters
    ----------
    density : ModelDensity
        Of a model that sees its rows batch by batch.
    frame : Frame
        The expansion is one near its centre.
    evaluations : Evaluations, optional
        Counts on from these.

    Returns
    -------
    callable
        Log density (n,) at points (n, dim), in nats.
    """
    stream = stream_of(density)
    assert stream is not None
    prior = LogDensity(stream.prior)
    known = _EXPANSIONS.get(density)
    if known is None or _distance(known.frame, frame.center) > CLOSE:
        known = _expansion(_target(density, evaluations), frame)
    own, at = _expansion(Target(prior.value_and_grad), known.frame), known.frame
    value, gradient = known.value - own.value, known.gradient - own.gradient
    curvature = known.curvature - own.curvature

    def log_density(points: np.ndarray) -> np.ndarray:
        u = at.inverse(points)
        data = value + u @ gradient - 0.5 * np.einsum("ni,ij,nj->n", u, curvature, u)
        found: np.ndarray = prior.value(points) + data
        return found

    return log_density


def _target(density: ModelDensity, evaluations: Evaluations | None) -> Target:
    log_density = LogDensity(density)
    return Target(log_density.value_and_grad, log_density.value, evaluations=evaluations)


def _expansion(target: Target, frame: Frame) -> _Expansion:
    """Log density, gradient and curvature at the centre of a Gaussian."""
    dim = len(frame.center)
    steps = STEP * np.eye(dim)
    points = frame.forward(np.concatenate([np.zeros((1, dim)), steps, -steps]))
    values, gradients = target.value_and_grad(points)
    inside = np.array([frame.pullback(g) for g in gradients])
    with np.errstate(invalid="ignore"):
        curvature = (inside[dim + 1 :] - inside[1 : dim + 1]) / (2 * STEP)
    if not np.isfinite(curvature).all():
        curvature = np.zeros((dim, dim))  # which is nowhere concave
    return _Expansion(frame, float(values[0]), inside[0], (curvature + curvature.T) / 2)


def _distance(frame: Frame, point: np.ndarray) -> float:
    """Of a point from the centre, per root of the dimension, in standard deviations."""
    return float(np.sqrt(np.mean(frame.inverse(point) ** 2)))


def _curved(frame: Frame, curvature: np.ndarray) -> Frame:
    """The Gaussian at the same place with a curvature in its coordinates."""
    assert frame.scale is not None
    if frame.is_elementwise:
        return replace(frame, scale=frame.scale / np.sqrt(np.diagonal(curvature)))
    # The inverse of L Lᵀ has the factor L⁻ᵀ, and rotations do not matter.
    factor = np.linalg.cholesky(curvature)
    root = np.linalg.solve(factor, frame.scale.T).T
    return replace(frame, scale=np.linalg.cholesky(root @ root.T))
