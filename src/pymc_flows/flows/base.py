"""The contract of a layer.

A layer is a frozen specification: it knows the shapes, start values and constraints of its
parameters and the map that they define, and it owns no arrays. So layers are equal by value and
picklable, and can be tested with plain constants.

Direction: ``forward`` maps a base draw z0 to a point z of the posterior's unconstrained space, and
``log_det`` is ``log|det d forward / d z0|``, so that ``ln q(z) = ln q0(z0) - log_det``. The inverse
returns this log-determinant of the forward map, too.

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
"""Parameters of a layer by name; those of a block have a leading axis (count,)."""
type Pair = tuple[TensorVariable, TensorVariable]
"""Points (..., dim) with their log-determinants (...), or with their scores (..., dim)."""
type Shapes = dict[str, tuple[int, ...]]
type Arrays = dict[str, np.ndarray]

# `Flow.note` of a layer whose network has no inputs.
AFFINE = "in 1 dimension an affine map"


class Flow(ABC):
    """A layer: one invertible map with parameters.

    Subclasses are dataclasses with ``frozen=True``, whose fields are the options that a formula can
    set. ``register_flow`` makes a layer available to formulas.

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
        Number of repeats after which fixed parts of the layers of a block, such as masks, recur.
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
        """Shape of each raw parameter of one layer, with names in alphabetical order."""

    @abstractmethod
    def reference_params(self, dim: int, count: int, rng: np.random.Generator) -> Arrays:
        """Raw values at jitter 0 for a block of ``count`` repeats: float64, (count, ...) each."""

    @abstractmethod
    def constrain(self, raw: Params) -> Params:
        """Turn raw parameters, any real numbers, into those that the map needs.

        It works with any leading axes, so that a whole stacked block is constrained at once. The
        result may have other names than the raw parameters. A scalar that enters the
        log-determinant is made here, with its floor, since computing it again from other parameters
        could cross the floor.

        The last of the leading axes counts repeats. A layer with a ``period`` adds the fixed values
        of each repeat; without leading axes it is the first repeat.
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
        r"""Turn the score of a density at z into that of the mapped density at the image of z.

        With :math:`J = \partial z' / \partial z`,

        .. math::
            \nabla \ln q'(z') = J^{-\top} (\nabla \ln q(z) - \nabla_z \log|\det J|).

        By default the gradient of ln q' is taken through the inverse; a layer may override that.

        Parameters
        ----------
        z : TensorVariable, shape (..., dim)
            Points on the base side.
        score : TensorVariable, shape (..., dim)
            Gradient of the log density at the points.
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
        """Remark on this layer in ``dim`` dimensions, for tables of formulas; empty for none."""
        return ""


class FixedFlow(Flow):
    """A layer without parameters."""

    def param_shapes(self, dim: int) -> Shapes:
        """No parameters."""
        return {}

    def reference_params(self, dim: int, count: int, rng: np.random.Generator) -> Arrays:
        """No parameters."""
        return {}

    def constrain(self, raw: Params) -> Params:
        """No parameters."""
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
    """A layer with a kernel Op for a whole block, since numba compiles copies of it slowly."""

    @abstractmethod
    def stack(self, dim: int) -> Callable[..., list[TensorVariable]]:
        """The kernel Op of a block in ``dim`` dimensions, a `kernels.stack_op.StackOp`."""

    def kernel_params(self, theta: TensorVariable, dim: int) -> TensorVariable:
        """Turn the vector of a block's raw parameters into the vector for the kernel Op."""
        return theta

    def kernel_forward_and_log_det(self, z: TensorVariable, theta: TensorVariable) -> Pair:
        """``forward_and_log_det`` of a block on z (n, dim).

        ``theta`` is the vector of the block's raw parameters that `Block.unflatten` splits.
        """
        dim = z.type.shape[-1]
        z_new, log_det, _ = self.stack(dim)(z, self.kernel_params(theta, dim))
        return z_new, zeros_of_batch(z) if self.is_volume_preserving else log_det


def _score_of_image(
    score: TensorVariable, z_new: TensorVariable, z: TensorVariable, log_det: TensorVariable
) -> TensorVariable:
    """Gradient with respect to z_new of a log density with this score at z, a function of z_new."""
    return pytensor.grad((score * z).sum() - log_det.sum(), z_new)
