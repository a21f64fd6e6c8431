"""Layers of one kind in a row: one map where they can be fused, else a loop over them."""

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

# A fused block is a product of matrices that has to be prepared. On JAX, few layers take points
# with less than this many numbers in all faster one by one: reflections of 1 point in 100
# dimensions 4 times as fast, of 10 in 10 dimensions twice, of 10 in 100 dimensions no more.
MIN_FUSED = 256
MAX_COPIED = 16

type Loop = Literal["unroll", "scan", "kernel"]
type Raw = Params | TensorVariable
"""Raw parameters of a block: stacked by name, or all in a vector, see `Block.unflatten`."""
type _Advance = Callable[[TensorVariable, TensorVariable, Params], Pair]


@dataclass(frozen=True)
class Block(Step):
    """``count`` layers of one kind in a row; parameters are stacked on a leading axis (count,).

    Parameters
    ----------
    layer : Flow
        The layer that is repeated.
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
        """The layer, if the block enters a graph for points (n, dim) as a kernel Op."""
        return self.layer if loop == "kernel" and isinstance(self.layer, KernelFlow) else None

    def size(self, dim: int) -> int:
        """Number of raw values of all parameters and repeats."""
        return sum(math.prod(shape) for shape in self.param_shapes(dim).values())

    def unflatten(self, theta: TensorVariable, dim: int) -> dict[str, TensorVariable]:
        """Stacked raw parameters, (count, ...) each, in a vector of all of them.

        They lie one after the other in alphabetical order, each in C order.
        """
        parts, start = {}, 0
        for name, shape in self.param_shapes(dim).items():
            stop = start + math.prod(shape)
            parts[name] = theta[start:stop].reshape(shape)
            start = stop
        return parts

    def apply(self, points: TensorVariable, raw: Raw, loop: Loop, *, is_inverse: bool) -> Pair:
        """Points (..., dim) after the block, or before it for the inverse; log-determinants."""
        layer, dim = self.layer, points.type.shape[-1]
        kernel = self.kernel(loop)
        if kernel is not None and points.ndim == 2 and not is_inverse:
            if isinstance(raw, Mapping):
                raw = pt.join(0, *(value.ravel() for value in raw.values()))
            return kernel.kernel_forward_and_log_det(points, raw)
        one = layer.inverse_and_log_det if is_inverse else layer.forward_and_log_det
        stacked = raw if isinstance(raw, Mapping) else self.unflatten(raw, dim)
        if fused := self._fused(points, loop):
            both = fused.stack_inverse_and_log_det, fused.stack_forward_and_log_det
            return both[not is_inverse](points, layer.constrain(stacked))

        def advance(points: TensorVariable, total: TensorVariable, params: Params) -> Pair:
            points, log_det = one(points, params)
            return points, total + log_det

        # The stack is constrained once, outside of any loop, except for fused layers that are
        # copied here: the gradient of `_split` is cheaper before the constraint.
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
        """The layer, if all repeats are one map; few layers take few points one by one."""
        known = [n for n in points.type.shape if n is not None]
        is_small = len(known) == points.ndim and math.prod(known) < MIN_FUSED
        is_thin = loop == "scan" and is_small and self.count <= MAX_COPIED
        is_many = self.count > 1 and not is_thin
        return self.layer if is_many and isinstance(self.layer, FusedFlow) else None

    def _is_scanned(self, stacked: Params, loop: Loop) -> bool:
        """Whether a loop runs over repeats: over their parameters, so there must be some."""
        is_one_map = isinstance(self.layer, FusedFlow)
        return self.count > 1 and loop == "scan" and bool(stacked) and not is_one_map

    def _split(self, stacked: Params) -> list[dict[str, TensorVariable]]:
        """Parameters of each layer in those of all, (count, ...) each.

        Equal to indexing; but its gradient is one join, not an addition to zeros for each layer.
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

    # What is carried keeps its type, so it starts with the type that the result has.
    dtype = np.result_type(*(x.dtype for x in (*carry, *stacked.values())))
    first, second = pytensor.scan(
        step,
        sequences=[stacked[name] for name in names],
        outputs_info=[x.astype(dtype) for x in carry],
        go_backwards=go_backwards,
        return_updates=False,
    )
    return first[-1], second[-1]
