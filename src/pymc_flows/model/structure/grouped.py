"""Log densities at many points, summed by group: `GroupedDensity`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pytensor
import pytensor.tensor as pt
import scipy
from pytensor.graph.replace import vectorize_graph
from pytensor.graph.traversal import ancestors
from pytensor.tensor.variable import TensorVariable

from pymc_flows.backends.functions import function_of
from pymc_flows.backends.graphs import join_batches
from pymc_flows.backends.modes import NUMPY, no_compiler
from pymc_flows.errors import ArgumentError
from pymc_flows.model.examine import plan_draws
from pymc_flows.model.logp import ModelDensity
from pymc_flows.model.structure.result import Structure
from pymc_flows.model.structure.rows import Floats

# Factors, times points, that are evaluated at once: 2 MB for each array of the log density, so that
# arrays stay in the caches of the processor.
_MAX_VALUES = 250_000


class GroupedDensity:
    """The log density of a model as a sum over the groups of its structure.

    Each factor belongs to the group whose elements it sees, and to none if it sees only
    hyperparameters and the separator. Given these, the posterior is a product over groups.

    Parameters
    ----------
    density : ModelDensity
    structure : Structure
        Of the same model.

    Attributes
    ----------
    n_evaluations : int
        Number of points evaluated so far.
    """

    def __init__(self, density: ModelDensity, structure: Structure):
        self._density, self._structure = density, structure
        self.n_evaluations = 0
        self._n_rows = 0  # not known yet

    def __call__(self, points: npt.ArrayLike) -> tuple[Floats, Floats]:
        """Sum the factors at points (n, dim) of the unconstrained space.

        Returns
        -------
        shared : ndarray, shape (n,)
            Sum of the factors that belong to no group, in nats. It is −∞ where the density is zero
            because a parameter or a value is out of range; the groups have 0 there.
        by_group : ndarray, shape (n, n_groups)
            Sums of the factors of groups, in nats.

        Raises
        ------
        ArgumentError
            If points have another shape.
        """
        z = np.asarray(points, dtype=pytensor.config.floatX)
        if z.ndim != 2 or z.shape[1] != self._density.dim:
            raise ArgumentError(f"expected points of shape (n, {self._density.dim}), got {z.shape}")
        self.n_evaluations += len(z)
        total = np.zeros((self._structure.n_groups + 1, len(z)))
        if self._n_rows == 0 and len(z):
            self._n_rows = self._choose_rows(z[0].astype(pytensor.config.floatX))
        for begin in range(0, len(z), max(1, self._n_rows)):
            rows = z[begin : begin + self._n_rows]
            total[:, begin : begin + len(rows)] = self._sums(rows)
        return total[-1], total[:-1].T

    def _choose_rows(self, near: Floats) -> int:
        """Number of points at once, which is 1 if they do not vectorise; tried near a point."""
        plan = plan_draws(self._density, 64, near, "numba")
        if plan.micro_batch is None:
            return 1
        return max(1, _MAX_VALUES // max(1, len(self._structure.factors.index)))

    @cached_property
    def _members(self) -> list[scipy.sparse.csr_array]:
        """For each array of factors, a matrix that sums its elements by group; no group last."""
        n = self._structure.n_groups
        groups = np.where(self._structure.factor_groups < 0, n, self._structure.factor_groups)
        cuts = np.cumsum(self._structure.factors.sizes)[:-1]
        return [
            scipy.sparse.csr_array(
                (np.ones(len(mine)), (mine, np.arange(len(mine)))), shape=(n + 1, len(mine))
            )
            for mine in np.split(groups, cuts)
        ]

    @cached_property
    def _function(self) -> Callable[..., list[Floats]]:
        density, factors = self._density, self._structure.factors
        used = set(ancestors(list(factors.checks)))
        varying = not used.isdisjoint(density.values)
        valid = [pt.all(c) for c in factors.checks] if varying else []
        outputs: list[TensorVariable] = [*factors.outputs, *valid]
        with no_compiler():
            if self._n_rows == 1:
                inputs: Sequence[Any] = density.values
            else:
                z = pt.matrix("z", shape=(None, density.dim), dtype=pytensor.config.floatX)
                inputs = [z]
                outputs = join_batches(vectorize_graph(outputs, density.unpack(z)))
            return function_of(inputs, outputs, mode=NUMPY)

    def _sums(self, z: Floats) -> Floats:
        """Sums by group (n_groups + 1, n); those of no group come last."""
        arguments = self._density.split(z[0]) if self._n_rows == 1 else [z]
        with np.errstate(all="ignore"):
            found = self._function(*arguments)
        total = np.zeros((self._structure.n_groups + 1, len(z)))
        members = self._members
        for member, values in zip(members, found[: len(members)], strict=True):
            if size := member.shape[1]:
                each = np.broadcast_to(np.reshape(values, (-1, size)), (len(z), size))
                # A product for each point is faster than one with the transposed array.
                total += np.stack([member @ x for x in each.astype(float, copy=False)], axis=1)
        for valid in found[len(members) :]:
            impossible = np.logical_not(np.broadcast_to(valid, len(z)))
            total[:-1, impossible], total[-1, impossible] = 0.0, -np.inf
        return total
