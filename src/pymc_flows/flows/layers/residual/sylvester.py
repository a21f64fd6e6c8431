"""Sylvester flow of van den Berg et al."""

from dataclasses import dataclass

import numpy as np
import pytensor.tensor as pt
from pytensor.tensor import TensorVariable

from pymc_flows.errors import ArgumentError
from pymc_flows.flows.base import Arrays, Flow, Pair, Params, Shapes
from pymc_flows.flows.layers.residual.roots import planar_root
from pymc_flows.flows.numerics import (
    INVERSE_SOFTPLUS_ONE,
    positive,
    unit_directions,
    unit_vector,
)
from pymc_flows.formula.registry import register_flow


@register_flow
@dataclass(frozen=True)
class Sylvester(Flow):
    r"""Sylvester: z' = z + Q R tanh(R̃ Qᵀ z + b), with orthonormal columns of Q.

    A planar flow with r directions at once (eq. 10 of [1]_): Q (dim, r) is orthonormal, R and R̃
    (r, r) are upper triangular, and the log-determinant is
    Σ log(1 + (1 − tanh²(a_i)) R_ii R̃_ii), with a = R̃ Qᵀ z + b (eq. 11). It is invertible when
    R_ii R̃_ii > −1 (theorem 2). Here R̃_ii = w_i > 0, which loses nothing since tanh is odd, and
    1 + R_ii R̃_ii = s_i > 0. Both are max(softplus(·), δ) of raw ``w`` and ``s``, with δ = 1e-15 in
    float64 and 1e-6 in float32, and R_ii = (s_i − 1) / w_i.

    The columns of Q are the images of the first r axes under r Householder reflections in raw ``v``
    (r, dim), section 3.2 of [1]_. Raw ``inner`` and ``outer`` (r (r − 1)/2,) are the entries of R̃
    and R above the diagonal, row by row.

    Since R and R̃ are triangular, the inverse finds the coordinates of Qᵀz from the last to the
    first, each as the root of the scalar equation of a planar flow.

    At jitter 0 the v are random directions and R = 0: the map is the identity. The gradient with
    respect to s and ``outer`` is not zero.

    Parameters
    ----------
    rank : int
        Number of directions r; at most the number of dimensions is used.

    References
    ----------
    .. [1] van den Berg, Hasenclever, Tomczak & Welling, Sylvester Normalizing Flows for Variational
       Inference, UAI 2018, arXiv:1803.05649.
    """

    word = "sylvester"
    equation = "z + Q R tanh(R̃ Qᵀ z + b)"
    has_inverse = True
    rank: int = 4

    def __post_init__(self) -> None:
        """Raise for a rank below 1."""
        if self.rank < 1:
            raise ArgumentError(f"rank must be at least 1, got {self.rank!r}")

    def param_shapes(self, dim: int) -> Shapes:
        """``b``, ``s`` and ``w`` (r,), ``inner`` and ``outer`` (r (r − 1)/2,), ``v`` (r, dim)."""
        r = min(self.rank, dim)
        above = (r * (r - 1) // 2,)
        return {"b": (r,), "inner": above, "outer": above, "s": (r,), "v": (r, dim), "w": (r,)}

    def reference_params(self, dim: int, count: int, rng: np.random.Generator) -> Arrays:
        """Random directions and R = 0."""
        values = {name: np.zeros((count, *s)) for name, s in self.param_shapes(dim).items()}
        values["s"] += INVERSE_SOFTPLUS_ONE
        values["w"] += INVERSE_SOFTPLUS_ONE
        r = min(self.rank, dim)
        values["v"] = unit_directions(rng, count * r, dim).reshape(count, r, dim)
        return values

    def constrain(self, raw: Params) -> Params:
        """``b``, ``s`` and ``w`` (r,), ``inner`` and ``outer`` as they are, ``q`` = Qᵀ (r, dim)."""
        v = unit_vector(raw["v"])
        r, dim = v.type.shape[-2:]
        q = np.eye(r, dim, dtype=v.dtype)
        for k in range(r):
            u = v[..., k, None, :]
            q = q - 2 * (q * u).sum(axis=-1)[..., None] * u
        kept = {name: raw[name] for name in ("b", "inner", "outer")}
        return {**kept, "q": q, "s": positive(raw["s"]), "w": positive(raw["w"])}

    def forward_and_log_det(self, z: TensorVariable, params: Params) -> Pair:
        """Move points within the span of Q."""
        q, s, w = params["q"], params["s"], params["w"]
        h = pt.tanh(z @ q.T @ _triangle(params["inner"], w).T + params["b"])
        moved = h @ _triangle(params["outer"], (s - 1) / w).T
        return z + moved @ q, _log_det(h, s)

    def inverse_and_log_det(self, y: TensorVariable, params: Params) -> Pair:
        """Solve for the activations of the preimage, the last first, then move back."""
        q, s, w = params["q"], params["s"], params["w"]
        r = q.type.shape[-2]
        inner, outer = _triangle(params["inner"], w), _triangle(params["outer"], (s - 1) / w)
        projected = y @ q.T
        x: list[TensorVariable] = [None] * r
        h: list[TensorVariable] = [None] * r
        for i in reversed(range(r)):
            left, shift = projected[..., i], params["b"][i]
            for j in range(i + 1, r):
                left = left - outer[i, j] * h[j]
                shift = shift + inner[i, j] * x[j]
            h[i] = pt.tanh(planar_root(s[i], inner[i, i] * left + shift))
            x[i] = left - outer[i, i] * h[i]
        activations = pt.stack(h, axis=-1)
        return y - activations @ outer.T @ q, _log_det(activations, s)


def _triangle(above: TensorVariable, diagonal: TensorVariable) -> TensorVariable:
    """Upper triangular matrix (r, r) from its entries above the diagonal, row by row."""
    r = diagonal.type.shape[-1]
    n = r * (r - 1) // 2
    index = np.full((r, r), n + r)
    index[np.triu_indices(r, 1)] = np.arange(n)
    np.fill_diagonal(index, n + np.arange(r))
    return pt.concatenate([above, diagonal, np.zeros(1, diagonal.dtype)])[index]


def _log_det(h: TensorVariable, s: TensorVariable) -> TensorVariable:
    square = pt.sqr(h)
    return pt.log(square + (1 - square) * s).sum(axis=-1)
