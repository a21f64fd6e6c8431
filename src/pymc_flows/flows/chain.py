"""The chain of blocks that a formula stands for."""

import functools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pytensor.tensor as pt
from pytensor.tensor import TensorVariable

from pymc_flows.errors import ArgumentError, FlowShapeError, NotInvertibleError
from pymc_flows.flows.base import Arrays, Flow, Pair, Shapes
from pymc_flows.flows.block import Block, Loop, Raw
from pymc_flows.flows.checks import check_positive_int, with_shape

__all__ = ["Block", "Chain", "Loop"]


@dataclass(frozen=True)
class Chain:
    """Layers applied one after the other, the first block first.

    The chain maps base draws z0 to posterior-space points z, and ``ln q(z) = ln q0(z0) - log_det``.
    It owns no parameters: its methods take the raw parameters of each block, either a mapping of
    values that are stacked on a leading axis (count,), or one vector, see `Block.unflatten`.

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
        """Raise for an empty chain, or a dimension that is not a positive integer."""
        check_positive_int("the dimension of a chain", self.dim)
        if not isinstance(self.blocks, tuple) or not self.blocks:
            raise FlowShapeError(f"a chain needs a tuple of blocks, got {self.blocks!r}")

    def __len__(self) -> int:
        """Return the number of layers, repeats counted."""
        return sum(map(len, self.blocks))

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

    def param_shapes(self) -> tuple[Shapes, ...]:
        """Shape (count, ...) of each raw parameter of each block, names in alphabetical order."""
        return tuple(block.param_shapes(self.dim) for block in self.blocks)

    def initial_params(
        self, *, jitter: float, rng: np.random.Generator, dtype: str
    ) -> tuple[Arrays, ...]:
        """Draw raw start values: reference + jitter · N(0, 1).

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
        self, z: TensorVariable, params: Sequence[Raw], *, loop: Loop = "unroll"
    ) -> Pair:
        """Map base draws to posterior-space points.

        Parameters
        ----------
        z : TensorVariable, shape (..., dim)
            Base draws.
        params : sequence of Mapping[str, TensorVariable] or of TensorVariable
            Raw parameters of each block, stacked or as a vector.
        loop : {'unroll', 'scan', 'kernel'}
            How repeats enter the graph: copied, as one `pytensor.scan` over the stacked parameters,
            or as a kernel Op, for points (n, dim) and layers that have one (others are copied).
            Fused layers are one map, unless a scan would take few of them over few points.

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
        """Whether `score` costs little: every layer is affine, or has its own method for it."""
        general, layers = Flow.forward_and_score, [block.layer for block in self.blocks]
        return self.has_inverse and all(
            layer.is_affine or type(layer).forward_and_score is not general for layer in layers
        )

    def score(
        self, z: TensorVariable, params: Sequence[Raw], *, loop: Loop = "unroll"
    ) -> TensorVariable:
        """Gradient of ln q with respect to the point, at the forward images of base draws.

        The score is carried from layer to layer with the points, beginning with −z, the score of
        the standard normal base (Vaitl, Winkler, Richter & Kessel, Fast and unified path gradient
        estimators for normalizing flows, ICLR 2024, arXiv:2403.15881). Do not differentiate
        through it.

        Parameters
        ----------
        z : TensorVariable, shape (..., dim)
            Base draws.
        params, loop
            As in `forward_and_log_det`; there are no kernels of scores.

        Returns
        -------
        TensorVariable, shape (..., dim)

        Raises
        ------
        FlowShapeError
            If a point or a parameter does not have the shape that the chain needs.
        NotInvertibleError
            If a layer has no inverse.
        """
        self.check_inverse()
        z, steps = self._checked(z, params, loop)
        score = -z
        for block, raw in steps:
            z, score = block.score(z, score, raw, loop)
        return score

    def inverse_and_log_det(
        self, y: TensorVariable, params: Sequence[Raw], *, loop: Loop = "unroll"
    ) -> Pair:
        """Map posterior-space points to base draws.

        Parameters
        ----------
        y : TensorVariable, shape (..., dim)
            Points on the posterior side.
        params, loop
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
        self.check_inverse()
        return self._apply(y, params, loop, is_inverse=True)

    def _apply(
        self, points: TensorVariable, params: Sequence[Raw], loop: Loop, *, is_inverse: bool
    ) -> Pair:
        points, steps = self._checked(points, params, loop)
        log_dets = []
        for block, raw in reversed(steps) if is_inverse else steps:
            points, log_det = block.apply(points, raw, loop, is_inverse=is_inverse)
            log_dets.append(log_det)
        return points, functools.reduce(operator.add, log_dets)

    def check_inverse(self) -> None:
        """Raise `NotInvertibleError` if a layer has no inverse."""
        if without := self.words_without_inverse:
            raise NotInvertibleError(f"the chain has no inverse: {', '.join(without)} has none")

    def _checked(
        self, points: TensorVariable, params: Sequence[Raw], loop: Loop
    ) -> tuple[TensorVariable, list[tuple[Block, Raw]]]:
        """The points, and each block with its parameters; raise unless all of them fit."""
        if loop not in ("unroll", "scan", "kernel"):
            raise ArgumentError(f"loop must be 'unroll', 'scan' or 'kernel', got {loop!r}")
        points = pt.as_tensor_variable(points)
        if points.ndim == 0:
            raise FlowShapeError(f"points must have shape (..., {self.dim}), got a scalar")
        points = with_shape("points", points, (*points.type.shape[:-1], self.dim))
        return points, list(zip(self.blocks, self._check_params(params), strict=True))

    def _check_params(self, params: Sequence[Raw]) -> list[Raw]:
        if len(params) != len(self.blocks):
            raise FlowShapeError(
                f"expected parameters of {len(self.blocks)} blocks, got {len(params)}"
            )
        checked: list[Raw] = []
        for index, (block, raw) in enumerate(zip(self.blocks, params, strict=True)):
            shapes = block.param_shapes(self.dim)
            where = f"block {index} ({block.layer.word})"
            if not isinstance(raw, Mapping):
                size = (block.size(self.dim),)
                checked.append(with_shape(f"the parameters of {where}", raw, size))
            elif raw.keys() == shapes.keys():
                names = {name: f"{name} of {where}" for name in shapes}
                checked.append({k: with_shape(names[k], raw[k], shapes[k]) for k in shapes})
            else:
                raise FlowShapeError(
                    f"{where} expects the parameters {', '.join(shapes)}, got {', '.join(raw)}"
                )
        return checked
