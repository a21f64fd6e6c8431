"""The log density of a model, split into hyperparameters and the field given them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np
import scipy

from pymc_flows.field.gradient import Gradient, batched_gradient
from pymc_flows.field.shared import SharedDensity
from pymc_flows.model.curvature import Curvature, curvature_of
from pymc_flows.model.logp import ModelDensity
from pymc_flows.model.structure import GroupedDensity, Structure
from pymc_flows.support.evaluations import Evaluations

type Curved = Callable[[np.ndarray], scipy.sparse.csc_matrix]
type Grouped = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class Posterior:
    """Evaluates the log density, its gradient and its curvature in the field, and counts.

    Parameters
    ----------
    structure : Structure
        Its ``hyperparameters``, ``field`` and ``groups`` are used.
    gradient : callable
        Log density (n,) and its gradient (n, dim) at points (n, dim), in nats.
    curvature : callable
        −∇² log p over the field (n_field, n_field) at a point (dim,), with a fixed pattern that
        contains the diagonal.
    grouped : callable
        Log density at points (n, dim) in parts, in nats: a part of no group (n,), and a part of
        each group (n, n_groups).
    start : ndarray, shape (dim,)
        Where a search may begin.
    locations : ndarray of bool, shape (n_hyper,), optional
        Which hyperparameters were not transformed, and so have the units of the data: fixed
        effects, means of groups. By default none.
    sizes : tuple of int, optional
        Numbers of factors of the log density and of entries of its curvature, by which the cost of
        evaluations is estimated; by default the dimension.
    """

    def __init__(
        self,
        structure: Structure,
        gradient: Gradient,
        curvature: Curved,
        grouped: Grouped,
        start: np.ndarray,
        locations: np.ndarray | None = None,
        sizes: tuple[int, int] | None = None,
    ):
        self.hyper = np.asarray(structure.hyperparameters, dtype=int)
        self.field = np.asarray(structure.field, dtype=int)
        self.groups = np.asarray(structure.groups, dtype=int)
        self.n_groups = int(self.groups.max(initial=-1)) + 1
        self.start = np.asarray(start, dtype=float)
        self.dim, self.n_hyper, self.n_field = len(self.start), len(self.hyper), len(self.field)
        self.locations = np.zeros(len(self.hyper), bool) if locations is None else locations
        self.sizes = sizes or (len(self.start), len(self.start))
        self.evaluations = Evaluations()
        self._gradient, self._curvature, self._grouped = gradient, curvature, grouped

    @classmethod
    def of(
        cls,
        density: ModelDensity,
        structure: Structure,
        start: np.ndarray | None = None,
        gradient: Gradient | None = None,
    ) -> Posterior:
        """Make the posterior of a model.

        Parameters
        ----------
        density : ModelDensity
        structure : Structure
            Of the same model.
        start : ndarray, shape (dim,), optional
            By default the model's initial point.
        gradient : callable, optional
            Log density and gradient at points; by default `batched_gradient`.
        """
        curvature = curvature_of(density, structure.field, start)
        key = "parts", structure.field.tobytes()
        known = density.kept.get(key)
        if known is None or known[0] is not structure.factors:
            shared = SharedDensity(density, structure.hyperparameters)
            parts = GroupedDensity(density, structure), shared
            known = density.kept[key] = structure.factors, *parts
        _, grouped, shared = known
        gradient = gradient or batched_gradient(density)
        if shared.pays:
            gradient = shared
            grouped = shared.as_one_group if (structure.groups == 0).all() else grouped
        return cls(
            structure,
            gradient,
            curvature,
            grouped,
            density.start() if start is None else start,
            _untransformed(density)[structure.hyperparameters],
            (len(structure.factors.index), curvature.pattern.nnz),
        )

    def join(self, hyper: np.ndarray, field: np.ndarray) -> np.ndarray:
        """Points (n, dim) from both parts, (n, n_hyper) and (n, n_field), which are broadcast."""
        hyper, field = np.atleast_2d(hyper), np.atleast_2d(field)
        points = np.empty((max(len(hyper), len(field)), self.dim))
        points[:, self.hyper], points[:, self.field] = hyper, field
        return points

    def value_and_grad(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Log density (n,) and its gradient (n, dim) at points (n, dim), in nats.

        Where the density is zero or undefined they are not finite. Points with equal
        hyperparameters may all get the mean of their gradients with respect to these.
        """
        self.evaluations.gradients += len(points)
        with np.errstate(all="ignore"):
            return self._gradient(points)

    def by_group(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Log density in parts, in nats: of no group (n,), and of each group (n, n_groups)."""
        self.evaluations.densities += len(points)
        with np.errstate(all="ignore"):
            return self._grouped(points)

    @cached_property
    def pattern(self) -> scipy.sparse.csc_matrix:
        """Pattern of all curvatures (n_field, n_field) without their part of low rank."""
        if isinstance(self._curvature, Curvature):
            return self._curvature.pattern
        return self._curvature(self.start)

    @cached_property
    def rows(self) -> np.ndarray:
        """Rows (k, n_field) of the part of low rank, see `Curvature`; mostly there are none."""
        if isinstance(self._curvature, Curvature):
            return self._curvature.rows
        return np.zeros((0, self.n_field))

    def entries(self, points: np.ndarray) -> np.ndarray:
        """Entries of −∇² log p at points (n, dim).

        Returns
        -------
        ndarray, shape (n, nnz + k)
            In the order of the pattern, then the weights of the rows.
        """
        self.evaluations.curvatures += len(points)
        with np.errstate(all="ignore"):
            if isinstance(self._curvature, Curvature):
                return self._curvature.entries(points)
            return np.stack([self._curvature(point).data for point in points])


def _untransformed(density: ModelDensity) -> np.ndarray:
    """Which elements of the flat vector (dim,) belong to variables without a transform."""
    found = np.zeros(density.dim, bool)
    model = density.model
    for value, slot in zip(model.value_vars, density.slots, strict=True):
        found[slot.slice] = model.rvs_to_transforms[model.values_to_rvs[value]] is None
    return found
