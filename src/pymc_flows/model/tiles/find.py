"""The sums over rows of a log density, and the lengths of their tiles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytensor.tensor as pt
from pytensor.graph.basic import Variable
from pytensor.graph.traversal import ancestors, toposort
from pytensor.tensor.variable import TensorVariable

from pymc_flows.backends.graphs import Pin
from pymc_flows.backends.jax import has_jax
from pymc_flows.model.batching import dependent_variables, vectorized
from pymc_flows.model.tiles.local import NotLocalError, Tile
from pymc_flows.support.compat import Sum, TensorSharedVariable

# An array of a tile, for all draws, may take this many bytes: a few of them fit into the cache of a
# core. A constant, whatever the machine has: the same seed must give the same bits.
TILE_BYTES = 256 * 2**10
# Fewer tiles are not worth a loop.
MIN_TILES = 4
# Length of a tile before its length is chosen: one that no other axis is likely to have.
_PROBE = 10_007


@dataclass(frozen=True)
class RowSum:
    """A sum over rows, and the graph of one tile of it for several draws.

    Attributes
    ----------
    total : TensorVariable
        The sum in the graph of the log density of one draw, a scalar.
    value : TensorVariable, shape (draws,)
        The sum over the rows of a tile that count.
    counts : TensorVariable, shape (length,)
        Factors of the rows: 1 if a row counts, else 0. Not in ``value`` if all rows of all tiles
        count.
    tile : Tile
        The inputs of ``value``.
    batches : dict of TensorVariable to TensorVariable
        Variables that rows share and that differ from draw to draw, and inputs for all draws in
        their place.
    """

    total: TensorVariable
    value: TensorVariable
    counts: TensorVariable
    tile: Tile
    batches: dict[TensorVariable, TensorVariable]

    @property
    def is_fixed(self) -> bool:
        """Whether the number of rows is compiled into the loop, as JAX needs it."""
        return has_jax()

    @property
    def pins(self) -> list[Pin]:
        """Data whose number of rows may change although it is compiled into the loop."""
        if not self.is_fixed:
            return []
        arrays = [v for v, axis in self.tile.rows if v.type.shape[axis] is None]
        shared = [v for v in ancestors(arrays) if isinstance(v, TensorSharedVariable)]
        return [Pin(v, v.get_value(borrow=True).shape) for v in shared]

    @property
    def inputs(self) -> dict[TensorVariable, TensorVariable]:
        """Variables that rows share, and the inputs of ``value`` in their place."""
        return {v: self.batches.get(v, inner) for v, inner in self.tile.whole.items()}


def row_sums(
    terms: Sequence[TensorVariable], values: Sequence[Variable], n_draws: int
) -> list[RowSum]:
    """Find the sums over rows that are worth a loop over tiles.

    Parameters
    ----------
    terms : sequence of TensorVariable
        Log densities of one draw.
    values : sequence of Variable
        Variables of a draw.
    n_draws : int
        Number of draws that are evaluated together.
    """
    dependent = dependent_variables(terms, values)
    sums = [
        node.outputs[0]
        for node in toposort(terms)
        if isinstance(node.op, Sum) and node.outputs[0].ndim == 0 and node.outputs[0] in dependent
    ]
    found = (_row_sum(total, dependent, n_draws) for total in sums)
    return [x for x in found if x is not None]


def _row_sum(total: TensorVariable, dependent: set[Variable], n_draws: int) -> RowSum | None:
    [terms] = total.owner.inputs
    for axis in range(terms.ndim):
        try:
            value, _, tile = _of_length(total, axis, dependent, _PROBE)
            length = _tile_length(value, tile, n_draws)
            if length is None:
                return None
            value, counts, tile = _of_length(total, axis, dependent, length)
        except NotLocalError:
            continue
        batches = {
            v: pt.tensor(dtype=v.dtype, shape=(n_draws, *v.type.shape))
            for v in tile.whole
            if v in dependent
        }
        rows = {tile.whole[v]: batch for v, batch in batches.items()}
        found = vectorized([value], rows, "the log density")
        if isinstance(found, str) or found.reason:
            return None
        return RowSum(total, found.outputs[0], counts, tile, batches)
    return None


def _of_length(
    total: TensorVariable, axis: int, dependent: set[Variable], length: int
) -> tuple[TensorVariable, TensorVariable, Tile]:
    """Build the graph of a tile for one draw: the sum over rows that count, and their factors."""
    [terms] = total.owner.inputs
    tile = Tile(length, dependent)
    part = tile.part(terms, axis)
    tile.check()
    # Factors, since XLA takes 50% longer with a switch. Rows that do not count here have counted in
    # the tile before: if one of them is not finite, the sum is not finite anyway.
    counts = pt.vector("counts", dtype=part.dtype, shape=(length,))
    order: list[int | str] = ["x"] * part.ndim
    order[axis] = 0
    if tile.n % length or any(v.type.shape[k] is None for v, k in tile.rows):
        part = part * counts.dimshuffle(order)
    return total.owner.op(part), counts, tile


def _tile_length(value: TensorVariable, tile: Tile, n_draws: int) -> int | None:
    """Rows of a tile; None if there are too few rows for tiles."""
    widest = max(_width(node.outputs[0]) for node in toposort([value]))
    length = TILE_BYTES // (np.dtype(value.dtype).itemsize * n_draws * widest)
    # Gradients with respect to what all rows share are added up tile by tile.
    length = max(length, sum(_width(v) for v in tile.whole), 1)
    n_tiles = math.ceil(tile.n / length)
    if n_tiles < MIN_TILES:
        return None
    # Without factors of rows a step takes 8% less.
    even = (k for k in range(length, length // 2, -1) if tile.n % k == 0)
    return next(even, math.ceil(tile.n / n_tiles))


def _width(var: TensorVariable) -> int:
    """Numbers of an array, for each row if it has any."""
    return math.prod(n or 1 for n in var.type.shape if n != _PROBE)
