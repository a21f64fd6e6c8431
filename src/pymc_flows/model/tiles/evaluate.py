"""Value and gradient of a log density whose sums over rows are taken tile by tile."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.graph.basic import Variable
from pytensor.graph.replace import graph_replace
from pytensor.tensor.variable import TensorVariable

from pymc_flows.errors import ModelError
from pymc_flows.model.batching import vectorized
from pymc_flows.model.tiles.find import RowSum
from pymc_flows.model.tiles.slices import TakeTile, TileBounds


def tiled_value_and_grad(
    terms: Sequence[TensorVariable],
    unpack: Callable[[TensorVariable], Mapping[Variable, TensorVariable]],
    z: TensorVariable,
    weights: Sequence[TensorVariable | float],
    sums: Sequence[RowSum],
) -> tuple[list[TensorVariable], TensorVariable]:
    """Values (draws,) of log densities, and the gradient (draws, dim) of their weighted sum.

    The gradient is taken tile by tile: only what a tile adds to the sums is kept of it.

    Parameters
    ----------
    terms : sequence of TensorVariable
        Log densities of one draw.
    unpack : callable
        Splits ``z`` into variables of a draw, with a leading draw axis: see `ModelDensity.unpack`.
    z : TensorVariable, shape (draws, dim)
    weights : sequence of scalars
    sums : sequence of RowSum
        Sums found for this number of draws.

    Raises
    ------
    ModelError
        If the log density does not vectorise.
    """
    n_draws = z.type.shape[0]
    # Vectorising copies what its rows are computed from, so `z` is replaced by an input first.
    points = z.type()
    # The log density is a function of the draws and the sums, which get their values in the end.
    totals = {x.total: pt.scalar(dtype=x.total.dtype) for x in sums}
    shared = list(dict.fromkeys(v for x in sums for v in x.tile.whole))
    outside = graph_replace([*terms, *shared], totals, strict=False)
    batches = [pt.vector(dtype=t.dtype, shape=(n_draws,)) for t in totals.values()]
    rows = {**unpack(points), **dict(zip(totals.values(), batches, strict=True))}
    found = vectorized(outside, rows, "the log density")
    if isinstance(found, str):
        raise ModelError(f"the log density must be evaluated draw by draw: {found}")
    values = [pt.full((n_draws,), v) if v.ndim == 0 else v for v in found.outputs[: len(terms)]]
    total = sum(w * v.sum() for w, v in zip(weights, values, strict=True))
    by_z, *by_sums = pytensor.grad(total, [points, *batches], disconnected_inputs="ignore")
    # Copies of what rows share, whose gradients are known: one may be computed from another.
    copies = dict(zip(shared, map(pt.tensor_copy, found.outputs[len(terms) :]), strict=True))
    known: dict[TensorVariable, TensorVariable] = {}
    results = []
    for row_sum, by_sum in zip(sums, by_sums, strict=True):
        result, grads = _loop(row_sum, copies)
        results.append(result)
        for var, grad in grads.items():
            part = by_sum.reshape((n_draws, *[1] * (grad.ndim - 1))) * grad
            known[copies[var]] = known[copies[var]] + part if copies[var] in known else part
    if known:
        by_z = by_z + pytensor.grad(None, points, known_grads=known, disconnected_inputs="ignore")
    filled = dict(zip(batches, results, strict=True))
    outputs = graph_replace([*values, by_z], filled, strict=False)
    *values, by_z = graph_replace(outputs, {points: z}, strict=False)
    return values, by_z


def _loop(
    row_sum: RowSum, given: Mapping[TensorVariable, TensorVariable]
) -> tuple[TensorVariable, dict[TensorVariable, TensorVariable]]:
    """A sum over rows (draws,), and its gradients with respect to the given values rows share."""
    tile, value = row_sum.tile, row_sum.value
    wrt = {v: x for v, x in row_sum.batches.items() if x.dtype.startswith("float")}
    inside = [value]
    if wrt:
        inside += pytensor.grad(value.sum(), list(wrt.values()), disconnected_inputs="ignore")

    def step(bounds: TensorVariable, *args: TensorVariable) -> list[TensorVariable]:
        sums, arrays = args[: len(inside)], args[len(inside) :]
        begin, first, stop = (bounds[k] for k in range(3))
        places = pt.constant(np.arange(tile.length))
        known: dict[Variable, Variable] = {
            tile.begin: begin,
            row_sum.counts: ((places >= first) & (places < stop)).astype(row_sum.counts.dtype),
        }
        n = len(tile.rows)
        for ((_, axis), part), array in zip(tile.rows.items(), arrays[:n], strict=True):
            known[part] = TakeTile(tile.length, axis)(array, begin)
        known |= dict(zip(row_sum.inputs.values(), arrays[n:], strict=True))
        parts = graph_replace(inside, known, strict=False)
        return [x + y.astype(x.dtype) for x, y in zip(sums, parts, strict=True)]

    array, axis = next(iter(tile.rows))
    if row_sum.is_fixed:
        shape = [tile.n if i == axis else n for i, n in enumerate(array.type.shape)]
        array = pt.specify_shape(array, shape)
    results = pytensor.scan(
        step,
        sequences=[TileBounds(tile.length, axis)(array)],
        outputs_info=[_zeros(x) for x in (value, *(given[v] for v in wrt))],
        non_sequences=[*(v for v, _ in tile.rows), *(given[v] for v in tile.whole)],
        return_updates=False,
        strict=True,
    )
    results = results if isinstance(results, list) else [results]
    result, *grads = (x[-1] for x in results)
    return result, dict(zip(wrt, grads, strict=True))


def _zeros(like: TensorVariable) -> TensorVariable:
    shape = like.type.shape
    return pt.zeros_like(like) if None in shape else pt.zeros(shape, dtype=like.dtype)
