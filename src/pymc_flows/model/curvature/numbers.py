"""Jacobians, made from relations of Ops and derivatives of regions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytensor.tensor as pt
from pytensor.graph.basic import Apply, Variable
from pytensor.tensor.variable import TensorVariable

from pymc_flows.model.curvature.jacobians import Matrix, Numbers, Taken, jacobian
from pymc_flows.model.curvature.regions import Coefficient, Cut, Region
from pymc_flows.model.structure.graph import Facts, live_variables
from pymc_flows.model.structure.relations import relations
from pymc_flows.model.structure.rows import (
    Blocks,
    Coefficients,
    Part,
    Relation,
    Relations,
    Rows,
    spread,
)
from pymc_flows.support.compat import Max, Min


class Slots:
    """Numbers the arrays that are computed at each point."""

    def __init__(self) -> None:
        self.outputs: dict[TensorVariable, int] = {}

    def add(self, var: TensorVariable) -> int:
        """Return the number of an array, a new one if it has none."""
        return self.outputs.setdefault(var, len(self.outputs))


class Jacobians:
    """Jacobians of the variables of a graph in regions, made in topological order.

    Parameters
    ----------
    graph : Cut
    inputs : mapping of Variable to Rows
        Jacobians of the variables that vary.
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
        self._live = live_variables(graph.nodes, inputs)
        self._found = dict(inputs)
        self._scaled: dict[Variable, Taken] = {}
        self.matrices: list[Matrix] = []

    def __getitem__(self, var: Variable) -> Rows[Matrix]:
        if var not in self._found:
            self._set(var, [self._scaled[var]])
        return self._found[var]

    def of_region(self, region: Region, first: Sequence[TensorVariable | None]) -> None:
        """Make the Jacobian of a region from those of its leaves and its first derivatives."""
        shape = self._known.shapes[region.output]
        taken = []
        for leaf, derivative in zip(region.leaves, first, strict=True):
            if derivative is not None:
                numbers = Numbers(self._slots.add(derivative))
                part = Part(self[leaf], spread(self._known.shapes[leaf], shape))
                taken.append(Taken(part, numbers))
        self._set(region.output, taken)

    def of_linear(self, node: Apply, given: Mapping[int, Coefficient]) -> None:
        """Make the Jacobian of an elementwise node that is linear."""
        [output] = node.outputs
        shape = self._known.shapes[output]
        taken = []
        for i, coefficient in given.items():
            var = node.inputs[i]
            part = Part(self[var], spread(self._known.shapes[var], shape))
            taken.append(Taken(part, self._numbers(coefficient, shape)))
        if len(taken) == 1:  # a sum of its elements needs no matrix of the products
            self._scaled[output] = taken[0]
        else:
            self._set(output, taken)

    def of_node(self, node: Apply) -> None:
        """Make the Jacobian of a node that moves, sums or multiplies elements."""
        for k, output in enumerate(node.outputs):
            found = relations(node, k, self._known, self._live)
            if isinstance(found, Blocks):  # a maximum: the derivative is 1 by the largest element
                found = [
                    relation and replace(relation, coefficients=_of_extreme(node, relation))
                    for relation in found.inputs
                ]
            taken = [
                self._taken(var, relation)
                for var, relation in zip(node.inputs, found, strict=True)
                if relation is not None and var in self._live
            ]
            self._set(output, taken)

    def _taken(self, var: Variable, relation: Relation) -> Taken:
        scaled, factors = self._scaled.get(var), relation.coefficients
        if factors is None and scaled is not None:
            part = Part(scaled.part.rows, scaled.part.indices[relation.indices], relation.indptr)
            return Taken(part, scaled.numbers and scaled.numbers.picked(relation.indices))
        part = Part(self[var], relation.indices, relation.indptr)
        if factors is None:
            return Taken(part, None)
        source = factors.source
        number = self._slots.add(source) if isinstance(source, Variable) else source
        return Taken(part, Numbers(number, factors.index))

    def _set(self, output: Variable, taken: Sequence[Taken]) -> None:
        rows = jacobian(taken, self._known.size(output), self._n_columns)
        self._found[output] = rows
        if rows.matrix.steps and rows.matrix not in self.matrices:
            self.matrices.append(rows.matrix)

    def _numbers(self, coefficient: Coefficient, shape: tuple[int, ...]) -> Numbers | None:
        if isinstance(coefficient, float):
            if coefficient == 1.0:
                return None
            n = int(np.prod(shape))
            return Numbers(np.full(1, coefficient), np.zeros(n, np.intp))
        value = self._known.values[coefficient]
        index = spread((1,) * (len(shape) - np.ndim(value)) + np.shape(value), shape)
        if coefficient in self._known.fixed:
            return Numbers(np.asarray(value, dtype=float).ravel(), index)
        return Numbers(self._slots.add(coefficient), index)


def _of_extreme(node: Apply, relation: Relation) -> Coefficients:
    """1 for the elements that are the maximum or minimum, else 0; ties count in full."""
    [x], op = node.inputs, node.op
    axis = tuple(range(x.ndim)) if op.axis is None else op.axis
    is_extreme = pt.eq(x, pt.expand_dims(node.outputs[0], axis))
    return Coefficients(pt.cast(is_extreme, x.dtype), relation.indices)


def covers(node: Apply, found: Relations) -> bool:
    """Whether the derivatives of a node with such relations are known."""
    return not isinstance(found, Blocks) or isinstance(node.op, Max | Min)
