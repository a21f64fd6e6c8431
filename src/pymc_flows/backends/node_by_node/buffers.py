"""Memory that the nodes of a function share, call after call.

Fresh memory costs more than many operations on it: the system hands out its pages one by one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.fg import FunctionGraph

from pymc_flows.backends.node_by_node.thunks import MEMORY
from pymc_flows.support.compat import (
    AdvancedIncSubtensor,
    Alloc,
    DimShuffle,
    Dot,
    Reshape,
    Subtensor,
)

# Bytes of arrays that are kept: smaller ones are allocated in no time, and larger ones take memory
# that something else may need.
SMALLEST, LARGEST = 2**14, 2**22
# Ops that do not keep their inputs, or hand them on only as their ``view_map`` says.
_READERS = (*MEMORY, AdvancedIncSubtensor, Alloc, DimShuffle, Dot, Reshape, Subtensor)


class Buffer:
    """Memory for results that are never needed at the same time."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)
        self._last: np.ndarray | None = None

    def array(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray | None:
        """An array in row-major order; None if it is too small or too large to be kept."""
        last = self._last
        if last is not None and last.shape == shape and last.dtype == dtype:
            return last
        size = math.prod(shape) * dtype.itemsize
        if not SMALLEST <= size <= LARGEST:
            return None
        if len(self._memory) < size:
            self._memory = np.empty(size, np.uint8)
        self._last = self._memory[:size].view(dtype).reshape(shape)
        return self._last


def share_buffers(fgraph: FunctionGraph, order: Sequence[Apply]) -> dict[Apply, Buffer]:
    """Choose the buffer of each node whose result does not leave the function.

    Parameters
    ----------
    fgraph : FunctionGraph
    order : sequence of Apply
        The nodes in the order in which they run.
    """
    at = {node: i for i, node in enumerate(order)}
    last: dict[Variable, float] = {}
    for node in reversed(order):
        for variable in node.outputs:
            last[variable] = max(
                (_last_use(client, i, at, last) for client, i in fgraph.clients[variable]),
                default=at[node],
            )
    found: dict[Apply, Buffer] = {}
    free: list[Buffer] = []
    used: list[tuple[float, Buffer]] = []
    for i, node in enumerate(order):
        free += [buffer for end, buffer in used if end < i]
        used = [(end, buffer) for end, buffer in used if end >= i]
        if not isinstance(node.op, MEMORY) or math.isinf(last[node.outputs[0]]):
            continue
        found[node] = free.pop() if free else Buffer()
        used.append((last[node.outputs[0]], found[node]))
    return found


def _last_use(client: Apply, i: int, at: dict[Apply, int], last: dict[Variable, float]) -> float:
    """When a node, or what is a view of its result, last reads its input i; ∞ if not known."""
    if client not in at or not isinstance(client.op, _READERS):
        return math.inf
    if any(i in inputs for inputs in client.op.destroy_map.values()):
        return math.inf
    ends: list[float] = [at[client]]
    for output, inputs in client.op.view_map.items():
        if i in inputs:
            ends.append(last[client.outputs[output]])
    return max(ends)
