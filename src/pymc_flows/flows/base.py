"""The contract of a layer.

A layer is a frozen specification: it knows the shapes, the start and the constraint of its
parameters and the map that they define, and it owns no arrays. That makes it equal by value and
picklable, and lets it be tested with plain constants.

Direction: ``forward`` maps a base draw z0 to a point z of the posterior's unconstrained space, and
``log_det`` is ``log|det d forward / d z0|``, so that ``ln q(z) = ln q0(z0) - log_det``. Both
methods that compute a map speak of this one log-determinant.

Shapes: the last axis of a point is the event axis ``(dim,)``; everything left of it is batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar

import numpy as np
import pytensor
from pytensor.tensor import TensorVariable

from pymc_flows.errors import NotInvertibleError
from pymc_flows.flows.numerics import zeros_of_batch

type Params = Mapping[str, TensorVariable]
"""Parameters of a layer by name, or of a block, on a leading axis (count,)."""
type Pair = tuple[TensorVariable, TensorVariable]
"""Points (..., dim) with their log-determinants (...), or with their scores (..., dim)."""
type Shapes = dict[str, tuple[int, ...]]
type Arrays = dict[str, np.ndarray]

# `Flow.note` of a layer whose network has no inputs.
AFFINE = "in 1 dimension an affine map"


class Flow(ABC):
    """A layer: one invertible map with parameters.

    Subclasses are dataclasses with ``frozen=True`` whose fields are the options that a formula can
    set. ``register_flow`` makes one available to formulas.

    Attributes
    ----------
    word : str
        The layer's name in a formula.
    equation : str
        The map on one line, for tables.
    has_inverse : bool
        ``inverse_and_log_det`` is defined for every parameter value.
    is_volume_preserving : bool
        ``log_det`` is zero everywhere.
    is_affine : bool
        The map is ``A z + c``.
    is_elementwise : bool
        Each component of the result depends on the same component of the point alone.
    period : int
        Number of repeats of a block after which their fixed parts, such as masks, start over.
    """

    word: ClassVar[str]
    equation: ClassVar[str]
    has_inverse: ClassVar[bool] = False
    is_volume_preserving: ClassVar[bool] = False
    is_affine: ClassVar[bool] = False
    is_elementwise: ClassVar[bool] = False
    period: ClassVar[int] = 1

    @abstractmethod
    def param_shapes(self, dim: int) -> Shapes:
        """Shape of each raw parameter of one layer, names in alphabetical order."""

    @abstractmethod
    def reference_params(self, dim: int, count: int, rng: np.random.Generator) -> Arrays:
        """Raw values at jitter 0 for a block of ``count`` repeats: float64, (count, ...) each."""

    @abstractmethod
    def constrain(self, raw: Params) -> Params:
        """Turn raw parameters, any real numbers, into the ones that the map needs.

        Works on any leading axes, so that a whole stacked block is constrained at once. The result
        may have other names than the raw parameters. A scalar that enters the log-determinant is
        made here, with its floor: computing it again from the others could cross the floor.

        The last of the leading axes counts repeats. A layer with a ``period`` adds what differs
        between them; without leading axes it is the first repeat.
        """

    @abstractmethod
    def forward_and_log_det(self, z: TensorVariable, params: Params) -> Pair:
        """Map base to posterior.

        Parameters
        ----------
        z : TensorVariable, shape (..., dim)
            Points on the base side.
        params : Mapping[str, TensorVariable]
            Constrained parameters of one layer.

        Returns
        -------
        z_new : TensorVariable, shape (..., dim)
        log_det : TensorVariable, shape (...)
            ``log|det d z_new / d z|`` in nats.
        """

    def inverse_and_log_det(self, y: TensorVariable, params: Params) -> Pair:
        """Map posterior to base; a layer with ``has_inverse`` defines this.

        Parameters
        ----------
        y : TensorVariable, shape (..., dim)
            Points on the posterior side.
        params : Mapping[str, TensorVariable]
            Constrained parameters of one layer.

        Returns
        -------
        z : TensorVariable, shape (..., dim)
            The points whose forward image is ``y``.
        log_det : TensorVariable, shape (...)
            The log-determinant of the *forward* map at ``z``, in nats.

        Raises
        ------
        NotInvertibleError
            If the layer has no inverse.
        """
        raise NotInvertibleError(f"the flow {self.word!r} has no inverse")

    def forward_and_score(self, z: TensorVariable, score: TensorVariable, params: Params) -> Pair:
        r"""Carry a density's score through the map: of z, then of its image.

        With :math:`J = \partial z' / \partial z`,

        .. math::
            \nabla \ln q'(z') = J^{-\top} (\nabla \ln q(z) - \nabla_z \log|\det J|).

        By default this is the gradient of ln q' through the inverse; a layer may override it.

        Parameters
        ----------
        z : TensorVariable, shape (..., dim)
            Points on the base side.
        score : TensorVariable, shape (..., dim)
            Gradient of the log density of the points, at the points.
        params : Mapping[str, TensorVariable]
            Constrained parameters of one layer.

        Returns
        -------
        z_new, score_new : TensorVariable, shape (..., dim)

        Raises
        ------
        NotInvertibleError
            If the layer has no inverse.
        """
        z_new, _ = self.forward_and_log_det(z, params)
        return z_new, _score_of_image(score, z_new, *self.inverse_and_log_det(z_new, params))

    def note(self, dim: int) -> str:
        """A remark for a formula's table on this layer in ``dim`` dimensions; empty for none."""
        return ""


class FixedFlow(Flow):
    """A layer without parameters."""

    def param_shapes(self, dim: int) -> Shapes:
        """Nothing."""
        return {}

    def reference_params(self, dim: int, count: int, rng: np.random.Generator) -> Arrays:
        """Nothing."""
        return {}

    def constrain(self, raw: Params) -> Params:
        """Nothing."""
        return {}


class FusedFlow(Flow):
    """A layer whose repeats are computed as one map, without a loop over them."""

    @abstractmethod
    def stack_forward_and_log_det(self, z: TensorVariable, params: Params) -> Pair:
        """``forward_and_log_det`` of a block with parameters (count, ...)."""

    @abstractmethod
    def stack_inverse_and_log_det(self, y: TensorVariable, params: Params) -> Pair:
        """``inverse_and_log_det`` of a block with parameters (count, ...)."""

    def stack_forward_and_score(
        self, z: TensorVariable, score: TensorVariable, params: Params
    ) -> Pair:
        """``forward_and_score`` of a block with parameters (count, ...)."""
        z_new, _ = self.stack_forward_and_log_det(z, params)
        return z_new, _score_of_image(score, z_new, *self.stack_inverse_and_log_det(z_new, params))


class KernelFlow(Flow):
    """A layer with a kernel Op for a block of it, where a backend compiles copies too slowly."""

    @abstractmethod
    def stack(self, dim: int) -> Callable[..., list[TensorVariable]]:
        """The kernel Op of a block in ``dim`` dimensions, a `kernels.stack_op.StackOp`."""

    def kernel_params(self, theta: TensorVariable, dim: int) -> TensorVariable:
        """What the kernel Op takes for the vector of a block's raw parameters."""
        return theta

    def kernel_forward_and_log_det(self, z: TensorVariable, theta: TensorVariable) -> Pair:
        """``forward_and_log_det`` of a block on z (n, dim).

        ``theta`` is the vector of the block's raw parameters, as `Block.unflatten` reads it.
        """
        dim = z.type.shape[-1]
        z_new, log_det, _ = self.stack(dim)(z, self.kernel_params(theta, dim))
        return z_new, zeros_of_batch(z) if self.is_volume_preserving else log_det


def _score_of_image(
    score: TensorVariable, z_new: TensorVariable, z: TensorVariable, log_det: TensorVariable
) -> TensorVariable:
    """Gradient w.r.t. z_new of a log density with a given score at z, both functions of z_new."""
    return pytensor.grad((score * z).sum() - log_det.sum(), z_new)
