"""Relations of Ops that only move elements: which element of an input each of an output is."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytensor.tensor as pt
from pytensor.graph.basic import Apply

from pymc_flows.model.structure.graph import Facts
from pymc_flows.model.structure.rows import Relation, Relations, positions, spread
from pymc_flows.support.compat import (
    AdvancedIncSubtensor,
    MakeVector,
    unflatten_index_variables,
)


def _run(node: Apply, output: int, first: list[npt.NDArray[Any]], known: Facts) -> Any:
    """Run an Op on index arrays in the place of its first inputs."""
    rest = [known.values[v] for v in node.inputs[len(first) :]]
    new = node.op.make_node(
        *(pt.constant(a) for a in first),
        *(
            v.type.make_constant(a) if hasattr(v.type, "make_constant") else v
            for v, a in zip(node.inputs[len(first) :], rest, strict=True)
        ),
    )
    storage: list[list[Any]] = [[None] for _ in new.outputs]
    new.op.perform(new, [*first, *rest], storage)
    return storage[output][0]


def selection(node: Apply, output: int, known: Facts, live: list[bool]) -> Relations | None:
    """An Op whose elements are all elements of its first input."""
    if not all(v in known.fixed for v in node.inputs[1:]):
        return None
    picked = _run(node, output, [positions(known.shapes[node.inputs[0]])], known)
    rest: list[Relation | None] = [None] * (len(node.inputs) - 1)
    return [Relation(np.asarray(picked, dtype=np.intp).ravel()), *rest]


def identity(node: Apply, output: int, known: Facts, live: list[bool]) -> Relations:
    """An Op that changes the type and no element."""
    return [Relation(positions(known.shapes[node.inputs[0]]).ravel())]


def _from_codes(codes: npt.NDArray[np.intp], sizes: list[int], live: list[bool]) -> Relations:
    """Relations of an output each of whose elements is one of all elements of all inputs."""
    found: list[Relation | None] = []
    begin = 0
    for size, on in zip(sizes, live, strict=True):
        mine = (codes >= begin) & (codes < begin + size)
        indptr = np.concatenate([[0], np.cumsum(mine)])
        found.append(Relation(codes[mine] - begin, indptr) if on else None)
        begin += size
    return found


def join(node: Apply, output: int, known: Facts, live: list[bool]) -> Relations:
    """An Op that puts its inputs beside each other."""
    sizes = [known.size(v) for v in node.inputs]
    starts = np.cumsum([0, *sizes])
    arrays = [
        np.arange(a, b).reshape(known.shapes[v])
        for a, b, v in zip(starts[:-1], starts[1:], node.inputs, strict=True)
    ]
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
    x, y = node.inputs[:2]
    size = known.size(x)
    rest: list[Relation | None] = [None] * (len(node.inputs) - 2)
    places = positions(known.shapes[node.inputs[0]])
    index = tuple(
        np.asarray(i) if np.ndim(i) else i
        for i in unflatten_index_variables(
            [known.values[v] for v in node.inputs[2:]], node.op.idx_list
        )
    )
    target = np.asarray(places[index])
    source = spread(known.shapes[y], target.shape)
    if node.op.set_instead_of_inc:
        codes = places.ravel().copy()
        codes[target.ravel()] = size + source
        found = _from_codes(codes, [size, known.size(y)], live[:2])
        return [*found, *rest] if isinstance(found, list) else found
    order = np.argsort(target.ravel(), kind="stable")
    indptr = np.concatenate([[0], np.cumsum(np.bincount(target.ravel(), minlength=size))])
    return [
        Relation(places.ravel()) if live[0] else None,
        Relation(source[order], indptr) if live[1] else None,
        *rest,
    ]
