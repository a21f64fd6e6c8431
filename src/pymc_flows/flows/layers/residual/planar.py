"""Planar flow of Rezende & Mohamed."""

from dataclasses import dataclass

import numpy as np
import pytensor.tensor as pt
from pytensor.tensor import TensorVariable

from pymc_flows.flows.base import Arrays, KernelFlow, Pair, Params, Shapes
from pymc_flows.flows.kernels.planar import PlanarStack
from pymc_flows.flows.layers.residual.roots import planar_root
from pymc_flows.flows.numerics import (
    INVERSE_SOFTPLUS_ONE,
    is_zero_square,
    positive,
    squared_norm,
    unit_directions,
)
from pymc_flows.formula.registry import register_flow


@register_flow
@dataclass(frozen=True)
class Planar(KernelFlow):
    r"""Planar: z' = z + û tanh(wᵀz + b).

    Stretches or contracts space along û near the hyperplane wᵀz = −b (eq. 10 of [1]_). It is
    invertible when wᵀû ≥ −1, so raw ``u`` is moved along w until wᵀû = −1 + softplus(wᵀu)
    (appendix A.1 of [1]_):

    .. math::
        \hat u = u + (m(x) - x) \frac{w}{\|w\|^2},
        \qquad m(x) = -1 + \log(1 + e^x), \quad x = w^\top u.

    s = 1 + wᵀû = max(softplus(x), δ), with δ = 1e-15 in float64 and 1e-6 in float32, is kept beside
    û, since wᵀû computed from a rounded û can be −1 or less. With s and h = tanh(wᵀz + b), the
    log-determinant log(1 + (1 − h²) wᵀû), eq. 12 of [1]_, is log(h² + (1 − h²) s), in which no term
    is negative. With w = 0, or ‖w‖ too small to be squared, û = u and s = 1: the map is a shift.

    The inverse solves the scalar equation a + (s − 1) tanh(a) = wᵀz' + b for a = wᵀz + b.

    At jitter 0 w is a random direction and û = 0: the map is the identity, and the gradient with
    respect to u is not zero.

    References
    ----------
    .. [1] Rezende & Mohamed, Variational Inference with Normalizing Flows, ICML 2015,
       arXiv:1505.05770.
    """

    word = "planar"
    equation = "z + û tanh(wᵀz + b)"
    has_inverse = True

    def param_shapes(self, dim: int) -> Shapes:
        """``b`` (), ``u`` (dim,) and ``w`` (dim,)."""
        return {"b": (), "u": (dim,), "w": (dim,)}

    def reference_params(self, dim: int, count: int, rng: np.random.Generator) -> Arrays:
        """Unit w, and u along w such that û is 0: softplus(wᵀu) = 1."""
        w = unit_directions(rng, count, dim)
        return {"b": np.zeros(count), "u": INVERSE_SOFTPLUS_ONE * w, "w": w}

    def constrain(self, raw: Params) -> Params:
        """``b`` (), ``s`` () = 1 + wᵀû > 0, ``u_hat`` (dim,) and ``w`` (dim,)."""
        u, w = raw["u"], raw["w"]
        x = (w * u).sum(axis=-1)
        square = squared_norm(w)
        is_shift = is_zero_square(square)
        # m(x) − x = softplus(−x) − 1, without the cancellation between m(x) and x.
        along = pt.switch(is_shift, 0, (pt.softplus(-x) - 1) / pt.switch(is_shift, 1, square))
        return {
            "b": raw["b"],
            "s": pt.switch(is_shift, 1, positive(x)),
            "u_hat": u + along[..., None] * w,
            "w": w,
        }

    def forward_and_log_det(self, z: TensorVariable, params: Params) -> Pair:
        """Move points along û."""
        h = pt.tanh((z * params["w"]).sum(axis=-1) + params["b"])
        return z + h[..., None] * params["u_hat"], _log_det(h, params["s"])

    def inverse_and_log_det(self, y: TensorVariable, params: Params) -> Pair:
        """Solve for the activation of the preimage, then move back along û."""
        c = (y * params["w"]).sum(axis=-1) + params["b"]
        h = pt.tanh(planar_root(params["s"], c))
        return y - h[..., None] * params["u_hat"], _log_det(h, params["s"])

    def forward_and_score(self, z: TensorVariable, score: TensorVariable, params: Params) -> Pair:
        """Solve with the Jacobian I + û (1 − h²) wᵀ by the formula of Sherman & Morrison."""
        u_hat, w, s = params["u_hat"], params["w"], params["s"]
        h = pt.tanh((z * w).sum(axis=-1) + params["b"])
        slope = 1 - pt.sqr(h)
        det = pt.sqr(h) + slope * s
        # d log det / da with a = wᵀz + b is (s − 1) d(1 − h²)/da / det.
        by_a = -2 * h * slope * (s - 1) / det
        score = score - by_a[..., None] * w
        along = (score * u_hat).sum(axis=-1) * slope / det
        return z + h[..., None] * u_hat, score - along[..., None] * w

    def stack(self, dim: int) -> PlanarStack:
        """Move points along the û of each layer in turn."""
        return PlanarStack()


def _log_det(h: TensorVariable, s: TensorVariable) -> TensorVariable:
    square = pt.sqr(h)
    return pt.log(square + (1 - square) * s)
