"""Search for a mode: Newton's method in a trust region, or L-BFGS where Hessians are expensive."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import scipy

from pymc_flows.flows.frame import Frame
from pymc_flows.model.curvature import LowRankSum
from pymc_flows.start.options import MAX_DENSE, SearchOptions
from pymc_flows.start.target import Matrix, Target, dense
from pymc_flows.support.deadline import Deadline

type Path = list[np.ndarray]


def ascend(target: Target, frame: Frame, options: SearchOptions, deadline: Deadline) -> Path:
    """Points (dim,) on the way to a mode, the last one there; none if the start has no density.

    The centre of the frame is the start, and steps are measured in its coordinates. When the
    deadline has passed, the search ends at the point that it has reached.
    """
    if target.takes_newton_steps:
        return _newton(target, frame, options, deadline)
    return _quasi_newton(target, frame, options, deadline)


def _newton(target: Target, frame: Frame, options: SearchOptions, deadline: Deadline) -> Path:
    """Moré & Sorensen's trust region, or in high dimensions Steihaug's with conjugate gradients."""
    at = _Remembered(target, frame)
    start = np.zeros(len(frame.center))
    if not np.isfinite(at.value(start)):
        return []
    is_small = len(start) <= MAX_DENSE
    # In the units of the Hessian, most of the mass of a Gaussian is within this radius.
    arguments: dict[str, Any] = {
        "jac": at.gradient,
        "method": "trust-exact" if is_small else "trust-ncg",
        "hess" if is_small else "hessp": at.dense if is_small else at.times,
        "options": {
            "maxiter": options.newton_steps,
            "gtol": 0.1 * options.at_mode,
            "initial_trust_radius": np.sqrt(len(start)),
            "max_trust_radius": 1e6 * np.sqrt(len(start)),
        },
    }
    return _run(at.value, start, frame, options, deadline, arguments)


def _quasi_newton(target: Target, frame: Frame, options: SearchOptions, deadline: Deadline) -> Path:
    """L-BFGS by gradients alone."""

    def negative(u: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = target.value_and_grad(frame.forward(u)[None])
        if not (np.isfinite(value).all() and np.isfinite(gradient).all()):
            return np.inf, np.zeros_like(u)
        return -value[0], -frame.pullback(gradient[0])

    start = np.zeros(len(frame.center))
    if not np.isfinite(negative(start)[0]):
        return []
    arguments = {
        "jac": True,
        "method": "L-BFGS-B",
        # No absolute bound of the gradient, which has units.
        "options": {
            "maxiter": options.line_searches,
            "maxcor": 20,
            "ftol": options.gain,
            "gtol": 0.0,
        },
    }
    return _run(negative, start, frame, options, deadline, arguments)


def _run(
    value: Any,
    start: np.ndarray,
    frame: Frame,
    options: SearchOptions,
    deadline: Deadline,
    arguments: dict[str, Any],
) -> Path:
    """Minimise; return the accepted points, in the model's own coordinates."""
    from scipy import optimize  # slow to import

    path: list[np.ndarray] = []
    last = [np.inf]

    def moved(intermediate_result: Any) -> None:
        u, now = intermediate_result.x, float(intermediate_result.fun)
        if path and np.array_equal(path[-1], u):
            return  # the step was rejected
        path.append(u.copy())
        has_gained = last[0] - now > options.gain * (1 + abs(now))
        last[0] = now
        if deadline.has_passed or not has_gained:
            raise StopIteration

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # differences of infinities
        try:
            optimize.minimize(value, start, callback=moved, **arguments)
        except (np.linalg.LinAlgError, ValueError):  # a Hessian that is not finite
            pass
    points = [frame.forward(u) for u in (path or [start])]
    return [point for point in points if np.isfinite(point).all()]


class _Remembered:
    """Value, gradient and Hessian, which a trust region asks for one by one, evaluated together.

    Points and derivatives are in the coordinates of the frame.
    """

    def __init__(self, target: Target, frame: Frame):
        self._target, self._frame = target, frame
        self._known: list[tuple[np.ndarray, float, np.ndarray, Matrix]] = []

    def _at(self, u: np.ndarray) -> tuple[np.ndarray, float, np.ndarray, Matrix]:
        for known in self._known:
            if np.array_equal(known[0], u):
                return known
        value, gradient, matrix = self._target.curved(self._frame.forward(u))
        if not (np.isfinite(value) and np.isfinite(gradient).all()):
            value, gradient = -np.inf, np.zeros_like(u)
        curvature = pulled_back(self._frame, matrix)
        found = (u.copy(), -float(value), -self._frame.pullback(gradient), curvature)
        self._known = [*self._known[-1:], found]
        return found

    def value(self, u: np.ndarray) -> float:
        """Minus the log density; ∞ where it is not finite."""
        return self._at(u)[1]

    def gradient(self, u: np.ndarray) -> np.ndarray:
        """Its gradient."""
        return self._at(u)[2]

    def dense(self, u: np.ndarray) -> np.ndarray:
        """Its Hessian."""
        return dense(self._at(u)[3])

    def times(self, u: np.ndarray, vector: np.ndarray) -> np.ndarray:
        """Its Hessian times a vector."""
        return np.asarray(self._at(u)[3] @ vector)


def pulled_back(frame: Frame, matrix: Matrix) -> Matrix:
    """A Hessian (dim, dim) in the model's coordinates as one in the frame's; 0 where not finite."""
    if isinstance(matrix, LowRankSum):
        if not frame.is_elementwise:
            return pulled_back(frame, matrix.toarray())
        weights = np.where(np.isfinite(matrix.weights), matrix.weights, 0.0)
        return LowRankSum(pulled_back(frame, matrix.sparse), frame.pullback(matrix.rows), weights)
    if not isinstance(matrix, np.ndarray):
        data = np.where(np.isfinite(matrix.data), matrix.data, 0.0)
        clean = scipy.sparse.csc_matrix((data, matrix.indices, matrix.indptr), matrix.shape)
        if frame.scale is None:
            return clean
        scale = scipy.sparse.diags_array(frame.scale) if frame.is_elementwise else frame.scale
        return scale.T @ clean @ scale
    full = np.where(np.isfinite(matrix), matrix, 0.0)
    if frame.scale is None:
        return full
    if frame.is_elementwise:
        return full * frame.scale * frame.scale[:, None]
    return frame.scale.T @ full @ frame.scale
