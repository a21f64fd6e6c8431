"""Repeated layers as one `pytensor.scan` over their stacked parameters."""

from collections.abc import Callable, Mapping

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.tensor import TensorVariable

from pymc_flows.flows.base import Flow

__all__ = ["scan_layers", "scan_score"]

type _Params = Mapping[str, TensorVariable]
type _Map = Callable[[TensorVariable, _Params], tuple[TensorVariable, TensorVariable]]


def scan_layers(
    one: _Map, points: TensorVariable, stacked: _Params, *, is_inverse: bool
) -> tuple[TensorVariable, TensorVariable]:
    """Points and log-determinants after all layers, or before them for inverse maps.

    Parameters
    ----------
    one : callable
        The map of a layer: (points, its parameters) to points and log-determinants.
    points : TensorVariable, shape (..., dim)
    stacked : Mapping[str, TensorVariable]
        Constrained parameters of all layers, on a leading axis.
    is_inverse : bool
        Whether the last layer comes first.
    """
    names = list(stacked)

    def step(*args: TensorVariable) -> tuple[TensorVariable, TensorVariable]:
        *values, points, total = args
        points, log_det = one(points, dict(zip(names, values, strict=True)))
        return points, total + log_det

    # The carry keeps one type, so it starts with the type that the result has.
    dtype = np.result_type(points.dtype, *(value.dtype for value in stacked.values()))
    start = points.astype(dtype)
    points, total = pytensor.scan(
        step,
        sequences=[stacked[name] for name in names],
        outputs_info=[start, pt.zeros_like(start[..., 0])],
        go_backwards=is_inverse,
        return_updates=False,
    )
    return points[-1], total[-1]


def scan_score(
    layer: Flow, z: TensorVariable, score: TensorVariable, stacked: _Params
) -> tuple[TensorVariable, TensorVariable]:
    """Points and scores after all layers, see `Flow.forward_and_score`."""
    names = list(stacked)

    def step(*args: TensorVariable) -> tuple[TensorVariable, TensorVariable]:
        *values, z, score = args
        return layer.forward_and_score(z, score, dict(zip(names, values, strict=True)))

    dtype = np.result_type(z.dtype, *(value.dtype for value in stacked.values()))
    z, score = pytensor.scan(
        step,
        sequences=[stacked[name] for name in names],
        outputs_info=[z.astype(dtype), score.astype(dtype)],
        return_updates=False,
    )
    return z[-1], score[-1]
