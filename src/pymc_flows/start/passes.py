"""Correct a start found by one batch of rows for all rows, in a few passes over them."""

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

# The mode of a batch of a thousandth of the rows is 30 standard deviations off. Its curvature may
# be off by 20 %, and each pass then leaves that share of the way.
MAX_PASSES = 8
# Lengths in standard deviations: a step no longer than the first is followed by one with the exact
# curvature. Such a step, if it is no longer than the second, is the last: its square is left.
CLOSE, NEAR = 1.0, 0.1
# Step of a central difference of gradients, in standard deviations.
STEP = 0.02
# Steps of L-BFGS in more dimensions than `MAX_DENSE`, where curvatures would cost too much.
LINE_SEARCHES = 20
# Least share of the usual draws for a model that sees its rows batch by batch: each draw is
# evaluated at all rows.
FEWEST_OF_STREAM = 0.05


def share_for(density: ModelDensity) -> float:
    """Share of the usual draws that are evaluated for a model, by the size of its data."""
    fewest = FEWEST if stream_of(density) is None else FEWEST_OF_STREAM
    return share_of_draws(n_data(density), fewest=fewest)


def on_all_rows(
    density: ModelDensity,
    frame: Frame,
    evaluations: Evaluations | None = None,
    deadline: Deadline | None = None,
) -> Frame:
    """Move a Gaussian found by a batch of rows to the mode of all rows, with their curvature.

    The first passes over the rows compute a gradient each, for steps with the curvature of the
    batch. Then one pass computes differences of gradients along the axes of the Gaussian, for a
    step of Newton's method. Evaluations are added to those given.

    The given Gaussian is returned if the log density of all rows is not concave around it, as
    between separate modes, or when the deadline has passed.
    """
    deadline, target = deadline or Deadline(), _target(density, evaluations)
    _EXPANSIONS.pop(density, None)  # data may have changed
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
    """The Gaussian moved near the mode of all rows, by steps with its own curvature."""
    best, last, step = frame, -np.inf, np.zeros(len(frame.center))
    for _ in range(MAX_PASSES):
        if deadline.has_passed:
            break
        [value], [gradient] = target.value_and_grad(frame.center[None])
        if value > last:
            best, last, step = frame, value, frame.pullback(gradient)
            if step @ step < CLOSE**2 * len(step):
                break
        else:  # too far
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


# The last one of each density, for as long as that lives.
_EXPANSIONS: WeakKeyDictionary[ModelDensity, _Expansion] = WeakKeyDictionary()


def nearly(
    density: ModelDensity, frame: Frame, evaluations: Evaluations | None = None
) -> Callable[[np.ndarray], np.ndarray]:
    """The log density with the likelihood of all rows to second order, cheap for any draws.

    With many rows that is accurate near the mode. The prior, which may be far from quadratic, is
    exact. This takes one pass over the rows, or none after `on_all_rows`. The likelihood is
    expanded near the centre of the frame. Evaluations are added to those given.

    Returns
    -------
    callable
        Log density (n,) at points (n, dim), in nats.
    """
    stream = stream_of(density)
    assert stream is not None
    prior = LogDensity(stream.prior)
    known = _EXPANSIONS.get(density)
    if known is None or distance(known.frame, frame.center) > CLOSE:
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
        curvature = np.zeros((dim, dim))  # not concave
    return _Expansion(frame, float(values[0]), inside[0], (curvature + curvature.T) / 2)


def distance(frame: Frame, point: np.ndarray) -> float:
    """Root mean square over the coordinates of a point (dim,) in a frame: standard deviations."""
    return float(np.sqrt(np.mean(frame.inverse(point) ** 2)))


def _curved(frame: Frame, curvature: np.ndarray) -> Frame:
    """The Gaussian with the same centre and a curvature (dim, dim) given in its coordinates."""
    assert frame.scale is not None
    if frame.is_elementwise:
        return replace(frame, scale=frame.scale / np.sqrt(np.diagonal(curvature)))
    # The inverse of L Lᵀ is L⁻ᵀ L⁻¹; `cholesky` makes the root lower-triangular.
    factor = np.linalg.cholesky(curvature)
    root = np.linalg.solve(factor, frame.scale.T).T
    return replace(frame, scale=np.linalg.cholesky(root @ root.T))
