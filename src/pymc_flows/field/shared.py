"""Log densities of points with equal hyperparameters, where these cause most of the work.

The covariance of a latent Gaussian process with n values is factored in n³/3 multiplications for
each value of the hyperparameters; each point of the field given them takes n² more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.graph.basic import Variable
from pytensor.graph.replace import graph_replace
from pytensor.graph.traversal import toposort
from pytensor.tensor.variable import TensorVariable

from pymc_flows.backends.functions import function_of
from pymc_flows.backends.modes import NUMPY, no_compiler
from pymc_flows.model.batching import Batch, vectorized
from pymc_flows.model.logp import ModelDensity
from pymc_flows.support.compat import Blockwise

# A matrix that hyperparameters alone determine is costly from this many elements on.
LARGE = 2_500
# Bytes that are held at once, and arrays of the size of the points among them.
BYTES, COPIES = 200e6, 12


class SharedDensity:
    """A log density and its gradient, evaluated at once for points with equal hyperparameters.

    Parameters
    ----------
    density : ModelDensity
    hyper : ndarray of int
        Flat indices of the hyperparameters.
    """

    def __init__(self, density: ModelDensity, hyper: np.ndarray):
        self._density = density
        self._is_hyper = np.zeros(density.dim, bool)
        self._is_hyper[hyper] = True
        self._functions: dict[bool, Callable[..., Any]] = {}

    @cached_property
    def pays(self) -> bool:
        """Whether hyperparameters alone determine a large matrix of linear algebra."""
        fixed, field = self._values
        rows = self._density.unpack(_points(self._density))
        if not (fixed and field) or isinstance(self._vectorized(rows), str):
            return False
        seen = {*fixed, *field}
        for node in toposort(self._density.terms):
            inputs = seen.intersection(node.inputs)
            if not inputs:
                continue
            seen.update(node.outputs)
            if inputs <= fixed:
                fixed.update(node.outputs)
                large = any(_size(out) >= LARGE for out in node.outputs)
                if isinstance(node.op, Blockwise) and large:
                    return True
        return False

    def as_one_group(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The log density at points (n, dim), in the parts of a field that is one group.

        Returns
        -------
        shared : ndarray, shape (n,)
            Zeros.
        by_group : ndarray, shape (n, 1)
            The log density, in nats.
        """
        found = np.empty((len(points), 1))
        for rows, [value] in self._evaluated(points, grad=False):
            found[rows, 0] = value
        return np.zeros(len(points)), found

    def __call__(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Log density (n,) and its gradient (n, dim) at points (n, dim), in nats.

        Points with equal hyperparameters all get the mean of their gradients with respect to
        these.
        """
        values, gradients = np.empty(len(points)), np.empty(points.shape)
        for rows, (value, field, hyper) in self._evaluated(points, grad=True):
            values[rows] = value
            gradients[rows] = np.where(self._is_hyper, hyper / len(rows), field)
        return values, gradients

    def _evaluated(self, points: np.ndarray, *, grad: bool) -> Iterator[tuple[np.ndarray, Any]]:
        """Yield indices of points with equal hyperparameters, and the results for these."""
        if grad not in self._functions:
            self._functions[grad] = self._compile(grad=grad)
        for rows in self._runs(points):
            some = points[rows].astype(pytensor.config.floatX)
            yield rows, self._functions[grad](some[0], some)

    def _runs(self, points: np.ndarray) -> list[np.ndarray]:
        """Indices of points with equal hyperparameters, no more at once than memory allows."""
        _, index = np.unique(points[:, self._is_hyper], axis=0, return_inverse=True)
        index = index.ravel()  # a column in NumPy 2.0
        order = np.argsort(index, kind="stable")
        most = max(1, int(BYTES // (8 * COPIES * points.shape[1])))
        runs = np.split(order, np.flatnonzero(np.diff(index[order])) + 1)
        return [run[i : i + most] for run in runs for i in range(0, len(run), most)]

    @property
    def _values(self) -> tuple[set[Variable], set[Variable]]:
        """Value variables of hyperparameters and of the field; none if one contains both."""
        density = self._density
        fixed: set[Variable] = set()
        field: set[Variable] = set()
        for value, slot in zip(density.values, density.slots, strict=True):
            chosen = self._is_hyper[slot.slice]
            if chosen.any() and not chosen.all():
                return set(), set()
            (fixed if chosen.all() else field).add(value)
        return fixed, field

    def _vectorized(self, rows: Mapping[Variable, Variable]) -> Batch | str:
        """The log density of many fields at once, or why it does not vectorise."""
        _, field = self._values
        terms = self._density.terms
        return vectorized(terms, {v: rows[v] for v in field}, "the log density")

    def _compile(self, *, grad: bool) -> Callable[..., Any]:
        density = self._density
        first = pt.vector("first", shape=(density.dim,), dtype=pytensor.config.floatX)
        points = _points(density)
        with no_compiler():
            found = self._vectorized(density.unpack(points))
            if isinstance(found, str):
                raise RuntimeError(f"the log density vectorises no longer: {found}")
            fixed, _ = self._values
            one = {v: x for v, x in density.unpack(first).items() if v in fixed}
            terms = graph_replace(found.outputs, one, strict=False)
            total = sum(pt.broadcast_to(term, (points.shape[0],)) for term in terms)
            outputs = [total]
            if grad:
                outputs += pytensor.grad(total.sum(), [points, first], disconnected_inputs="ignore")
            return function_of([first, points], outputs, mode=NUMPY)


def _points(density: ModelDensity) -> TensorVariable:
    return pt.matrix("points", shape=(None, density.dim), dtype=pytensor.config.floatX)


def _size(variable: Variable) -> int:
    """Number of elements, as far as the graph knows it."""
    shape = getattr(variable.type, "shape", ())
    return int(np.prod([n or 0 for n in shape]))
