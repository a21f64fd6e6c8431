"""The log density of a model, split into hyperparameters and the field given them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property

import numpy as np
import scipy
from pymc.distributions.transforms import CholeskyCovPacked, log
from pytensor.graph.replace import graph_replace

from pymc_flows.errors import FitError
from pymc_flows.field.gradient import Gradient, batched_gradient
from pymc_flows.field.shared import SharedDensity
from pymc_flows.model.curvature import Curvature, curvature_of
from pymc_flows.model.logp import ModelDensity
from pymc_flows.model.replacements import DataValues
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
    scales : ndarray of bool, shape (n_hyper,), optional
        Which hyperparameters are logarithms of positive ones. By default none.
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
        scales: np.ndarray | None = None,
        sizes: tuple[int, int] | None = None,
    ):
        self.hyper = np.asarray(structure.hyperparameters, dtype=int)
        self.field = np.asarray(structure.field, dtype=int)
        self.groups = np.asarray(structure.groups, dtype=int)
        self.n_groups = int(self.groups.max(initial=-1)) + 1
        self.start = np.asarray(start, dtype=float)
        self.dim, self.n_hyper, self.n_field = len(self.start), len(self.hyper), len(self.field)
        self.locations = np.zeros(len(self.hyper), bool) if locations is None else locations
        self.scales = np.zeros(len(self.hyper), bool) if scales is None else scales
        self.sizes = sizes or (len(self.start), len(self.start))
        self.evaluations = Evaluations()
        self._gradient, self._curvature, self._grouped = gradient, curvature, grouped
        self._made_from: tuple[ModelDensity, Structure, DataValues] | None = None

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
        plain, logs = _kinds(density)
        found = cls(
            structure,
            gradient,
            curvature,
            grouped,
            density.start() if start is None else start,
            plain[structure.hyperparameters],
            logs[structure.hyperparameters],
            (len(structure.factors.index), curvature.pattern.nnz),
        )
        found._made_from = density, structure, DataValues(density.named_terms.values())
        return found

    def _keep_data(self) -> None:
        """Go on with the data that it was made for where the model has got others since.

        Raises
        ------
        FitError
            If the curvature has another pattern with them as constants.
        """
        if self._made_from is None or not self._made_from[2].changed:
            return
        density, structure, data = self._made_from
        factors, constants = structure.factors, data.constants()
        outputs, checks = (
            tuple(graph_replace(list(graphs), constants, strict=False))
            for graphs in (factors.outputs, factors.checks)
        )
        factors = replace(factors, outputs=outputs, checks=checks)
        fixed = Posterior.of(
            density.replaced(constants), replace(structure, factors=factors), self.start
        )
        if (self.pattern != fixed.pattern).nnz:
            raise FitError(
                f"the data {', '.join(data.changed)} have changed since the fit, and the curvature "
                "of the field cannot be computed without them\n"
                "Draw before pm.set_data, or give the model its data back."
            )
        self._gradient, self._curvature = fixed._gradient, fixed._curvature
        self._grouped, self._made_from = fixed._grouped, None

    @property
    def factor_products(self) -> int:
        """Multiplications of a factor of the separator, which is dense."""
        return int(np.count_nonzero(self.groups < 0)) ** 3 // 3

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
        self._keep_data()
        self.evaluations.gradients += len(points)
        with np.errstate(all="ignore"):
            return self._gradient(points)

    def by_group(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Log density in parts, in nats: of no group (n,), and of each group (n, n_groups)."""
        self._keep_data()
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
        self._keep_data()
        self.evaluations.curvatures += len(points)
        with np.errstate(all="ignore"):
            if isinstance(self._curvature, Curvature):
                return self._curvature.entries(points)
            return np.stack([self._curvature(point).data for point in points])


def _kinds(density: ModelDensity) -> tuple[np.ndarray, np.ndarray]:
    """Which elements of the flat vector (dim,) have no transform, and which are logarithms.

    Of a packed Cholesky factor, those below the diagonal and those on it.
    """
    model = density.model
    plain, logs = np.zeros(density.dim, bool), np.zeros(density.dim, bool)
    for value, slot in zip(model.value_vars, density.slots, strict=True):
        transform = model.rvs_to_transforms[model.values_to_rvs[value]]
        plain[slot.slice], logs[slot.slice] = transform is None, isinstance(transform, type(log))
        if isinstance(transform, CholeskyCovPacked):
            diagonal = np.cumsum(np.arange(1, slot.shape[-1] + 1))
            part = np.zeros(slot.shape, bool)
            part[..., diagonal[diagonal <= slot.shape[-1]] - 1] = True
            plain[slot.slice], logs[slot.slice] = ~part.ravel(), part.ravel()
    return plain, logs
