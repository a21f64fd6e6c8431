"""Shift and scale of each coordinate."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytensor.tensor as pt
from pytensor.tensor import TensorVariable

from pymc_flows.flows.base import Flow
from pymc_flows.flows.numerics import INVERSE_SOFTPLUS_ONE, positive, zeros_of_batch
from pymc_flows.formula.registry import register_flow

__all__ = ["Loc", "Scale"]


@register_flow
@dataclass(frozen=True)
class Loc(Flow):
    """Shift: z' = z + μ.

    Raw parameter ``loc`` (dim,) is μ itself. At jitter 0 the map is the identity.
    """

    word: ClassVar[str] = "loc"
    equation: ClassVar[str] = "z + μ"
    has_inverse: ClassVar[bool] = True
    is_volume_preserving: ClassVar[bool] = True
    is_affine: ClassVar[bool] = True
    is_elementwise: ClassVar[bool] = True

    def param_shapes(self, dim: int) -> dict[str, tuple[int, ...]]:
        """``loc`` (dim,)."""
        return {"loc": (dim,)}

    def reference_params(
        self, dim: int, count: int, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """No shift."""
        return {"loc": np.zeros((count, dim))}

    def constrain(self, raw: Mapping[str, TensorVariable]) -> dict[str, TensorVariable]:
        """Any shift is valid."""
        return {"loc": raw["loc"]}

    def forward_and_log_det(
        self, z: TensorVariable, params: Mapping[str, TensorVariable]
    ) -> tuple[TensorVariable, TensorVariable]:
        """Add μ; the log-determinant is 0."""
        return z + params["loc"], zeros_of_batch(z)

    def inverse_and_log_det(
        self, y: TensorVariable, params: Mapping[str, TensorVariable]
    ) -> tuple[TensorVariable, TensorVariable]:
        """Subtract μ; the log-determinant is 0."""
        return y - params["loc"], zeros_of_batch(y)


@register_flow
@dataclass(frozen=True)
class Scale(Flow):
    """Scale: z' = σ ∘ z.

    Raw parameter ``rho`` (dim,) gives σ = max(softplus(ρ), δ) > 0, with δ = 1e-15 in float64 and
    1e-6 in float32. At jitter 0 the map is the identity.
    """

    word: ClassVar[str] = "scale"
    equation: ClassVar[str] = "σ ∘ z"
    has_inverse: ClassVar[bool] = True
    is_affine: ClassVar[bool] = True
    is_elementwise: ClassVar[bool] = True

    def param_shapes(self, dim: int) -> dict[str, tuple[int, ...]]:
        """``rho`` (dim,)."""
        return {"rho": (dim,)}

    def reference_params(
        self, dim: int, count: int, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Unit scale."""
        return {"rho": np.full((count, dim), INVERSE_SOFTPLUS_ONE)}

    def constrain(self, raw: Mapping[str, TensorVariable]) -> dict[str, TensorVariable]:
        """``sigma`` (dim,), positive."""
        return {"sigma": positive(raw["rho"])}

    def forward_and_log_det(
        self, z: TensorVariable, params: Mapping[str, TensorVariable]
    ) -> tuple[TensorVariable, TensorVariable]:
        """Multiply by σ; the log-determinant is Σ log σ."""
        return z * params["sigma"], _log_det(z, params)

    def inverse_and_log_det(
        self, y: TensorVariable, params: Mapping[str, TensorVariable]
    ) -> tuple[TensorVariable, TensorVariable]:
        """Divide by σ; the log-determinant is Σ log σ."""
        return y / params["sigma"], _log_det(y, params)


def _log_det(points: TensorVariable, params: Mapping[str, TensorVariable]) -> TensorVariable:
    return zeros_of_batch(points) + pt.log(params["sigma"]).sum()
