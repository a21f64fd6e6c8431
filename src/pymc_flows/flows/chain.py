"""Blocks of repeated layers, and the chain that a formula stands for."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pytensor.tensor as pt
from pytensor.tensor import TensorVariable

from pymc_flows.errors import ArgumentError, FlowShapeError, NotInvertibleError
from pymc_flows.flows.base import Flow, FusedFlow, KernelFlow
from pymc_flows.flows.checks import check_positive_int, with_shape
from pymc_flows.flows.scans import scan_layers, scan_score

__all__ = ["Block", "Chain", "Loop"]

# A fused block is a product of matrices that has to be prepared. On JAX, few layers take points
# with less than this many numbers in all faster one by one: reflections of 1 point in 100
# dimensions 4 times as fast, of 10 in 10 dimensions twice, of 10 in 100 dimensions no more.
MIN_FUSED = 256
MAX_COPIED = 16

type Loop = Literal["unroll", "scan", "kernel"]
type _Params = Mapping[str, TensorVariable]
type _Raw = _Params | TensorVariable


@dataclass(frozen=True)
class Block:
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
        """Refuse a count that is not a positive integer."""
        check_positive_int("the count of a block", self.count)

    def param_shapes(self, dim: int) -> dict[str, tuple[int, ...]]:
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

    def split(self, stacked: _Params) -> list[dict[str, TensorVariable]]:
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


@dataclass(frozen=True)
class Chain:
    """Layers applied one after the other, the first block first.

    The chain maps base draws z0 to posterior-space points z; with its log-determinant,
    ``ln q(z) = ln q0(z0) - log_det``. It owns no parameters: both directions take the raw ones, a
    sequence of one mapping per block, each value stacked on a leading axis (count,), or of one
    vector per block with the values of all of them, see `Block.unflatten`.

    Parameters
    ----------
    dim : int
        Length of the event axis.
    blocks : tuple of Block
        At least one, in order of application.
    """

    dim: int
    blocks: tuple[Block, ...]

    def __post_init__(self) -> None:
        """Refuse an empty chain and a dimension that is not a positive integer."""
        check_positive_int("the dimension of a chain", self.dim)
        if not isinstance(self.blocks, tuple) or not self.blocks:
            raise FlowShapeError(f"a chain needs a tuple of blocks, got {self.blocks!r}")

    def __len__(self) -> int:
        """Return the number of layers, repeats counted."""
        return sum(block.count for block in self.blocks)

    @property
    def has_inverse(self) -> bool:
        """Whether every layer has an inverse."""
        return not self.words_without_inverse

    @property
    def words_without_inverse(self) -> list[str]:
        """Words of the layers that have no inverse, in alphabetical order."""
        return sorted({b.layer.word for b in self.blocks if not b.layer.has_inverse})

    @property
    def is_volume_preserving(self) -> bool:
        """Whether every layer has log-determinant 0."""
        return all(block.layer.is_volume_preserving for block in self.blocks)

    @property
    def is_affine(self) -> bool:
        """Whether every layer is ``A z + c``."""
        return all(block.layer.is_affine for block in self.blocks)

    @property
    def is_elementwise(self) -> bool:
        """Whether no layer mixes coordinates."""
        return all(block.layer.is_elementwise for block in self.blocks)

    def param_shapes(self) -> tuple[dict[str, tuple[int, ...]], ...]:
        """Shape of each raw parameter of each block: (count, ...), names in alphabetical order."""
        return tuple(block.param_shapes(self.dim) for block in self.blocks)

    def initial_params(
        self, *, jitter: float, rng: np.random.Generator, dtype: str
    ) -> tuple[dict[str, np.ndarray], ...]:
        """Raw start values: reference + jitter · N(0, 1).

        Parameters
        ----------
        jitter : float
            Standard deviation of the noise on every raw value; 0 gives the layers' references.
        rng : numpy.random.Generator
            Source of the noise and of the random parts of the references.
        dtype : {'float32', 'float64'}
            Type of the arrays.

        Returns
        -------
        tuple of dict
            One mapping per block: name to array (count, ...).
        """
        values = []
        for block, shapes in zip(self.blocks, self.param_shapes(), strict=True):
            reference = block.layer.reference_params(self.dim, block.count, rng)
            values.append(
                {
                    name: (reference[name] + jitter * rng.standard_normal(shape)).astype(dtype)
                    for name, shape in shapes.items()
                }
            )
        return tuple(values)

    def forward_and_log_det(
        self, z: TensorVariable, params: Sequence[_Raw], *, loop: Loop = "unroll"
    ) -> tuple[TensorVariable, TensorVariable]:
        """Map base draws to posterior-space points.

        Parameters
        ----------
        z : TensorVariable, shape (..., dim)
            Base draws.
        params : sequence of Mapping[str, TensorVariable] or of TensorVariable
            Raw parameters of each block, stacked or as a vector.
        loop : {'unroll', 'scan', 'kernel'}
            How repeats enter the graph: copied, as one `pytensor.scan` over the stacked parameters,
            or, for points (n, dim) and layers that have one, as a kernel Op (else copied). Fused
            layers are never copied.

        Returns
        -------
        z_new : TensorVariable, shape (..., dim)
        log_det : TensorVariable, shape (...)
            ``log|det d z_new / d z|`` in nats.

        Raises
        ------
        FlowShapeError
            If a point or a parameter does not have the shape that the chain needs.
        """
        return self._apply(z, params, loop, is_inverse=False)

    @property
    def has_quick_score(self) -> bool:
        """Whether `score` costs little: every layer is affine, or knows a short way."""
        general = Flow.forward_and_score
        layers = [block.layer for block in self.blocks if block.layer.has_inverse]
        quick = [x for x in layers if x.is_affine or type(x).forward_and_score is not general]
        return len(quick) == len(self.blocks)

    def score(
        self, z: TensorVariable, params: Sequence[_Raw], *, loop: Loop = "unroll"
    ) -> TensorVariable:
        """Gradient of ln q with respect to the point, at the forward images of base draws.

        It is carried from layer to layer along with the points, beginning with −z, the score of the
        standard normal base (the recursion of Vaitl, Winkler, Richter & Kessel, Fast and unified
        path gradient estimators for normalizing flows, ICLR 2024, arXiv:2403.15881). Nothing is
        meant to be differentiated through it.

        Parameters
        ----------
        z : TensorVariable, shape (..., dim)
            Base draws.
        params : sequence of Mapping[str, TensorVariable] or of TensorVariable
            Raw parameters of each block, stacked or as a vector.
        loop : {'unroll', 'scan', 'kernel'}
            As in `forward_and_log_det`; there are no kernels of scores.

        Returns
        -------
        TensorVariable, shape (..., dim)

        Raises
        ------
        NotInvertibleError
            If a layer has no inverse.
        """
        self._check_inverse()
        z = self._check_points(z)
        score = -z
        for block, raw in zip(self.blocks, self._check_params(params), strict=True):
            layer = block.layer
            stacked = layer.constrain(
                raw if isinstance(raw, Mapping) else block.unflatten(raw, self.dim)
            )
            if block.count > 1 and isinstance(layer, FusedFlow):
                if not _is_thin(block, z, loop):
                    z, score = layer.stack_forward_and_score(z, score, stacked)
                    continue
            elif block.count > 1 and loop == "scan" and stacked:
                z, score = scan_score(layer, z, score, stacked)
                continue
            for k in range(block.count):
                one = {name: value[k] for name, value in stacked.items()}
                z, score = layer.forward_and_score(z, score, one)
        return score

    def inverse_and_log_det(
        self, y: TensorVariable, params: Sequence[_Raw], *, loop: Loop = "unroll"
    ) -> tuple[TensorVariable, TensorVariable]:
        """Map posterior-space points to base draws.

        Parameters
        ----------
        y : TensorVariable, shape (..., dim)
            Points on the posterior side.
        params : sequence of Mapping[str, TensorVariable] or of TensorVariable
            Raw parameters of each block, stacked or as a vector.
        loop : {'unroll', 'scan'}
            As in `forward_and_log_det`; there are no kernels of inverses.

        Returns
        -------
        z : TensorVariable, shape (..., dim)
            The base draws whose forward image is ``y``.
        log_det : TensorVariable, shape (...)
            The log-determinant of the *forward* map at ``z``, in nats.

        Raises
        ------
        FlowShapeError
            If a point or a parameter does not have the shape that the chain needs.
        NotInvertibleError
            If a layer has no inverse.
        """
        self._check_inverse()
        return self._apply(y, params, loop, is_inverse=True)

    def _apply(
        self, points: TensorVariable, params: Sequence[_Raw], loop: Loop, *, is_inverse: bool
    ) -> tuple[TensorVariable, TensorVariable]:
        if loop not in ("unroll", "scan", "kernel"):
            raise ArgumentError(f"loop must be 'unroll', 'scan' or 'kernel', got {loop!r}")
        points = self._check_points(points)
        steps = list(zip(self.blocks, self._check_params(params), strict=True))
        log_dets = []
        for block, raw in reversed(steps) if is_inverse else steps:
            points, log_det = self._apply_block(block, points, raw, loop, is_inverse=is_inverse)
            log_dets.append(log_det)
        total = log_dets[0]
        for log_det in log_dets[1:]:
            total = total + log_det
        return points, total

    def _apply_block(
        self, block: Block, points: TensorVariable, raw: _Raw, loop: Loop, *, is_inverse: bool
    ) -> tuple[TensorVariable, TensorVariable]:
        layer = block.layer
        kernel = block.kernel(loop)
        if kernel is not None and points.ndim == 2 and not is_inverse:
            theta = (
                pt.join(0, *(v.ravel() for v in raw.values())) if isinstance(raw, Mapping) else raw
            )
            return kernel.kernel_forward_and_log_det(points, theta)
        raw = raw if isinstance(raw, Mapping) else block.unflatten(raw, self.dim)
        one = layer.inverse_and_log_det if is_inverse else layer.forward_and_log_det
        if block.count > 1 and isinstance(layer, FusedFlow):
            if not _is_thin(block, points, loop):
                fused = (
                    layer.stack_inverse_and_log_det
                    if is_inverse
                    else layer.stack_forward_and_log_det
                )
                return fused(points, layer.constrain(raw))
            layers = [layer.constrain(part) for part in block.split(raw)]
        else:
            # Constrained once for the whole stack, outside of any loop.
            stacked = layer.constrain(raw)
            # A loop runs over parameters, so layers without any are copied.
            if block.count > 1 and loop == "scan" and stacked:
                return scan_layers(one, points, stacked, is_inverse=is_inverse)
            layers = [{name: v[k] for name, v in stacked.items()} for k in range(block.count)]
        total = None
        for params in layers[:: -1 if is_inverse else 1]:
            points, log_det = one(points, params)
            total = log_det if total is None else total + log_det
        return points, total

    def _check_inverse(self) -> None:
        if without := self.words_without_inverse:
            raise NotInvertibleError(f"no inverse of the chain: {', '.join(without)} has none")

    def _check_points(self, points: TensorVariable) -> TensorVariable:
        points = pt.as_tensor_variable(points)
        if points.ndim == 0:
            raise FlowShapeError(f"points must have shape (..., {self.dim}), got a scalar")
        return with_shape("points", points, (*points.type.shape[:-1], self.dim))

    def _check_params(self, params: Sequence[_Raw]) -> list[_Raw]:
        if len(params) != len(self.blocks):
            raise FlowShapeError(
                f"expected parameters of {len(self.blocks)} blocks, got {len(params)}"
            )
        checked: list[_Raw] = []
        for index, (shapes, raw) in enumerate(zip(self.param_shapes(), params, strict=True)):
            block = self.blocks[index]
            where = f"block {index} ({block.layer.word})"
            if not isinstance(raw, Mapping):
                all_of_it = f"the parameters of {where}"
                checked.append(with_shape(all_of_it, raw, (block.size(self.dim),)))
                continue
            if raw.keys() != shapes.keys():
                raise FlowShapeError(
                    f"{where} expects the parameters {', '.join(shapes)}, got {', '.join(raw)}"
                )
            checked.append(
                {
                    name: with_shape(f"{name} of {where}", raw[name], shape)
                    for name, shape in shapes.items()
                }
            )
        return checked


def _is_thin(block: Block, points: TensorVariable, loop: Loop) -> bool:
    """Whether few layers take few points (n, dim) faster one by one than fused."""
    known = [n for n in points.type.shape if n is not None]
    is_small = len(known) == points.ndim and math.prod(known) < MIN_FUSED
    return loop == "scan" and is_small and block.count <= MAX_COPIED
