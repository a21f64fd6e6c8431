"""From a start that one batch of rows has found to one by all rows, in a few passes over them."""

from __future__ import annotations

import logging
from dataclasses import replace

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

# Newton's method from a batch of a thousandth of the rows, 30 standard deviations off, takes three.
MAX_PASSES = 8
# The last step is no longer than this, in standard deviations: what is left is its square.
NEAR = 0.1
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

    Each pass over the rows computes the gradient and its differences, in the directions of the
    Gaussian, and so a step of Newton's method.

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
    best, last, way = frame, -np.inf, np.zeros(len(frame.center))
    for _ in range(MAX_PASSES):
        if deadline.has_passed:
            break
        value, gradient, curvature = _derivatives(target, frame)
        if not value > last:  # too far: half of the way
            way = way / 2
            frame = replace(best, center=best.center + way)
            continue
        eigenvalues = np.linalg.eigvalsh(curvature)
        if not eigenvalues[0] > 0:
            _log.info("The log density of all rows is not concave at the start by one batch.")
            break
        best, last = _curved(frame, curvature), value
        step = np.linalg.solve(curvature, gradient)
        way = frame.forward(step) - frame.center
        frame = replace(best, center=best.center + way)
        if gradient @ step < NEAR**2 * len(step):
            best = frame
            break
    _log.info("Start: by all rows, in passes over them; %s.", target.evaluations)
    return best


def _target(density: ModelDensity, evaluations: Evaluations | None) -> Target:
    log_density = LogDensity(density)
    return Target(log_density.value_and_grad, log_density.value, evaluations=evaluations)


def _derivatives(target: Target, frame: Frame) -> tuple[float, np.ndarray, np.ndarray]:
    """Log density, gradient and curvature in the coordinates of a Gaussian, at its centre."""
    dim = len(frame.center)
    steps = STEP * np.eye(dim)
    points = frame.forward(np.concatenate([np.zeros((1, dim)), steps, -steps]))
    values, gradients = target.value_and_grad(points)
    inside = np.array([frame.pullback(g) for g in gradients])
    curvature = (inside[dim + 1 :] - inside[1 : dim + 1]) / (2 * STEP)
    if not (np.isfinite(values[0]) and np.isfinite(inside).all()):
        return -np.inf, inside[0], np.eye(dim)
    return float(values[0]), inside[0], (curvature + curvature.T) / 2


def _curved(frame: Frame, curvature: np.ndarray) -> Frame:
    """The Gaussian at the same place with a curvature in its coordinates."""
    assert frame.scale is not None
    if frame.is_elementwise:
        return replace(frame, scale=frame.scale / np.sqrt(np.diagonal(curvature)))
    # The inverse of L Lᵀ has the factor L⁻ᵀ, and rotations do not matter.
    factor = np.linalg.cholesky(curvature)
    root = np.linalg.solve(factor, frame.scale.T).T
    return replace(frame, scale=np.linalg.cholesky(root @ root.T))
