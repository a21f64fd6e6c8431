"""Diagonal plus low-rank affine map."""

from dataclasses import dataclass

import numpy as np
import pytensor.tensor as pt
from pytensor.gradient import disconnected_grad
from pytensor.tensor import TensorVariable

from pymc_flows.errors import ArgumentError
from pymc_flows.flows.base import Arrays, KernelFlow, Pair, Params, Shapes
from pymc_flows.flows.kernels.lowrank import LowRankStack
from pymc_flows.flows.numerics import (
    INVERSE_SOFTPLUS_ONE,
    floor,
    log_det_of_scale,
    positive,
    squared_norm,
    unit_directions,
    unit_vector,
)
from pymc_flows.formula.registry import register_flow


@register_flow
@dataclass(frozen=True)
class LowRank(KernelFlow):
    r"""Low rank: z' = D (I + û_r w_rᵀ) ⋯ (I + û_1 w_1ᵀ) z, with a diagonal D = diag(σ).

    The product is the identity plus a matrix of rank r, I + Û T Wᵀ with a triangular T. So
    ``lowrank(rank=4)-loc`` is a Gaussian with a covariance of factor structure (as in [1]_), whose
    cost is linear in the dimension. Other than there, the r directions can be narrower than the
    rest as well as wider.

    By the matrix determinant lemma the determinant of a factor is s_k = 1 + w_kᵀû_k, and the
    log-determinant of the map is Σ log σ + Σ log s_k. Only the direction of raw ``w`` matters; the
    first axis takes its place if ‖w‖ is below δ. Raw ``u`` is moved along w until
    s = max(softplus(wᵀu), δ) > 0, as in the planar flow, so the product is never singular: the
    determinant of I + U Vᵀ for any U and V could be zero or negative. The inverse of a factor is
    I − û_k w_kᵀ / s_k (Woodbury's formula). σ = max(softplus(ρ), δ), and δ is 1e-15 in float64 and
    1e-6 in float32.

    At jitter 0 the w_k are random directions and Û = 0: the map is the identity, and the gradient
    with respect to u is not zero.

    Parameters
    ----------
    rank : int
        Number of factors; at most the number of dimensions is used.

    References
    ----------
    .. [1] Ong, Nott & Smith, Gaussian variational approximation with a factor covariance structure,
       J. Comput. Graph. Stat. 27(3), 2018, arXiv:1701.03208.
    """

    word = "lowrank"
    equation = "σ ∘ Π (I + û wᵀ) z"
    has_inverse = True
    is_affine = True
    rank: int = 4

    def __post_init__(self) -> None:
        """Raise for a rank below 1."""
        if self.rank < 1:
            raise ArgumentError(f"rank must be at least 1, got {self.rank!r}")

    def param_shapes(self, dim: int) -> Shapes:
        """``rho`` (dim,), ``u`` and ``w`` (rank, dim)."""
        rank = min(self.rank, dim)
        return {"rho": (dim,), "u": (rank, dim), "w": (rank, dim)}

    def reference_params(self, dim: int, count: int, rng: np.random.Generator) -> Arrays:
        """Unit scale, unit w, and u along w such that û is 0: softplus(wᵀu) = 1."""
        rank = min(self.rank, dim)
        w = unit_directions(rng, count * rank, dim).reshape(count, rank, dim)
        rho = np.full((count, dim), INVERSE_SOFTPLUS_ONE)
        return {"rho": rho, "u": INVERSE_SOFTPLUS_ONE * w, "w": w}

    def constrain(self, raw: Params) -> Params:
        """``s`` (rank,) and ``sigma`` (dim,), positive; ``u_hat`` and unit ``w`` (rank, dim)."""
        u, w = raw["u"], raw["w"]
        is_zero = pt.lt(disconnected_grad(squared_norm(w)), floor(w.dtype) ** 2)
        w = unit_vector(pt.switch(is_zero[..., None], 0, w))
        x = (w * u).sum(axis=-1)
        # (softplus(x) − 1) − x = softplus(−x) − 1, without cancellation.
        u_hat = u + (pt.softplus(-x) - 1)[..., None] * w
        return {"s": positive(x), "sigma": positive(raw["rho"]), "u_hat": u_hat, "w": w}

    def forward_and_log_det(self, z: TensorVariable, params: Params) -> Pair:
        """Multiply by the factors, the first row first, then by σ."""
        log_det = log_det_of_scale(z, params["sigma"]) + pt.log(params["s"]).sum()
        for k in range(params["s"].type.shape[0]):
            part = (z * params["w"][k]).sum(axis=-1)
            z = z + part[..., None] * params["u_hat"][k]
        return z * params["sigma"], log_det

    def inverse_and_log_det(self, y: TensorVariable, params: Params) -> Pair:
        """Divide by σ, then undo the factors, the last row first."""
        z = y / params["sigma"]
        for k in reversed(range(params["s"].type.shape[0])):
            part = (z * params["w"][k]).sum(axis=-1) / params["s"][k]
            z = z - part[..., None] * params["u_hat"][k]
        return z, log_det_of_scale(y, params["sigma"]) + pt.log(params["s"]).sum()

    def stack(self, dim: int) -> LowRankStack:
        """All factors of a block."""
        return LowRankStack(min(self.rank, dim))
