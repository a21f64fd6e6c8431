"""Chains on NumPy arrays: draws and densities without compiling anything.

Each kind of layer becomes one small NumPy-mode function, which all approximations in the process
share. Repeats are a Python loop over whole arrays, so the first draw costs the same for ``planar``
and ``planar*64``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache

import numpy as np
import pytensor.tensor as pt

from pymc_flows.backends.functions import function_of
from pymc_flows.backends.modes import NUMPY
from pymc_flows.flows import base
from pymc_flows.flows.base import Flow, FusedFlow
from pymc_flows.flows.chain import Block, Chain

type Params = Sequence[Mapping[str, np.ndarray]]

# Rows that go through a chain together, so that arrays of a network or a spline fit into caches.
ROWS = 8_192


def forward_and_log_det(
    chain: Chain, z: np.ndarray, params: Params
) -> tuple[np.ndarray, np.ndarray]:
    """Map base draws to posterior-space points.

    Parameters
    ----------
    chain : Chain
    z : ndarray, shape (n, dim)
    params : sequence of mapping of str to ndarray
        Raw parameters of each block, repeats on the leading axis.

    Returns
    -------
    z_new : ndarray, shape (n, dim)
    log_det : ndarray, shape (n,)
        log|det ∂z_new/∂z|, in nats.
    """
    return _apply(chain, z, params, inverse=False)


def passage(chain: Chain, z: np.ndarray, params: Params) -> Iterator[tuple[str, np.ndarray]]:
    """Follow base draws (n, dim) through the layers: the word of each, and the points after it.

    Fused repeats, such as those of `hh`, are one step, with a name such as ``'hh*4'``.
    """
    for block, raw in zip(chain.blocks, params, strict=True):
        stages = _stages(block, chain.dim, raw, z.dtype.name, inverse=False)
        word = block.layer.word
        name = f"{word}*{block.count}" if len(stages) < block.count else word
        for one, values in stages:
            z, _ = one(z, *values)
            yield name, z


def inverse_and_log_det(
    chain: Chain, y: np.ndarray, params: Params
) -> tuple[np.ndarray, np.ndarray]:
    """Map posterior-space points to base draws; arguments and results as in the forward map.

    The log-determinant is that of the *forward* map at the base draws.

    Raises
    ------
    NotInvertibleError
        If a layer has no inverse.
    """
    chain.check_inverse()
    return _apply(chain, y, params, inverse=True)


type _Stage = tuple[Callable[..., tuple[np.ndarray, np.ndarray]], list[np.ndarray]]


def _apply(
    chain: Chain, points: np.ndarray, params: Params, *, inverse: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Map points (n, dim) by all layers; return also their summed log-determinants (n,)."""
    stages = [
        stage
        for block, raw in zip(chain.blocks, params, strict=True)
        for stage in _stages(block, chain.dim, raw, points.dtype.name, inverse=inverse)
    ]
    if inverse:
        stages.reverse()
    parts = []
    for begin in range(0, max(len(points), 1), ROWS):
        z = points[begin : begin + ROWS]
        total = np.zeros(len(z), z.dtype)
        for one, values in stages:
            z, log_det = one(z, *values)
            total = total + log_det
        parts.append((z, total))
    if len(parts) == 1:
        return parts[0]
    points, log_dets = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return points, log_dets


def _stages(
    block: Block, dim: int, raw: Mapping[str, np.ndarray], dtype: str, *, inverse: bool
) -> list[_Stage]:
    """Functions and parameter values of a block, in the order of the forward map."""
    names = list(block.layer.param_shapes(dim))
    values = [np.asarray(raw[name], dtype) for name in names]
    if isinstance(block.layer, FusedFlow):
        fn = _stage_function(block.layer, dim, block.count, dtype, inverse=inverse)
        return [(fn, values)]
    fns = [
        _stage_function(block.layer, dim, None, dtype, place=place, inverse=inverse)
        for place in range(min(block.layer.period, block.count))
    ]
    return [(fns[k % len(fns)], [value[k] for value in values]) for k in range(block.count)]


@lru_cache(maxsize=256)
def _stage_function(
    layer: Flow, dim: int, count: int | None, dtype: str, *, place: int = 0, inverse: bool
) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """Function (points, *raw parameters) -> (points, log_det) of a layer or of a fused stack.

    ``place`` is that of the layer in its block; ``count`` is the length of a fused stack.
    """
    points = pt.matrix("points", shape=(None, dim), dtype=dtype)
    lead = () if count is None else (count,)
    raw = {
        name: pt.TensorType(dtype, (*lead, *shape))(name)
        for name, shape in layer.param_shapes(dim).items()
    }
    params = _constrain_at(layer, raw, place)
    if isinstance(layer, FusedFlow):
        apply = layer.stack_inverse_and_log_det if inverse else layer.stack_forward_and_log_det
    else:
        apply = layer.inverse_and_log_det if inverse else layer.forward_and_log_det
    return function_of([points, *raw.values()], apply(points, params), mode=NUMPY)


def _constrain_at(layer: Flow, raw: base.Params, place: int) -> base.Params:
    """Constrain the parameters of the layer at ``place``, the last one of a stack of copies."""
    if place == 0:
        return layer.constrain(raw)
    stacks = {name: pt.stack([value] * (place + 1)) for name, value in raw.items()}
    return {name: value[place] for name, value in layer.constrain(stacks).items()}
