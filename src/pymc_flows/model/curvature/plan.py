"""The plan of a Hessian, made once for a density: what to evaluate, and where its numbers go."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from threading import Lock
from typing import Any

import numpy as np
import pytensor
import scipy
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Variable
from pytensor.graph.traversal import graph_inputs
from pytensor.tensor.variable import TensorVariable

from pymc_flows.backends.functions import function_of
from pymc_flows.backends.graphs import switch_parameter_checks
from pymc_flows.backends.modes import NUMPY, no_compiler
from pymc_flows.backends.ops import first_line, op_name
from pymc_flows.backends.simplify import simplify
from pymc_flows.backends.stable import stabilize
from pymc_flows.errors import ModelError
from pymc_flows.model.batching import NO_DERIVATIVE, total_of
from pymc_flows.model.curvature.assembly import Assembly, Product
from pymc_flows.model.curvature.batched import LARGE, MOST, Batched
from pymc_flows.model.curvature.coloured import ColouredHessian
from pymc_flows.model.curvature.expand import expanded, live_nodes
from pymc_flows.model.curvature.jacobians import Matrix
from pymc_flows.model.curvature.long_rows import LongRows, LowRankSum, set_apart
from pymc_flows.model.curvature.numbers import Jacobians, Slots, covers
from pymc_flows.model.curvature.regions import Cut, cut
from pymc_flows.model.logp import ModelDensity
from pymc_flows.model.structure.factors import incidence
from pymc_flows.model.structure.graph import (
    Facts,
    Readings,
    dependents,
    facts,
    is_elementwise,
    live_variables,
    prepared,
    values_of,
    why_not_twice,
)
from pymc_flows.model.structure.groups import pattern_of
from pymc_flows.model.structure.relations import relations
from pymc_flows.model.structure.rows import Floats, Ints, Rows, identity, spread, stacked


class Plan:
    """The arrays to evaluate for a Hessian, and the places of their numbers in it."""

    def __init__(self, density: ModelDensity, field: Ints, near: Floats | None):
        self._density, self._field, self._near = density, field, near
        column = np.full(density.dim, -1, dtype=np.intp)
        column[field] = np.arange(len(field))
        pairs = zip(density.values, density.slots, strict=True)
        self._inputs = {v: slot for v, slot in pairs if (column[slot.slice] >= 0).any()}
        self._columns = {
            v: identity(column[slot.slice], len(field)) for v, slot in self._inputs.items()
        }
        self._shared = [
            v
            for v in graph_inputs(list(density.named_terms.values()))
            if isinstance(v, SharedVariable)
        ]
        self._data = self._values_now()
        self._readings = Readings()
        with self._readings.recorded():
            self._make()
        self._functions: dict[bool, Any] = {}
        self._batched: Batched | None = None
        self._at_once: int | None = None
        self._lock = Lock()

    def _make(self) -> None:
        """Find the slots, and the places of their numbers."""
        named = prepared(self._density).terms
        stable = stabilize(list(named.values()))
        terms = dict(zip(named, expanded(stable, self._inputs), strict=True))
        nodes = live_nodes(list(terms.values()), self._inputs)
        live = live_variables(nodes, self._inputs)
        known = facts(self._density, nodes, live, list(terms.values()), self._near)
        self._opaque: dict[str, list[str]] = {}
        covered = []
        for name, term in terms.items():
            if ops := _uncovered(term, self._inputs, known, live):
                self._opaque[name] = ops
            elif term in live:
                covered.append(term)
        slots = Slots()
        try:
            products = self._products(covered, known, slots)
        except NO_DERIVATIVE as error:
            why = why_not_twice(self._density, self._inputs) or first_line(error)
            raise ModelError(f"the log density has no exact curvature: {why}") from error
        extra = self._differences([named[name] for name in self._opaque])
        self.assembly, self.long_rows = _assembled(products, len(self._field), extra)
        self._slots = list(slots.outputs)
        self._places = self.assembly.positions(extra)

    # ------------------------------------------------------------------------------------- making

    def _products(
        self, terms: Sequence[TensorVariable], known: Facts, slots: Slots
    ) -> list[Product]:
        """Products of Jacobians whose sum is the Hessian of the terms."""
        graph = cut(terms, self._inputs, known)
        factors = {c for given in graph.linear.values() for c in given.values()}
        variables = [c for c in factors if isinstance(c, Variable)]
        known = known.joined(values_of(self._density, variables, self._near))
        inputs = {
            v: Rows(rows.index, Matrix(rows.matrix, np.ones(len(rows.matrix.indices))))
            for v, rows in self._columns.items()
        }
        jacobians = Jacobians(graph, inputs, known, slots, len(self._field))
        sinks = list(graph.regions)
        total = total_of([term.sum() for term in terms])
        by_sinks = pytensor.grad(total, sinks, disconnected_inputs="ignore") if sinks else []
        adjoints = dict(zip(sinks, by_sinks, strict=True))
        needed = _needed(graph)
        products: list[Product] = []
        for node in graph.nodes:
            for output in node.outputs:
                region = graph.regions.get(output)
                if region is None:
                    continue
                shape = known.shapes[output]
                first, second = region.derivatives(shape)
                rows: dict[int, Rows[Matrix]] = {}
                for k in {k for pair in second for k in pair}:
                    leaf = region.leaves[k]
                    index = spread(known.shapes[leaf], shape)
                    rows[k] = Rows(jacobians[leaf].index[index], jacobians[leaf].matrix)
                for (i, j), derivative in second.items():
                    weight = adjoints[output] * derivative
                    if all(len(rows[k].matrix.pattern.indices) for k in (i, j)):
                        products.append(Product(rows[i], rows[j], slots.add(weight), i == j))
                if output in needed:
                    jacobians.of_region(region, first)
            if node.outputs[0] in graph.regions or not needed.intersection(node.outputs):
                continue
            if node in graph.linear:
                jacobians.of_linear(node, graph.linear[node])
            elif not is_elementwise(node):
                jacobians.of_node(node)
        self._matrices = jacobians.matrices
        return products

    def _differences(self, terms: Sequence[TensorVariable]) -> Ints:
        """Prepare the differences of other terms, and return the entries of their Hessian."""
        self._coloured: ColouredHessian | None = None
        self.n_gradients = 0
        if not terms:
            return np.zeros(0, dtype=np.intp)
        nodes = dependents(terms, self._inputs)
        known = facts(self._density, nodes, live_variables(nodes, self._inputs), terms, self._near)
        sets, _ = incidence(nodes, self._columns, known)
        joined = stacked([sets[term] for term in terms]).matrix
        self._coloured = ColouredHessian(pattern_of(joined.csr()))
        self.n_gradients = 2 * self._coloured.n_colours
        total = sum(term.sum() for term in terms)
        values = self._density.values
        outputs = pytensor.grad(total, list(self._inputs), disconnected_inputs="ignore")
        self._gradient = function_of(values, outputs, mode=NUMPY)
        return self._coloured.row.astype(np.intp) * len(self._field) + self._coloured.column

    # -------------------------------------------------------------------------------------- using

    @property
    def differenced(self) -> tuple[str, ...]:
        """Terms whose curvature is differenced."""
        return tuple(self._opaque)

    def reason(self) -> str:
        """Say why some terms are differenced, and what that costs."""
        ops = sorted({op for found in self._opaque.values() for op in found})
        return (
            f"The curvature of {', '.join(self._opaque)} is computed by differences, "
            f"{self.n_gradients} gradients each time: no exact one for {', '.join(ops)}."
        )

    def is_current(self) -> bool:
        """Whether the data are those that the plan was made with, or give the same plan."""
        data = self._values_now()
        if all(a is b for a, b in zip(data, self._data, strict=True)):
            return True
        if not self._readings.are_current(self._near):
            return False
        self._data = data
        return True

    def _values_now(self) -> list[Any]:
        return [v.container.storage[0] for v in self._shared]

    def evaluate(self, z: Floats, *, with_grad: bool) -> tuple[float, Floats, list[Floats]]:
        """Log density, gradient (n_field,), empty without ``with_grad``, and slots (1, n) at z."""
        if with_grad not in self._functions:
            self._functions[with_grad] = self._compile(with_grad=with_grad)
        found = self._functions[with_grad](*self._density.split(z))
        n = len(self._inputs) if with_grad else 0
        gradient = self._flat(found[1 : 1 + n]) if with_grad else np.zeros(0)
        slots = [np.asarray(a, float).reshape(1, -1) for a in found[1 + n :]]
        return float(found[0]), gradient, slots

    def evaluate_many(self, points: Floats) -> Iterator[tuple[Floats, list[Floats]]]:
        """Go through points (n, dim), some at a time: these, their log densities and slots."""
        if self._at_once is None and len(points) > 1:  # not known yet
            first = self._parts(points[0])
            if all(np.isfinite(a).all() for a in first):
                self._at_once = self._choose_at_once(points[0], first)
            yield points[:1], first
            points = points[1:]
        rows = self._at_once or 1
        for start in range(0, len(points), rows):
            part = points[start : start + rows]
            if len(part) > 1 and self._batched is not None:
                yield part, self._batched(part)
            else:
                yield part, self._parts(part[0])

    def _parts(self, z: Floats) -> list[Floats]:
        """Log density and slots at z."""
        value, _, slots = self.evaluate(z, with_grad=False)
        return [np.full((1, 1), value), *slots]

    def _choose_at_once(self, z: Floats, parts: Sequence[Floats]) -> int:
        """Choose how many points are evaluated together, by the finite parts at one of them."""
        size = sum(part.size for part in parts)
        if size <= LARGE:
            batched = Batched(self._density, [self._total, *self._slots])
            if batched.exists and batched.agrees(z, parts):
                self._batched = batched
                return max(1, MOST // size)
        return 1

    @cached_property
    def _total(self) -> TensorVariable:
        """The log density of one point."""
        density = self._density
        terms = switch_parameter_checks(
            list(density.named_terms.values()), density.values, keep=density.model.check_bounds
        )
        return sum(term.sum() for term in stabilize(simplify(terms)))

    def _compile(self, *, with_grad: bool) -> Callable[..., list[Floats]]:
        values = self._density.values
        with no_compiler():
            total = self._total
            outputs = [total]
            if with_grad:
                outputs += pytensor.grad(total, list(self._inputs), disconnected_inputs="ignore")
            return function_of(values, [*outputs, *self._slots], mode=NUMPY)

    def _flat(self, arrays: Sequence[Floats]) -> Floats:
        """Gradients by the inputs, joined into the gradient by the field."""
        flat = np.zeros(self._density.dim)
        for slot, array in zip(self._inputs.values(), arrays, strict=True):
            flat[slot.slice] = np.ravel(array)
        return flat[self._field]

    def entries(self, points: Floats, slots: Sequence[Floats]) -> Floats:
        """Entries of the Hessians at points (n, dim), then the weights of long rows."""
        with self._lock:  # fits of several threads may have the same density
            for matrix in self._matrices:
                matrix.update(slots)
            lower = self.assembly.lower(slots, len(points))
        for z, row in zip(points, lower, strict=True):
            if self._coloured is not None:

                def gradient(x: Floats, z: Floats = z) -> Floats:
                    at = z.copy()
                    at[self._field] = x
                    return self._flat(self._gradient(*self._density.split(at)))

                row[self._places] += self._coloured(gradient, z[self._field])
        found = self.assembly.entries(lower)
        if not len(self.long_rows):
            return found
        return np.concatenate([found, self.long_rows.weights(slots, len(points))], axis=1)

    def matrix(self, entries: Floats) -> scipy.sparse.csc_matrix | LowRankSum:
        """The matrix with `entries`."""
        sparse = self.assembly.matrix(entries[: self.assembly.n_entries])
        if not len(self.long_rows):
            return sparse
        return LowRankSum(sparse, self.long_rows.rows, entries[self.assembly.n_entries :])


def _assembled(products: Sequence[Product], n: int, extra: Ints) -> tuple[Assembly, LongRows]:
    """The assembly of products, and the rows that are kept apart from it if that pays."""
    kept, rows = set_apart(products, n)
    if len(rows):
        sparse = Assembly(kept, n, extra)
        if sparse.n_entries < rows.largest:
            return sparse, rows
    return Assembly(products, n, extra), LongRows.none(n)


def _uncovered(
    term: TensorVariable, inputs: Iterable[Variable], known: Facts, live: set[Variable]
) -> list[str]:
    """Names of the Ops of a term whose derivatives are not known."""
    return [
        op_name(node.op)
        for node in live_nodes([term], inputs)
        if not is_elementwise(node) and not covers(node, relations(node, 0, known, live))
    ]


def _needed(graph: Cut) -> set[Variable]:
    """Variables whose Jacobians regions need."""
    needed = {leaf for region in graph.regions.values() for leaf in region.leaves}
    for node in reversed(graph.nodes):
        if node.outputs[0] not in graph.regions and not needed.isdisjoint(node.outputs):
            needed.update(node.inputs)
    return needed
