"""Repeats of a layer: one fused map where the layer has one, else a loop over the repeats."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.tensor import TensorVariable

from pymc_flows.flows.base import Flow, FusedFlow, KernelFlow, Pair, Params, Shapes
from pymc_flows.flows.checks import check_positive_int
from pymc_flows.flows.numerics import zeros_of_batch
from pymc_flows.formula.steps import Step

# The matrices of a fused block must be prepared. On JAX, up to this many layers are faster one by
# one if the points have fewer numbers in all than this: reflections of 1 point in 100 dimensions by
# a factor of 4, of 10 in 10 dimensions by 2; of 10 in 100 dimensions they are no faster.
MAX_COPIED, MIN_FUSED = 16, 256

type Loop = Literal["unroll", "scan", "kernel"]
type Raw = Params | TensorVariable
"""Raw parameters of a block: stacked by name, or in one vector, see `Block.unflatten`."""
type _Advance = Callable[[TensorVariable, TensorVariable, Params], Pair]


@dataclass(frozen=True)
class Block(Step):
    """``count`` layers of one kind in a row; parameters are stacked on a leading axis (count,).

    Parameters
    ----------
    layer : Flow
        Layer that is repeated.
    count : int
        Number of repeats, at least 1.
    """

    layer: Flow
    count: int = 1

    def __post_init__(self) -> None:
        """Raise unless the count is a positive integer."""
        check_positive_int("the count of a block", self.count)

    def param_shapes(self, dim: int) -> Shapes:
        """Shape of each stacked raw parameter, (count, ...), names in alphabetical order."""
        shapes = self.layer.param_shapes(dim)
        return {name: (self.count, *shapes[name]) for name in sorted(shapes)}

    def kernel(self, loop: Loop) -> KernelFlow | None:
        """The layer if the block enters a graph for points (n, dim) as a kernel Op, else None."""
        return self.layer if loop == "kernel" and isinstance(self.layer, KernelFlow) else None

    def size(self, dim: int) -> int:
        """Number of raw values, of all parameters and repeats."""
        return sum(math.prod(shape) for shape in self.param_shapes(dim).values())

    def unflatten(self, theta: TensorVariable, dim: int) -> dict[str, TensorVariable]:
        """Split a vector of all raw parameters into stacked ones, (count, ...) each.

        The parameters lie in the vector in alphabetical order, each in C order.
        """
        parts, start = {}, 0
        for name, shape in self.param_shapes(dim).items():
            stop = start + math.prod(shape)
            parts[name] = theta[start:stop].reshape(shape)
            start = stop
        return parts

    def apply(self, points: TensorVariable, raw: Raw, loop: Loop, *, is_inverse: bool) -> Pair:
        """Points (..., dim) mapped by the block or its inverse, and log-determinants (...)."""
        layer, dim = self.layer, points.type.shape[-1]
        kernel = self.kernel(loop)
        if kernel is not None and points.ndim == 2 and not is_inverse:
            if isinstance(raw, Mapping):
                raw = pt.join(0, *(value.ravel() for value in raw.values()))
            return kernel.kernel_forward_and_log_det(points, raw)
        one = layer.inverse_and_log_det if is_inverse else layer.forward_and_log_det
        stacked = raw if isinstance(raw, Mapping) else self.unflatten(raw, dim)
        if fused := self._fused(points, loop):
            stack = (
                fused.stack_inverse_and_log_det if is_inverse else fused.stack_forward_and_log_det
            )
            return stack(points, layer.constrain(stacked))

        def advance(points: TensorVariable, total: TensorVariable, params: Params) -> Pair:
            points, log_det = one(points, params)
            return points, total + log_det

        # The stack is constrained once, outside of any loop. Fusible layers that are copied are an
        # exception: the gradient of `_split` is cheaper before the constraint.
        if isinstance(layer, FusedFlow) and self.count > 1:
            layers = [layer.constrain(part) for part in self._split(stacked)]
        else:
            stacked = layer.constrain(stacked)
            if self._is_scanned(stacked, loop):
                zeros = zeros_of_batch(points)
                return _scan(advance, (points, zeros), stacked, go_backwards=is_inverse)
            layers = [{name: v[k] for name, v in stacked.items()} for k in range(self.count)]
        first, *rest = layers[::-1] if is_inverse else layers
        pair = one(points, first)
        for params in rest:
            pair = advance(*pair, params)
        return pair

    def score(self, z: TensorVariable, score: TensorVariable, raw: Raw, loop: Loop) -> Pair:
        """Points and scores (..., dim) after the block, see `Flow.forward_and_score`."""
        layer = self.layer
        raw = raw if isinstance(raw, Mapping) else self.unflatten(raw, z.type.shape[-1])
        stacked = layer.constrain(raw)
        if fused := self._fused(z, loop):
            return fused.stack_forward_and_score(z, score, stacked)
        if self._is_scanned(stacked, loop):
            return _scan(layer.forward_and_score, (z, score), stacked)
        for k in range(self.count):
            one = {name: value[k] for name, value in stacked.items()}
            z, score = layer.forward_and_score(z, score, one)
        return z, score

    def _fused(self, points: TensorVariable, loop: Loop) -> FusedFlow | None:
        """The layer if all repeats are computed as one map, else None."""
        known = [n for n in points.type.shape if n is not None]
        is_small = len(known) == points.ndim and math.prod(known) < MIN_FUSED
        is_thin = loop == "scan" and is_small and self.count <= MAX_COPIED
        is_many = self.count > 1 and not is_thin
        return self.layer if is_many and isinstance(self.layer, FusedFlow) else None

    def _is_scanned(self, stacked: Params, loop: Loop) -> bool:
        """Whether a scan runs over repeats; it needs parameters to run over."""
        is_one_map = isinstance(self.layer, FusedFlow)
        return self.count > 1 and loop == "scan" and bool(stacked) and not is_one_map

    def _split(self, stacked: Params) -> list[dict[str, TensorVariable]]:
        """Split stacked parameters, (count, ...) each, into those of each layer.

        It equals indexing, but its gradient is one join instead of an addition for each layer.
        """
        layers: list[dict[str, TensorVariable]] = [{} for _ in range(self.count)]
        for name, value in stacked.items():
            shape = value.type.shape[1:]
            sizes = [math.prod(shape)] * self.count
            parts = pt.split(value.ravel(), sizes, n_splits=self.count)
            for layer, part in zip(layers, parts, strict=True):
                layer[name] = part.reshape(shape)
        return layers


def _scan(advance: _Advance, carry: Pair, stacked: Params, *, go_backwards: bool = False) -> Pair:
    """Carry two tensors through all layers by one `pytensor.scan` over their parameters."""
    names = list(stacked)

    def step(*args: TensorVariable) -> Pair:
        *values, first, second = args
        return advance(first, second, dict(zip(names, values, strict=True)))

    # A scan must keep the type of what it carries, so it starts with the type of the result.
    dtype = np.result_type(*(x.dtype for x in (*carry, *stacked.values())))
    first, second = pytensor.scan(
        step,
        sequences=[stacked[name] for name in names],
        outputs_info=[x.astype(dtype) for x in carry],
        go_backwards=go_backwards,
        return_updates=False,
    )
    return first[-1], second[-1]
