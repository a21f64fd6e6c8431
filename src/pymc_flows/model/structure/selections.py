"""Relations of Ops that only move elements: each element of an output is one of an input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytensor.tensor as pt
from pytensor.graph.basic import Apply

from pymc_flows.model.structure.graph import Facts
from pymc_flows.model.structure.rows import (
    Ints,
    Relation,
    Relations,
    indptr_of,
    positions,
    spread,
)
from pymc_flows.support.compat import (
    AdvancedIncSubtensor,
    MakeVector,
    unflatten_index_variables,
)


def selection(node: Apply, output: int, known: Facts, live: list[bool]) -> Relations | None:
    """An Op whose outputs consist of elements of its first input: run it on their positions."""
    first, *others = node.inputs
    if not all(v in known.fixed for v in others):
        return None
    index, rest = positions(known.shapes[first]), [known.values[v] for v in others]
    constants = (
        v.type.make_constant(value) if hasattr(v.type, "make_constant") else v
        for v, value in zip(others, rest, strict=True)
    )
    new = node.op.make_node(pt.constant(index), *constants)
    storage: list[list[Any]] = [[None] for _ in new.outputs]
    new.op.perform(new, [index, *rest], storage)
    picked = np.asarray(storage[output][0], dtype=np.intp).ravel()
    return [Relation(picked), *[None] * len(others)]


def identity(node: Apply, output: int, known: Facts, live: list[bool]) -> Relations:
    """An Op that changes the type and no element."""
    return [Relation(positions(known.shapes[node.inputs[0]]).ravel())]


def _from_codes(codes: Ints, sizes: list[int], live: list[bool]) -> list[Relation | None]:
    """Relations of an output whose elements are elements of its inputs, numbered through."""
    found: list[Relation | None] = []
    begin = 0
    for size, on in zip(sizes, live, strict=True):
        mine = (codes >= begin) & (codes < begin + size)
        found.append(Relation(codes[mine] - begin, indptr_of(mine)) if on else None)
        begin += size
    return found


def join(node: Apply, output: int, known: Facts, live: list[bool]) -> Relations:
    """An Op that puts its inputs beside each other."""
    sizes = [known.size(v) for v in node.inputs]
    starts = np.cumsum([0, *sizes[:-1]])
    arrays = [a + positions(known.shapes[v]) for a, v in zip(starts, node.inputs, strict=True)]
    if isinstance(node.op, MakeVector):
        codes = np.concatenate([a.ravel() for a in arrays])
    else:
        codes = np.concatenate(arrays, axis=node.op.axis).ravel()
    return _from_codes(codes, sizes, live)


def placed(node: Apply, output: int, known: Facts, live: list[bool]) -> Relations | None:
    """An array x after x[index] = y, or x[index] += y."""
    if not all(v in known.fixed for v in node.inputs[2:]):
        return None
    if isinstance(node.op, AdvancedIncSubtensor) and node.op.ignore_duplicates:
        return None
    x, y, *others = node.inputs
    size, places = known.size(x), positions(known.shapes[x])
    index = unflatten_index_variables([known.values[v] for v in others], node.op.idx_list)
    target = np.asarray(places[tuple(np.asarray(i) if np.ndim(i) else i for i in index)])
    source, target = spread(known.shapes[y], target.shape), target.ravel()
    rest: list[Relation | None] = [None] * len(others)
    if node.op.set_instead_of_inc:
        codes = places.ravel().copy()
        codes[target] = size + source
        return [*_from_codes(codes, [size, known.size(y)], live[:2]), *rest]
    order = np.argsort(target, kind="stable")
    indptr = indptr_of(np.bincount(target, minlength=size))
    return [
        Relation(places.ravel()) if live[0] else None,
        Relation(source[order], indptr) if live[1] else None,
        *rest,
    ]
