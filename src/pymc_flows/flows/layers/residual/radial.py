"""Radial flow of Rezende & Mohamed."""

from dataclasses import dataclass

import numpy as np
import pytensor.tensor as pt
from pytensor.gradient import disconnected_grad
from pytensor.tensor import TensorVariable

from pymc_flows.flows.base import Arrays, KernelFlow, Pair, Params, Shapes
from pymc_flows.flows.kernels.radial import RadialStack
from pymc_flows.flows.numerics import INVERSE_SOFTPLUS_ONE, event_dim, norm, positive
from pymc_flows.formula.registry import register_flow


@register_flow
@dataclass(frozen=True)
class Radial(KernelFlow):
    r"""Radial: z' = z + β (z − z_ref) / (α + r) with r = ‖z − z_ref‖.

    Attracts points to ``z_ref`` or pushes them away from it (eq. 14 of [1]_). It needs α > 0 and
    β ≥ −α to be invertible (appendix A.2 of [1]_): raw parameters ``a`` and ``b`` give
    α = max(softplus(a), δ) and s = α + β = max(softplus(b), δ), with δ = 1e-15 in float64 and 1e-6
    in float32. The sum s is kept beside β, since α + β computed from a rounded β can be 0. With s,

    .. math::
        \log\left|\det\frac{\partial z'}{\partial z}\right| = (d - 1) \log\frac{s + r}{\alpha + r}
            + \log\frac{r (r + 2\alpha) + s\alpha}{(\alpha + r)^2},

    which is (1 + βh)^(d−1) (1 + βh + βh'r) of eq. 14 in [1]_, in terms without cancellation. The
    inverse has a closed form: r solves r² + (s − r') r − α r' = 0, with r' the distance of the
    image.

    At jitter 0 the map is the identity (α = s = 1).

    References
    ----------
    .. [1] Rezende & Mohamed, Variational Inference with Normalizing Flows, ICML 2015,
       arXiv:1505.05770.
    """

    word = "radial"
    equation = "z + β (z − z_ref) / (α + ‖z − z_ref‖)"
    has_inverse = True

    def param_shapes(self, dim: int) -> Shapes:
        """``a`` (), ``b`` () and ``z_ref`` (dim,)."""
        return {"a": (), "b": (), "z_ref": (dim,)}

    def reference_params(self, dim: int, count: int, rng: np.random.Generator) -> Arrays:
        """α = s = 1 around centres drawn from N(0, I)."""
        return {
            "a": np.full(count, INVERSE_SOFTPLUS_ONE),
            "b": np.full(count, INVERSE_SOFTPLUS_ONE),
            # Repeats with the same centre would have the same gradient and stay equal.
            "z_ref": rng.standard_normal((count, dim)),
        }

    def constrain(self, raw: Params) -> Params:
        """``alpha`` () and ``s`` () = α + β, both positive, ``beta`` () and ``z_ref`` (dim,)."""
        alpha, s = positive(raw["a"]), positive(raw["b"])
        return {"alpha": alpha, "beta": s - alpha, "s": s, "z_ref": raw["z_ref"]}

    def forward_and_log_det(self, z: TensorVariable, params: Params) -> Pair:
        """Move points along their ray from ``z_ref``."""
        offset = z - params["z_ref"]
        radius = norm(offset)
        h = 1 / (params["alpha"] + radius)
        z_new = z + (params["beta"] * h)[..., None] * offset
        return z_new, _log_det(radius, params, event_dim(z))

    def inverse_and_log_det(self, y: TensorVariable, params: Params) -> Pair:
        """Solve the quadratic equation for the radius of the preimage."""
        alpha, s = params["alpha"], params["s"]
        offset = y - params["z_ref"]
        radius = _inverse_radius(norm(offset), alpha, s)
        shrink = (alpha + radius) / (s + radius)
        z = params["z_ref"] + shrink[..., None] * offset
        return z, _log_det(radius, params, event_dim(y))

    def stack(self, dim: int) -> RadialStack:
        """Move points along rays from each ``z_ref`` in turn."""
        return RadialStack()


def _log_det(radius: TensorVariable, params: Params, dim: int | TensorVariable) -> TensorVariable:
    alpha, s = params["alpha"], params["s"]
    tangential = pt.log((s + radius) / (alpha + radius))
    along = pt.log(radius * (radius + 2 * alpha) + s * alpha) - 2 * pt.log(alpha + radius)
    return pt.cast(dim - 1, radius.dtype) * tangential + along


def _inverse_radius(
    image: TensorVariable, alpha: TensorVariable, s: TensorVariable
) -> TensorVariable:
    """Non-negative root of r² − p r − α r' = 0, with r' the radius of the image and p = r' − s."""
    p = image - s
    root = pt.sqrt(p * p + 4 * alpha * image)
    # Of the two forms of the root, take the one that adds numbers of one sign. Numerator and
    # denominator have switches of their own, so that no branch divides by 0. The square root is
    # positive: where p = 0, the image's radius is s.
    is_adding = pt.ge(disconnected_grad(p), 0)
    numerator = pt.switch(is_adding, p + root, 2 * alpha * image)
    return numerator / pt.switch(is_adding, 2, root - p)
