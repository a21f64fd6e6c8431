"""The Ops of a loop over tiles: the places of tiles, and a tile of an array.

All tiles have one length, as JAX needs it. The last one overlaps the one before it, and does not
count the rows of that one again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytensor.tensor as pt
from pytensor.graph.basic import Apply
from pytensor.graph.op import Op

from pymc_flows.backends.dispatch import on_first_use, source_key


def bounds(n: int, length: int) -> np.ndarray:
    """Tiles of n rows (tiles, 3): where each begins, and the range of its rows that count."""
    found = np.empty(((n + length - 1) // length, 3), np.int64)
    for i in range(len(found)):
        begin = min(i * length, max(n - length, 0))
        found[i, 0] = begin
        found[i, 1] = i * length - begin
        found[i, 2] = min(length, n - begin)
    return found


class TileBounds(Op):
    """`bounds` of the tiles of an array.

    Parameters
    ----------
    length : int
        Rows of a tile.
    axis : int
        Axis of the rows.
    """

    __props__ = ("length", "axis")

    def __init__(self, length: int, axis: int):
        self.length = length
        self.axis = axis

    def make_node(self, x: Any) -> Apply:
        """Return a node with three integers for each tile."""
        x = pt.as_tensor_variable(x)
        n = x.type.shape[self.axis]
        n_tiles = None if n is None else len(bounds(n, self.length))
        return Apply(self, [x], [pt.tensor(dtype="int64", shape=(n_tiles, 3))])

    def perform(self, node: Apply, inputs: Sequence[Any], output_storage: Any) -> None:
        """Compute the bounds in NumPy."""
        output_storage[0][0] = bounds(inputs[0].shape[self.axis], self.length)


class TakeTile(Op):
    """The tile of an array (…, n, …) that begins at a row; the last row repeats to fill it.

    Parameters
    ----------
    length : int
    axis : int
    """

    __props__ = ("length", "axis")
    view_map = {0: [0]}  # noqa: RUF012 - the name and kind that PyTensor reads

    def __init__(self, length: int, axis: int):
        self.length = length
        self.axis = axis

    def make_node(self, x: Any, begin: Any) -> Apply:
        """Return a node with an array of known length."""
        x, begin = pt.as_tensor_variable(x), pt.as_tensor_variable(begin)
        shape = list(x.type.shape)
        shape[self.axis] = self.length
        return Apply(self, [x, begin], [pt.tensor(dtype=x.dtype, shape=shape)])

    def infer_shape(self, node: Apply, shapes: Sequence[Any]) -> list[Any]:
        """Shape of the tile."""
        shape = list(shapes[0])
        shape[self.axis] = pt.constant(self.length, dtype="int64")
        return [tuple(shape)]

    def perform(self, node: Apply, inputs: Sequence[Any], output_storage: Any) -> None:
        """Slice the array in NumPy."""
        x, begin = inputs
        if x.shape[self.axis] < self.length:
            places = np.minimum(np.arange(self.length), x.shape[self.axis] - 1)
            output_storage[0][0] = np.take(x, places, axis=self.axis)
        else:
            rows = slice(int(begin), int(begin) + self.length)
            output_storage[0][0] = x[(slice(None),) * self.axis + (rows,)]


@on_first_use("numba")
def _register_numba() -> None:
    from pymc_flows.support.compat import numba_njit, register_funcify_and_cache_key

    @register_funcify_and_cache_key(TileBounds)
    def _(op: TileBounds, node: Apply, **_: Any) -> tuple[Any, str]:
        length, axis = op.length, op.axis
        in_numba = numba_njit(bounds)

        @numba_njit
        def tile_bounds(x):  # type: ignore[no-untyped-def]
            return in_numba(x.shape[axis], length)

        return tile_bounds, f"TileBounds {length} {axis} {source_key(__name__)}"

    @register_funcify_and_cache_key(TakeTile)
    def _(op: TakeTile, node: Apply, **_: Any) -> tuple[Any, str]:
        length, axis = op.length, op.axis

        if axis == 0:

            @numba_njit
            def take(x, begin):  # type: ignore[no-untyped-def]
                if x.shape[0] < length:
                    return x[np.minimum(np.arange(length), x.shape[0] - 1)]
                return x[begin.item() : begin.item() + length]

        else:

            @numba_njit
            def take(x, begin):  # type: ignore[no-untyped-def]
                places = np.minimum(begin.item() + np.arange(length), x.shape[axis] - 1)
                return np.take(x, places, axis)

        return take, f"TakeTile {length} {axis} {source_key(__name__)}"


@on_first_use("jax")
def _register_jax() -> None:
    import jax.numpy as jnp
    from jax.lax import dynamic_slice_in_dim

    from pymc_flows.support.compat import jax_funcify

    @jax_funcify.register(TileBounds)
    def _(op: TileBounds, **_: Any) -> Any:
        return lambda x: jnp.asarray(bounds(x.shape[op.axis], op.length))

    @jax_funcify.register(TakeTile)
    def _(op: TakeTile, **_: Any) -> Any:
        def take(x: Any, begin: Any) -> Any:
            n = x.shape[op.axis]
            if n < op.length:
                return jnp.take(x, np.minimum(np.arange(op.length), n - 1), axis=op.axis)
            return dynamic_slice_in_dim(x, begin, op.length, op.axis)

        return take
