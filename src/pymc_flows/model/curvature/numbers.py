"""From relations of Ops and derivatives of regions to Jacobians."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytensor.tensor as pt
from pytensor.graph.basic import Apply, Variable
from pytensor.tensor.variable import TensorVariable

from pymc_flows.model.curvature.jacobians import Matrix, Numbers, Taken, jacobian
from pymc_flows.model.curvature.regions import Coefficient, Cut, Region
from pymc_flows.model.structure.graph import Facts
from pymc_flows.model.structure.relations import relations
from pymc_flows.model.structure.rows import Blocks, Coefficients, Ints, Part, Relation, Rows, spread
from pymc_flows.support.compat import Max, Min


class Slots:
    """Arrays that are computed at each point, by position."""

    def __init__(self) -> None:
        self.outputs: dict[TensorVariable, int] = {}

    def add(self, var: TensorVariable) -> int:
        """Return the slot of an array."""
        return self.outputs.setdefault(var, len(self.outputs))


class Jacobians:
    """Jacobians of the variables of a graph in regions, made in topological order.

    Parameters
    ----------
    graph : Cut
    inputs : mapping of Variable to Rows
        Jacobians of what varies.
    known : Facts
    slots : Slots
    n_columns : int
    """

    def __init__(
        self,
        graph: Cut,
        inputs: Mapping[Variable, Rows[Matrix]],
        known: Facts,
        slots: Slots,
        n_columns: int,
    ):
        self._graph, self._known, self._slots = graph, known, slots
        self._n_columns = n_columns
        self._live = {*inputs, *(v for node in graph.nodes for v in node.outputs)}
        self._found = dict(inputs)
        self._scaled: dict[Variable, Taken] = {}
        self.matrices: list[Matrix] = []

    def __getitem__(self, var: Variable) -> Rows[Matrix]:
        if var not in self._found:
            self._set(var, [self._scaled[var]])
        return self._found[var]

    def of_region(self, region: Region, first: Sequence[TensorVariable | None]) -> None:
        """Linearise a region, whose leaves are known."""
        shape = self._known.shapes[region.output]
        taken = []
        for leaf, derivative in zip(region.leaves, first, strict=True):
            if derivative is not None:
                numbers = Numbers(self._slots.add(derivative))
                part = Part(self[leaf], spread(self._known.shapes[leaf], shape))
                taken.append(Taken(part, numbers))
        self._set(region.output, taken)

    def of_linear(self, node: Apply, given: Mapping[int, Coefficient]) -> None:
        """An elementwise node that is linear."""
        [output] = node.outputs
        shape = self._known.shapes[output]
        taken = []
        for i, coefficient in given.items():
            var = node.inputs[i]
            part = Part(self[var], spread(self._known.shapes[var], shape))
            taken.append(Taken(part, self._numbers(coefficient, shape)))
        if len(taken) == 1:  # a sum of it needs no matrix of the products
            self._scaled[output] = taken[0]
        else:
            self._set(output, taken)

    def of_node(self, node: Apply) -> None:
        """A node that moves or sums elements, or multiplies them by a matrix."""
        for k, output in enumerate(node.outputs):
            found = relations(node, k, self._known, self._live)
            factors: Coefficients | None = None
            if isinstance(found, Blocks):  # a maximum: the element that it is
                given = found.inputs
                factors = Coefficients(is_extreme(node), given[0].indices if given[0] else None)
            else:
                given = found
            taken = [
                self._taken(var, relation, factors or relation.coefficients)
                for var, relation in zip(node.inputs, given, strict=True)
                if relation is not None and var in self._live
            ]
            self._set(output, taken)

    def _taken(self, var: Variable, relation: Relation, factors: Coefficients | None) -> Taken:
        scaled = self._scaled.get(var)
        if factors is not None or scaled is None or scaled.part.indptr is not None:
            part = Part(self[var], relation.indices, relation.indptr)
            return Taken(part, self._of_factors(factors))
        part = Part(scaled.part.rows, scaled.part.indices[relation.indices], relation.indptr)
        return Taken(part, scaled.numbers and scaled.numbers.picked(relation.indices))

    def _set(self, output: Variable, taken: Sequence[Taken]) -> None:
        rows = jacobian(taken, self._known.size(output), self._n_columns)
        self._found[output] = rows
        if rows.matrix.steps and rows.matrix not in self.matrices:
            self.matrices.append(rows.matrix)

    def _of_factors(self, factors: Coefficients | None) -> Numbers | None:
        if factors is None:
            return None
        if isinstance(factors.source, Variable):
            return Numbers(self._slots.add(factors.source), factors.index)
        return Numbers(factors.source, factors.index)

    def _numbers(self, coefficient: Coefficient, shape: tuple[int, ...]) -> Numbers | None:
        if isinstance(coefficient, float):
            if coefficient == 1.0:
                return None
            n = int(np.prod(shape))
            return Numbers(np.full(1, coefficient), np.zeros(n, np.intp))
        fixed = self._known.values.get(coefficient)
        own = self._known.shapes[coefficient] if fixed is None else np.shape(fixed)
        own = (1,) * (len(shape) - len(own)) + tuple(own)
        index: Ints = spread(own, shape)
        if fixed is not None and coefficient in self._known.fixed:
            return Numbers(np.asarray(fixed, dtype=float).ravel(), index)
        return Numbers(self._slots.add(coefficient), index)


def is_extreme(node: Apply) -> TensorVariable:
    """Which elements are the maximum (minimum) that they are reduced to; ties count in full."""
    [x], op = node.inputs, node.op
    axis = tuple(range(x.ndim)) if op.axis is None else op.axis
    return pt.cast(pt.eq(x, pt.expand_dims(node.outputs[0], axis)), x.dtype)


def covers(node: Apply, found: object) -> bool:
    """Whether a node's derivative is known, given what is known of its relations."""
    return not isinstance(found, Blocks) or isinstance(node.op, Max | Min)
