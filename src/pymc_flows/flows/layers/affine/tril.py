"""Dense lower-triangular affine map."""

from dataclasses import dataclass

import numpy as np
import pytensor.tensor as pt
from pytensor.tensor import TensorVariable
from pytensor.tensor.linalg import solve_triangular

from pymc_flows.flows.base import Arrays, KernelFlow, Pair, Params, Shapes
from pymc_flows.flows.kernels.tril import TrilStack
from pymc_flows.flows.numerics import INVERSE_SOFTPLUS_ONE, log_det_of_scale, positive
from pymc_flows.formula.registry import register_flow


@register_flow
@dataclass(frozen=True)
class Tril(KernelFlow):
    r"""Lower triangle: z' = L z with L = D (I + N).

    D = diag(σ) is positive and N strictly lower triangular, so ``tril-loc`` can be any Gaussian: it
    is the full-rank family of [1]_. The log-determinant is Σ log σ.

    Raw ``rho`` (dim,) gives σ = max(softplus(ρ), δ), with δ = 1e-15 in float64 and 1e-6 in float32.
    Raw ``lower`` (dim (dim − 1)/2,) is N, row by row. Adam moves every raw value by about its step
    size, whatever the target. With D in front, that step is relative to the scale of the
    coordinate; steps in entries of L would be too large for narrow coordinates and too small for
    wide ones. Dividing N by √dim or dim as well makes fits of 100 and 300 dimensions slower.

    At jitter 0 the map is the identity.

    References
    ----------
    .. [1] Kucukelbir, Tran, Ranganath, Gelman & Blei, Automatic Differentiation Variational
       Inference, JMLR 18(14), 2017, section 2.4, arXiv:1603.00788.
    """

    word = "tril"
    equation = "L z, L lower triangular"
    has_inverse = True
    is_affine = True

    def param_shapes(self, dim: int) -> Shapes:
        """``lower`` (dim (dim − 1)/2,) and ``rho`` (dim,)."""
        return {"lower": (dim * (dim - 1) // 2,), "rho": (dim,)}

    def reference_params(self, dim: int, count: int, rng: np.random.Generator) -> Arrays:
        """The identity matrix."""
        return {
            "lower": np.zeros((count, dim * (dim - 1) // 2)),
            "rho": np.full((count, dim), INVERSE_SOFTPLUS_ONE),
        }

    def constrain(self, raw: Params) -> Params:
        """``lower`` (dim (dim − 1)/2,), the rows of N, and ``sigma`` (dim,), positive."""
        return {"lower": raw["lower"], "sigma": positive(raw["rho"])}

    def forward_and_log_det(self, z: TensorVariable, params: Params) -> Pair:
        """Multiply by L."""
        sigma = params["sigma"]
        return (z + z @ _unpack(params).T) * sigma, log_det_of_scale(z, sigma)

    def inverse_and_log_det(self, y: TensorVariable, params: Params) -> Pair:
        """Solve the triangular system."""
        sigma = params["sigma"]
        dim = sigma.type.shape[-1]
        columns = (y / sigma).reshape((-1, dim)).T
        matrix = _unpack(params) + np.eye(dim, dtype=sigma.dtype)
        z = solve_triangular(matrix, columns, lower=True, b_ndim=2).T
        return pt.specify_shape(z.reshape(y.shape), y.type.shape), log_det_of_scale(y, sigma)

    def stack(self, dim: int) -> TrilStack:
        """Multiply by the L of each layer; numba would take 30 s to compile the products."""
        return TrilStack()


def _unpack(params: Params) -> TensorVariable:
    """N (dim, dim) from its packed rows."""
    lower, dim = params["lower"], params["sigma"].type.shape[-1]
    # Gathered from the packed values and a zero, since JAX is slower in scattering them.
    index = np.full((dim, dim), dim * (dim - 1) // 2)
    index[np.tril_indices(dim, -1)] = np.arange(index[0, 0])
    return pt.concatenate([lower, np.zeros(1, lower.dtype)])[index]
