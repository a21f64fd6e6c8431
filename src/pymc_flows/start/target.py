"""The log density that a start is searched for, its derivatives, and counts of evaluations."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import scipy

from pymc_flows.backends.ops import has_loop
from pymc_flows.model.curvature import Curvature, LowRankSum, curvature_of
from pymc_flows.model.log_density import LogDensity, n_data
from pymc_flows.model.logp import ModelDensity
from pymc_flows.start.options import MAX_DENSE, SEARCH
from pymc_flows.support.evaluations import Evaluations

_log = logging.getLogger(__name__)

type Evaluate = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
type Matrix = np.ndarray | scipy.sparse.csc_matrix | LowRankSum


def dense(matrix: Matrix) -> np.ndarray:
    """The matrix as an array."""
    return matrix if isinstance(matrix, np.ndarray) else matrix.toarray()


class Target:
    """A log density, its gradient and its curvature.

    Parameters
    ----------
    evaluate : callable
        Log density (n,) and its gradient (n, dim) at points (n, dim).
    value : callable, optional
        The log density alone.
    curvature : Curvature, optional
        Without one, curvatures are differences of gradients.
    is_cheap : bool
        Whether a curvature costs no more than a few gradients.
    is_exact : bool
        Whether a curvature is not a difference of gradients.
    evaluations : Evaluations, optional
        Evaluations are added to these.
    n_data : int
        Numbers in the data.
    """

    def __init__(
        self,
        evaluate: Evaluate,
        value: Callable[[np.ndarray], np.ndarray] | None = None,
        curvature: Curvature | None = None,
        *,
        is_cheap: bool = True,
        is_exact: bool = True,
        evaluations: Evaluations | None = None,
        n_data: int = 0,
    ):
        self._evaluate, self._value, self._curvature = evaluate, value, curvature
        self._scale: np.ndarray | None = None
        self.n_data = n_data
        self.is_exact = is_exact
        self.takes_newton_steps = curvature is not None and is_cheap
        self.evaluations = Evaluations() if evaluations is None else evaluations

    @classmethod
    def of(
        cls,
        density: ModelDensity,
        near: np.ndarray | None = None,
        evaluations: Evaluations | None = None,
    ) -> Target:
        """The target of a model; its curvature is read near a point (dim,) with a finite density.

        If the model sees its rows batch by batch, one batch, scaled, stands for all rows.
        """
        log_density = LogDensity(density, all_rows=False)
        curvature = _exact(density, near)
        is_cheap = is_exact = False
        if curvature is not None:
            is_full = curvature.pattern.nnz > SEARCH.full * density.dim**2
            is_exact = not curvature.differenced
            is_cheap = is_exact and not (is_full and density.dim > MAX_DENSE)
        return cls(
            log_density.value_and_grad,
            log_density.value,
            curvature,
            is_cheap=is_cheap,
            is_exact=is_exact,
            evaluations=evaluations,
            n_data=n_data(density, all_rows=False),
        )

    def value(self, points: np.ndarray) -> np.ndarray:
        """Log density (n,) at points (n, dim), in nats."""
        if self._value is None:
            return self.value_and_grad(points)[0]
        self.evaluations.densities += len(points)
        with np.errstate(all="ignore"):  # a search may look far off
            return self._value(points)

    def value_and_grad(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Log density (n,) and its gradient (n, dim) at points (n, dim)."""
        self.evaluations.gradients += len(points)
        with np.errstate(all="ignore"):
            return self._evaluate(points)

    def curved(self, point: np.ndarray) -> tuple[float, np.ndarray, Matrix]:
        """Log density, gradient (dim,) and −∇² (dim, dim) at a point (dim,)."""
        if self._curvature is None:
            [value], [gradient] = self.value_and_grad(point[None])
            return value, gradient, self._differences(point)
        before = self._curvature.n_gradients
        found = self._curvature.value_grad_curvature(point)
        self.evaluations.curvatures += 1
        self.evaluations.gradients += 1 + self._curvature.n_gradients - before
        return found

    def _differences(self, point: np.ndarray) -> np.ndarray:
        """Curvature by central differences along each coordinate.

        Steps are a share of the conditional standard deviations; the first call estimates these in
        a round of its own. In more dimensions than `MAX_DENSE`, which would take too many
        gradients, the curvature is 0.
        """
        dim, sd = len(point), self._scale
        if dim > MAX_DENSE:
            return np.zeros((dim, dim))
        rounds = 2 if sd is None else 1
        if sd is None:
            sd = 0.1 * np.maximum(1.0, np.abs(point))
        for _ in range(rounds):
            steps = 0.02 * sd
            moved = np.concatenate([point + np.diag(steps), point - np.diag(steps)])
            _, gradients = self.value_and_grad(moved)
            with np.errstate(all="ignore"):  # entries that are not finite are not used
                found: np.ndarray = (gradients[dim:] - gradients[:dim]) / (2 * steps[:, None])
            diagonal = np.diagonal(found)
            is_peak = np.isfinite(found).all(axis=1) & (diagonal > 0)
            sd = np.where(is_peak, 1 / np.sqrt(np.where(is_peak, diagonal, 1.0)), 1.0)
        self._scale = sd
        return found


def _exact(density: ModelDensity, near: np.ndarray | None) -> Curvature | None:
    """The curvature of a model; None, which the log explains, if it cannot be used."""
    if has_loop(density.terms):
        # Its gradient in NumPy would go step by step through Python.
        _log.info(
            "The model has a loop: curvatures are differences, %d gradients each.", 2 * density.dim
        )
        return None
    try:
        curvature = curvature_of(density, near=near)
        curvature.pattern  # noqa: B018 - reads the graph
    except Exception as error:  # graphs may fail in any way, and differences will do
        _log.warning(
            "The curvature of the model could not be read, and is differenced, %d gradients each "
            "time: %s",
            2 * density.dim,
            error,
        )
        return None
    return curvature
