"""Shift and scale of each coordinate."""

from dataclasses import dataclass

import numpy as np
from pytensor.tensor import TensorVariable

from pymc_flows.flows.base import Arrays, Flow, Pair, Params, Shapes
from pymc_flows.flows.numerics import (
    INVERSE_SOFTPLUS_ONE,
    log_det_of_scale,
    positive,
    zeros_of_batch,
)
from pymc_flows.formula.registry import register_flow


@register_flow
@dataclass(frozen=True)
class Loc(Flow):
    """Shift: z' = z + μ.

    Raw parameter ``loc`` (dim,) is μ itself. At jitter 0 the map is the identity.
    """

    word = "loc"
    equation = "z + μ"
    has_inverse = True
    is_volume_preserving = True
    is_affine = True
    is_elementwise = True

    def param_shapes(self, dim: int) -> Shapes:
        """``loc`` (dim,)."""
        return {"loc": (dim,)}

    def reference_params(self, dim: int, count: int, rng: np.random.Generator) -> Arrays:
        """No shift."""
        return {"loc": np.zeros((count, dim))}

    def constrain(self, raw: Params) -> Params:
        """Any shift is valid."""
        return {"loc": raw["loc"]}

    def forward_and_log_det(self, z: TensorVariable, params: Params) -> Pair:
        """Add μ; the log-determinant is 0."""
        return z + params["loc"], zeros_of_batch(z)

    def inverse_and_log_det(self, y: TensorVariable, params: Params) -> Pair:
        """Subtract μ; the log-determinant is 0."""
        return y - params["loc"], zeros_of_batch(y)


@register_flow
@dataclass(frozen=True)
class Scale(Flow):
    """Scale: z' = σ ∘ z.

    Raw parameter ``rho`` (dim,) gives σ = max(softplus(ρ), δ) > 0, with δ = 1e-15 in float64 and
    1e-6 in float32. At jitter 0 the map is the identity.
    """

    word = "scale"
    equation = "σ ∘ z"
    has_inverse = True
    is_affine = True
    is_elementwise = True

    def param_shapes(self, dim: int) -> Shapes:
        """``rho`` (dim,)."""
        return {"rho": (dim,)}

    def reference_params(self, dim: int, count: int, rng: np.random.Generator) -> Arrays:
        """Unit scale."""
        return {"rho": np.full((count, dim), INVERSE_SOFTPLUS_ONE)}

    def constrain(self, raw: Params) -> Params:
        """``sigma`` (dim,), positive."""
        return {"sigma": positive(raw["rho"])}

    def forward_and_log_det(self, z: TensorVariable, params: Params) -> Pair:
        """Multiply by σ; the log-determinant is Σ log σ."""
        return z * params["sigma"], log_det_of_scale(z, params["sigma"])

    def inverse_and_log_det(self, y: TensorVariable, params: Params) -> Pair:
        """Divide by σ; the log-determinant is Σ log σ."""
        return y / params["sigma"], log_det_of_scale(y, params["sigma"])
