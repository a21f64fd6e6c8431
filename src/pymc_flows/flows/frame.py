"""The fixed coordinates of a flow: z = center + scale · T(z0)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.tensor import TensorVariable
from pytensor.tensor.linalg import solve_triangular

from pymc_flows.errors import FlowShapeError


@dataclass(frozen=True, eq=False)
class Frame:
    """A fixed affine map after the flow.

    If the posterior has about the mean ``center`` and the covariance ``scale scaleᵀ``, the flow
    works on coordinates of order one, whatever the units of the data.

    Parameters
    ----------
    center : ndarray, shape (dim,)
    scale : ndarray, shape (dim,) or (dim, dim), optional
        Positive factors, or a lower-triangular matrix with a positive diagonal; None for no scale.
    variables : tuple of (str, int), optional
        Names and sizes of the unconstrained variables, in the order of the coordinates. They
        prevent that the frame of one model is used with another.

    Raises
    ------
    FlowShapeError
        If the scale has another shape, is not finite, or has a diagonal that is not positive.
    """

    center: np.ndarray
    scale: np.ndarray | None = None
    variables: tuple[tuple[str, int], ...] | None = None

    def __post_init__(self) -> None:
        """Check the scale."""
        dim = len(self.center)
        if self.scale is None:
            return
        if self.scale.shape not in ((dim,), (dim, dim)):
            raise FlowShapeError(
                f"scale must have shape ({dim},) or ({dim}, {dim}), got {self.scale.shape}"
            )
        if not (np.isfinite(self.scale).all() and (_diagonal(self.scale) > 0).all()):
            raise FlowShapeError("scale must be finite with a positive diagonal")

    @property
    def is_elementwise(self) -> bool:
        """Whether no coordinates are mixed."""
        return self.scale is None or self.scale.ndim == 1

    @property
    def log_det(self) -> float:
        """log|det scale|, in nats."""
        return 0.0 if self.scale is None else float(np.log(_diagonal(self.scale)).sum())

    def astype(self, dtype: str) -> Frame:
        """Return the frame in another precision."""
        scale = None if self.scale is None else self.scale.astype(dtype)
        return Frame(self.center.astype(dtype), scale, self.variables)

    def widened(self, factor: float) -> Frame:
        """Return a frame with the same centre and the scale times a factor."""
        scale = np.ones(len(self.center)) if self.scale is None else self.scale
        return Frame(self.center, factor * scale, self.variables)

    def forward[T: (np.ndarray, TensorVariable)](self, z: T) -> T:
        """Map points (..., dim) of the flow to the unconstrained space."""
        if self.scale is None:
            return z + self.center
        if self.is_elementwise:
            return z * self.scale + self.center
        return z @ self.scale.T + self.center

    def graph(self, z: TensorVariable) -> tuple[TensorVariable, TensorVariable]:
        """The map of points (..., dim) and its log_det () as graphs, with the numbers as data.

        So a function that was compiled with one frame serves all frames of its form.
        """
        center = _data("center", self.center)
        log_det = _data("log_det", np.asarray(self.log_det, self.center.dtype))
        if self.scale is None:
            return z + center, log_det
        if self.is_elementwise:
            return z * _data("scale", self.scale) + center, log_det
        return z @ _data("scale", self.scale.T) + center, log_det

    def pullback(self, gradients: np.ndarray) -> np.ndarray:
        """Turn gradients (..., dim) at values of the map into gradients at its points."""
        if self.scale is None:
            return gradients
        return gradients * self.scale if self.is_elementwise else gradients @ self.scale

    def inverse[T: (np.ndarray, TensorVariable)](self, points: T) -> T:
        """Map points (..., dim) of the unconstrained space to the coordinates of the flow."""
        z = points - self.center
        if self.scale is None:
            return z
        if self.is_elementwise:
            return z / self.scale
        if isinstance(z, np.ndarray):
            from scipy import linalg  # slow to import

            return linalg.solve_triangular(
                self.scale, z.reshape(-1, z.shape[-1]).T, lower=True
            ).T.reshape(z.shape)
        return solve_triangular(pt.constant(self.scale), z[..., None], lower=True, b_ndim=2)[..., 0]


def _data(name: str, value: np.ndarray) -> TensorVariable:
    return pytensor.shared(np.asarray(value, order="C"), name, shape=value.shape, borrow=True)


def _diagonal(scale: np.ndarray) -> np.ndarray:
    return scale if scale.ndim == 1 else np.diagonal(scale)
