"""Householder reflections, one or a fused product of many."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pytensor.tensor as pt
from pytensor.tensor import TensorVariable
from pytensor.tensor.linalg import solve_triangular

from pymc_flows.flows.base import Arrays, FusedFlow, KernelFlow, Pair, Params, Shapes
from pymc_flows.flows.kernels.householder import HouseholderStack
from pymc_flows.flows.numerics import (
    first_axis,
    is_zero_square,
    squared_norm,
    unit_directions,
    zeros_of_batch,
)
from pymc_flows.formula.registry import register_flow

# Where vectors are longer than their number by this factor, points are multiplied by T, not V by T:
# faster by a fifth for 10 vectors in 100 dimensions and more, slower in 10 dimensions.
LONG = 4


@register_flow
@dataclass(frozen=True)
class Householder(FusedFlow, KernelFlow):
    r"""Householder: z' = (I − 2 v vᵀ / ‖v‖²) z.

    Reflects space in the hyperplane orthogonal to ``v`` (the Householder flow of [1]_): volume is
    preserved and the map is its own inverse. Only the direction v / ‖v‖ matters. The first axis
    takes the place of v = 0, and of v with ‖v‖ too small to be squared.

    A block of K layers is one matrix: with the vectors as the rows of V,

    .. math::
        H_0 H_1 \cdots H_{K-1} = I - V^\top T V,
        \qquad T^{-1} = \tfrac12 \operatorname{diag}(V V^\top)
        + \operatorname{striu}(V V^\top),

    with T upper triangular (the UT transform, [2]_), and points are rows: z' = z − z Vᵀ T V.

    At jitter 0 directions come in equal pairs, whose reflections cancel. A block of odd length has
    one more: a single reflection is never near the identity, but it maps N(0, I) to itself.

    References
    ----------
    .. [1] Tomczak & Welling, Improving Variational Auto-Encoders using Householder Flow, 2016,
       arXiv:1611.09630.
    .. [2] Joffrain, Low, Quintana-Ortí, van de Geijn & Van Zee, Accumulating Householder
       transformations, revisited, ACM Trans. Math. Softw. 32(2), 2006, doi:10.1145/1141885.1141886.
    """

    word = "hh"
    equation = "(I − 2vvᵀ/‖v‖²) z"
    has_inverse = True
    is_volume_preserving = True
    is_affine = True

    def param_shapes(self, dim: int) -> Shapes:
        """``v`` (dim,)."""
        return {"v": (dim,)}

    def reference_params(self, dim: int, count: int, rng: np.random.Generator) -> Arrays:
        """Unit directions in equal pairs: v_0 = v_1, v_2 = v_3 and so on."""
        pairs = unit_directions(rng, (count + 1) // 2, dim)
        return {"v": np.repeat(pairs, 2, axis=0)[:count]}

    def constrain(self, raw: Params) -> Params:
        """``v`` (dim,), not 0, and ``c`` () = 2 / ‖v‖², whose gradient is a smaller graph."""
        v = raw["v"]
        square = squared_norm(v)
        is_zero = is_zero_square(square)
        return {
            "v": pt.switch(is_zero[..., None], first_axis(v), v),
            "c": 2 / pt.switch(is_zero, 1, square),
        }

    def forward_and_log_det(self, z: TensorVariable, params: Params) -> Pair:
        """Reflect once; the log-determinant is 0."""
        v = params["v"]
        return z - (params["c"] * (z * v).sum(axis=-1))[..., None] * v, zeros_of_batch(z)

    def inverse_and_log_det(self, y: TensorVariable, params: Params) -> Pair:
        """Reflect once: the map is its own inverse."""
        return self.forward_and_log_det(y, params)

    def forward_and_score(self, z: TensorVariable, score: TensorVariable, params: Params) -> Pair:
        """Reflect point and score, since the Jacobian is orthogonal."""
        return self.forward_and_log_det(z, params)[0], self.forward_and_log_det(score, params)[0]

    def stack_forward_and_log_det(self, z: TensorVariable, params: Params) -> Pair:
        """All reflections of a block, ``v`` (count, dim), the first row first."""
        return _reflect(z, params["v"], is_inverse=False), zeros_of_batch(z)

    def stack_inverse_and_log_det(self, y: TensorVariable, params: Params) -> Pair:
        """All reflections of a block, the last row first: the transposed matrix."""
        return _reflect(y, params["v"], is_inverse=True), zeros_of_batch(y)

    def stack_forward_and_score(
        self, z: TensorVariable, score: TensorVariable, params: Params
    ) -> Pair:
        """All reflections of a block, of points and scores."""
        v = params["v"]
        return _reflect(z, v, is_inverse=False), _reflect(score, v, is_inverse=False)

    def stack(self, dim: int) -> HouseholderStack:
        """All reflections of a block; numba would take 30 s to compile the fused products."""
        return HouseholderStack()

    def note(self, dim: int) -> str:
        """Say that the layer cannot learn in 1 dimension."""
        if dim == 1:
            return "in 1 dimension a reflection is z → −z whatever v is: its gradient is zero"
        return ""


def _reflect(points: TensorVariable, v: TensorVariable, *, is_inverse: bool) -> TensorVariable:
    """Points (..., dim) after all reflections in the rows of ``v`` (count, dim), or before them."""
    gram = v @ v.T
    identity = pt.eye(v.shape[0], dtype=v.dtype)
    solve = partial(solve_triangular, pt.triu(gram) - identity * gram / 2, lower=False, b_ndim=2)
    count, dim = v.type.shape
    if None not in (count, dim) and dim > LONG * count:
        t = solve(identity)
        return points - points @ v.T @ (t.T if is_inverse else t) @ v
    tv = solve(v)
    return points - (points @ tv.T @ v if is_inverse else points @ v.T @ tv)
