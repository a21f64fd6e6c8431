"""The exact sparse Hessian of a log density: `Curvature`."""

from __future__ import annotations

import logging

import numpy as np
import numpy.typing as npt
import scipy

from pymc_flows.backends.modes import no_compiler
from pymc_flows.errors import ArgumentError
from pymc_flows.model.curvature.long_rows import LowRankSum
from pymc_flows.model.curvature.plan import Plan
from pymc_flows.model.logp import ModelDensity
from pymc_flows.model.structure.rows import Floats, Ints

_log = logging.getLogger(__name__)

# A curvature with at most so many products is kept with its density.
MOST_KEPT = 2_000_000


def curvature_of(
    density: ModelDensity, field: Ints | None = None, near: Floats | None = None
) -> Curvature:
    """Return the curvature of a density over a field: the same object, unless it is large."""
    key = "curvature", None if field is None else field.tobytes()
    found: Curvature | None = density.kept.get(key)
    if found is None:
        found = Curvature(density, field, near)
        if found.size <= MOST_KEPT:
            density.kept[key] = found
    return found


class Curvature:
    """Curvature of a log density, −∇² log p in nats, as a sparse matrix of fixed pattern.

    The graph of the log density is cut into elementwise functions f(u₁, …, u_k) and the linear
    Ops between them. With U the Jacobians of their arguments and λ the derivatives of the log
    density by their outputs, the Hessian is Σ Uᵢᵀ diag(λ ∂²f/∂uᵢ∂uⱼ) Uⱼ: exact, in one pass over
    the graph. The curvature of terms with any other Op is computed by coloured differences of
    their gradient; the log says so.

    Terms in the sum or mean of many elements, a soft constraint for example, would make a sparse
    Hessian dense. They give a part of low rank, rowsᵀ diag(weights) rows, which is kept apart.

    Patterns and constant parts are found once. If the data have been replaced (``pm.set_data``)
    and give other ones, they are found again at the next call.

    Parameters
    ----------
    density : ModelDensity
    field : ndarray of int, optional
        Flat indices of the latents whose curvature is computed, by default of all.
    near : ndarray, shape (dim,), optional
        Where shapes and constants are found; by default the start point of the density.

    Attributes
    ----------
    field : ndarray of int
    n_evaluations : int
        Number of Hessians computed so far.
    n_gradients : int
        Number of gradients that coloured differences have taken.

    Raises
    ------
    ArgumentError
        If ``field`` is not a list of different latents.
    """

    def __init__(
        self,
        density: ModelDensity,
        field: npt.ArrayLike | None = None,
        near: Floats | None = None,
    ):
        self._density, self._near = density, near
        self.field = _checked(field, density.dim)
        self.n_evaluations = 0
        self.n_gradients = 0
        self._plan: Plan | None = None
        self._said = False

    @property
    def n_field(self) -> int:
        """Number of rows and columns."""
        return len(self.field)

    @property
    def size(self) -> int:
        """Number of products that a Hessian is a sum of: memory grows with it."""
        return self._planned().assembly.size

    @property
    def pattern(self) -> scipy.sparse.csc_matrix:
        """Entries that may differ from zero (n_field, n_field), without the part of low rank."""
        assembly = self._planned().assembly
        return assembly.matrix(np.ones(assembly.n_entries, bool))

    @property
    def rows(self) -> Floats:
        """Rows (k, n_field) of the part of low rank, constant; mostly none."""
        return self._planned().long_rows.rows

    @property
    def differenced(self) -> tuple[str, ...]:
        """Names of the terms whose curvature is computed by differences."""
        return self._planned().differenced

    def __call__(self, z: npt.ArrayLike) -> scipy.sparse.csc_matrix | LowRankSum:
        """Return the curvature at one point.

        Parameters
        ----------
        z : array-like, shape (dim,)
            All latents, not the field alone.

        Returns
        -------
        csc_matrix, or LowRankSum of one, shape (n_field, n_field)
            Symmetric, with entries at `pattern` and weights of `rows`; all NaN if the log density
            is not finite.
        """
        return self._at(np.asarray(z, dtype=float), with_grad=False)[2]

    def entries(self, points: Floats) -> Floats:
        """Return the entries of the curvature at points (n, dim), quicker than one by one if small.

        Returns
        -------
        ndarray, shape (n, n_entries + k)
            Entries in the order of `pattern`, then the weights of `rows`; NaN if the log density is
            not finite.
        """
        plan = self._planned()
        found = np.empty((len(points), plan.assembly.n_entries + len(plan.long_rows)))
        begin = 0
        self.n_evaluations += len(points)
        with np.errstate(all="ignore"):
            for part, (value, *slots) in plan.evaluate_many(points):
                end = begin + len(part)
                found[begin:end] = -plan.entries(part, slots)
                bad = ~np.isfinite(np.broadcast_to(value[:, 0], len(part)))
                found[begin:end][bad] = np.nan
                begin = end
        self.n_gradients += len(points) * plan.n_gradients
        return found

    def value_grad_curvature(
        self, z: npt.ArrayLike
    ) -> tuple[float, Floats, scipy.sparse.csc_matrix | LowRankSum]:
        """Return log density in nats, its gradient (n_field,) and curvature at a point z (dim,)."""
        return self._at(np.asarray(z, dtype=float), with_grad=True)

    def _at(
        self, z: Floats, *, with_grad: bool
    ) -> tuple[float, Floats, scipy.sparse.csc_matrix | LowRankSum]:
        if z.shape != (self._density.dim,):
            raise ArgumentError(f"expected z of shape ({self._density.dim},), got {z.shape}")
        plan = self._planned()
        self.n_evaluations += 1
        with np.errstate(all="ignore"):
            value, gradient, slots = plan.evaluate(z, with_grad=with_grad)
            [entries] = plan.entries(z[None], slots)
        self.n_gradients += plan.n_gradients
        if not np.isfinite(value):
            entries = np.full_like(entries, np.nan)
        return value, gradient, plan.matrix(-entries)

    def _planned(self) -> Plan:
        if self._plan is None or not self._plan.is_current():
            with no_compiler():
                self._plan = Plan(self._density, self.field, self._near)
            if self._plan.differenced and not self._said:
                self._said = True
                _log.info("%s", self._plan.reason())
        return self._plan


def _checked(field: npt.ArrayLike | None, dim: int) -> Ints:
    if field is None:
        return np.arange(dim)
    found = np.asarray(field)
    if (
        found.ndim != 1
        or not len(found)
        or not np.issubdtype(found.dtype, np.integer)
        or len(np.unique(found)) < len(found)
        or found.min() < 0
        or found.max() >= dim
    ):
        raise ArgumentError(
            f"field must be different flat indices from 0 to {dim - 1}, got {field!r}"
        )
    return found.astype(np.intp)
