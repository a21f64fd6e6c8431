"""A graph cut into elementwise regions and the linear Ops between them.

A region is one function f(u₁, …, u_k) of its leaves, element by element, so that its second
derivatives are arrays of the shape of its output.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import pytensor
import pytensor.tensor as pt
from pytensor import scalar as ps
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.replace import clone_replace
from pytensor.tensor.variable import TensorVariable

from pymc_flows.model.curvature.expand import live_nodes
from pymc_flows.model.structure.graph import Facts, is_elementwise, live_variables
from pymc_flows.support.compat import Elemwise

type Coefficient = float | TensorVariable
"""A number, or an array that broadcasts to the output."""


@dataclass(frozen=True)
class Region:
    """An elementwise function of leaves.

    Parameters
    ----------
    output : TensorVariable
    leaves : tuple of TensorVariable
        The varying arrays that it is computed from; they broadcast to the output.
    """

    output: TensorVariable
    leaves: tuple[TensorVariable, ...]

    def derivatives(
        self, shape: tuple[int, ...]
    ) -> tuple[list[TensorVariable | None], dict[tuple[int, int], TensorVariable]]:
        """First and second derivatives of the output, of a shape, by the leaves, elementwise.

        Returns
        -------
        first : list of TensorVariable or None
            Arrays of the output's shape.
        second : dict of (int, int) to TensorVariable
            For leaves i ≤ j, where there is one.
        """
        output = self.output
        free = [output.type.clone(dtype=leaf.dtype, shape=shape)() for leaf in self.leaves]
        wide = [
            leaf if leaf.type.broadcastable == output.type.broadcastable else pt.alloc(leaf, *shape)
            for leaf in self.leaves
        ]
        [f] = clone_replace(
            [output], dict(zip(self.leaves, free, strict=True)), rebuild_strict=False
        )
        first = _gradient(f, free)
        second: dict[tuple[int, int], TensorVariable] = {}
        for i, g in enumerate(first):
            if g is not None:
                for j, h in enumerate(_gradient(g, free[i:]), i):
                    if h is not None:
                        second[i, j] = h
        back = dict(zip(free, wide, strict=True))
        found = [*(g for g in first if g is not None), *second.values()]
        placed = iter(clone_replace(found, back, rebuild_strict=False) if found else [])
        by_leaf = [None if g is None else next(placed) for g in first]
        return by_leaf, {pair: next(placed) for pair in second}


def _gradient(f: TensorVariable, wrt: Sequence[TensorVariable]) -> list[TensorVariable | None]:
    found: list[TensorVariable | None] = pytensor.grad(
        f.sum(), list(wrt), disconnected_inputs="ignore", return_disconnected="none"
    )
    return found


@dataclass(frozen=True)
class Cut:
    """A graph in regions.

    Parameters
    ----------
    regions : dict of TensorVariable to Region
        By output, in topological order. The output of one may be a leaf of another.
    nodes : list of Apply
        All nodes that derivatives pass through, in topological order.
    linear : dict of Apply to dict
        Elementwise nodes between the regions, with their `coefficients`.
    """

    regions: dict[TensorVariable, Region]
    nodes: list[Apply]
    linear: dict[Apply, dict[int, Coefficient]]


def cut(outputs: Sequence[TensorVariable], inputs: Collection[Variable], known: Facts) -> Cut:
    """Cut the graph of terms into regions.

    Parameters
    ----------
    outputs : sequence of TensorVariable
        Terms, all of whose live nodes are elementwise or linear.
    inputs : collection of Variable
        Variables that vary.
    known : Facts
        Facts about these graphs, or more.
    """
    nodes = live_nodes(outputs, inputs)
    live = live_variables(nodes, inputs)
    inner: set[Variable] = set()
    sinks: dict[Variable, None] = {}
    linear: dict[Apply, dict[int, Coefficient]] = {}
    for node in nodes:
        given = [v for v in node.inputs if v in live]
        if not is_elementwise(node):
            sinks.update(dict.fromkeys(v for v in given if v in inner))
            continue
        size = known.size(node.outputs[0])
        sinks.update(dict.fromkeys(v for v in given if v in inner and known.size(v) != size))
        found = coefficients(node, live)
        if found is None or any(v in inner and v not in sinks for v in given):
            inner.update(node.outputs)
        else:
            linear[node] = found
    _absorb(nodes, linear, inner, set(outputs), live, known)
    sinks.update(dict.fromkeys(v for v in outputs if v in inner))
    order = [v for node in nodes for v in node.outputs if v in sinks]
    regions = {v: Region(v, _leaves(v, live, inner, sinks)) for v in order}
    return Cut(regions, nodes, linear)


def _absorb(
    nodes: Sequence[Apply],
    linear: dict[Apply, dict[int, Coefficient]],
    inner: set[Variable],
    outputs: set[TensorVariable],
    live: set[Variable],
    known: Facts,
) -> None:
    """Move nodes that only scale or shift one leaf of a region into the region."""
    clients: dict[Variable, list[Apply]] = {}
    for node in nodes:
        for v in node.inputs:
            clients.setdefault(v, []).append(node)
    for node in reversed(nodes):
        out = node.outputs[0]
        if node not in linear or out in outputs:
            continue
        size = known.size(out)
        joins_all = all(
            is_elementwise(user) and user not in linear and known.size(user.outputs[0]) == size
            for user in clients.get(out, ())
        )
        if joins_all and [known.size(v) for v in node.inputs if v in live] == [size]:
            del linear[node]
            inner.add(out)


def _leaves(
    output: Variable, live: set[Variable], inner: set[Variable], sinks: dict[Variable, None]
) -> tuple[TensorVariable, ...]:
    found: dict[Variable, None] = {}
    seen = {output}
    todo = [output]
    while todo:
        for v in todo.pop().owner.inputs:
            if v not in live or v in seen:
                continue
            seen.add(v)
            if v in inner and v not in sinks:
                todo.append(v)
            else:
                found[v] = None
    return tuple(found)


def coefficients(node: Apply, live: set[Variable]) -> dict[int, Coefficient] | None:
    """Factors by which an elementwise Op multiplies its varying inputs, by position.

    The result is None if the Op is not linear in them.
    """
    if not isinstance(node.op, Elemwise):
        return None
    op, given = node.op.scalar_op, node.inputs
    on = [i for i, v in enumerate(given) if v in live]
    if isinstance(op, ps.Add | ps.Identity | ps.Cast):
        return dict.fromkeys(on, 1.0)
    if isinstance(op, ps.Sub):
        return {i: 1.0 if i == 0 else -1.0 for i in on}
    if isinstance(op, ps.Neg):
        return {0: -1.0}
    if isinstance(op, ps.Second):
        return {1: 1.0} if 1 in on else None
    if isinstance(op, ps.Mul) and len(on) == 1:
        others = [v for i, v in enumerate(given) if i != on[0]]
        return {on[0]: pt.mul(*others) if len(others) > 1 else others[0]}
    if isinstance(op, ps.TrueDiv) and on == [0]:
        return {0: 1 / given[1]}
    if isinstance(op, ps.Switch):  # the condition has no derivative, even if it varies
        sides = {1: pt.switch(given[0], 1.0, 0.0), 2: pt.switch(given[0], 0.0, 1.0)}
        return {i: sides[i] for i in on if i > 0}
    return None
