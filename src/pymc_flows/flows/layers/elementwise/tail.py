"""Learnt weights of the tails."""

import math
from dataclasses import dataclass

import numpy as np
import pytensor.tensor as pt
from pytensor.gradient import disconnected_grad
from pytensor.tensor import TensorVariable

from pymc_flows.flows.base import Arrays, Flow, Pair, Params, Shapes
from pymc_flows.flows.numerics import floor
from pymc_flows.formula.registry import register_flow

# The heaviest tail: 1 is that of a Cauchy distribution.
_HEAVIEST = 2.0
# Weight at jitter 0: at |z| = 3 the map differs by 5 % from the identity.
_START = 0.01
# From this |z| on, the map continues along its tangent. A draw of N(0, 1) is farther out with
# probability 1e-15, and exp(h z² / 2) is still finite in float32 for the heaviest tail.
_LAST = 8.0


@register_flow
@dataclass(frozen=True)
class Tail(Flow):
    r"""Tail weights: z' = z exp(h z² / 2), with one h ≥ 0 on either side.

    A flow of Lipschitz maps cannot make heavy tails of those of its normal base, and a base with
    heavy tails is hard to train. So [1]_ put an elementwise layer with learnt tail weights at the
    end, as here. It maps N(0, 1) to a distribution whose P(\|z'\| > x) falls about
    as :math:`x^{-1/h}`, like that of Student's t with 1/h degrees of freedom. Put the layer where
    coordinates are of order 1, before scale and location: ``planar*8-tail-scale-loc``.

    The map is Tukey's h transform with an h per side, whose inverse is Lambert's W [2]_. That of
    [1]_, :math:`\pm (\operatorname{erfc}(|z|/\sqrt 2)^{-h} - 1) / h`, has the same tails but is not
    the identity for any h: at h = 0 it turns N(0, 1) into a Laplace distribution.

    Raw ``left`` and ``right`` (dim,) give h = max(2 / (1 + exp(−raw)), δ), with δ = 1e-15 in
    float64 and 1e-6 in float32. Beyond \|z\| = 8 the map continues along its tangent, so that
    nothing overflows. The log-determinant is Σ h z² / 2 + log(1 + h z²).

    At jitter 0 all h are 0.01, which is nearly the identity.

    References
    ----------
    .. [1] Hickling & Prangle, Flexible Tails for Normalizing Flows, ICML 2025, arXiv:2406.16971.
    .. [2] Goerg, The Lambert Way to Gaussianize Heavy-Tailed Data with the Inverse of Tukey's h
       Transformation as a Special Case, 2015, section 2, arXiv:1010.2265.
    """

    word = "tail"
    equation = "z exp(h z²/2), h per side"
    has_inverse = True
    is_elementwise = True

    def param_shapes(self, dim: int) -> Shapes:
        """``left`` (dim,) and ``right`` (dim,)."""
        return {"left": (dim,), "right": (dim,)}

    def reference_params(self, dim: int, count: int, rng: np.random.Generator) -> Arrays:
        """Light tails."""
        raw = np.full((count, dim), math.log(_START / (_HEAVIEST - _START)))
        return {"left": raw, "right": raw.copy()}

    def constrain(self, raw: Params) -> Params:
        """``left`` (dim,) and ``right`` (dim,): the h of each side."""
        return {
            side: pt.maximum(
                np.asarray(_HEAVIEST, value.dtype) * pt.sigmoid(value), floor(value.dtype)
            )
            for side, value in raw.items()
        }

    def forward_and_log_det(self, z: TensorVariable, params: Params) -> Pair:
        """Stretch the tails."""
        last = np.asarray(_LAST, z.dtype)
        within = pt.maximum(pt.minimum(z, last), -last)
        w = _side(z, params) * pt.sqr(within)
        z_new = pt.exp(w / 2) * (within + (z - within) * (1 + w))
        return z_new, (w / 2 + pt.log1p(w)).sum(axis=-1)

    def inverse_and_log_det(self, y: TensorVariable, params: Params) -> Pair:
        """Shrink the tails: w = h z² solves w exp(w) = h y²."""
        last, tiny = np.asarray(_LAST, y.dtype), np.finfo(y.dtype).tiny
        h = _side(y, params)
        w_last = h * last**2
        y_last = last * pt.exp(w_last / 2)
        within = pt.maximum(pt.minimum(y, y_last), -y_last)
        w = _lambert_w_of_exp(pt.log(h) + 2 * pt.log(pt.maximum(pt.abs(within), tiny)))
        z = within * pt.exp(-w / 2) + (y - within) * pt.exp(-w_last / 2) / (1 + w_last)
        return z, (w / 2 + pt.log1p(w)).sum(axis=-1)


def _side(points: TensorVariable, params: Params) -> TensorVariable:
    return pt.switch(pt.gt(disconnected_grad(points), 0), params["right"], params["left"])


def _lambert_w_of_exp(x: TensorVariable) -> TensorVariable:
    """Lambert's W of exp(x): the w > 0 with w + log(w) = x.

    It takes Newton steps on that equation (Iacono & Boyd, New approximations to the principal
    real-valued branch of the Lambert W-function, Adv. Comput. Math. 43, 2017, eq. 12 and 15). Their
    start has an error of 5 %, and each step squares the error.
    """
    # For smaller x, w is below the rounding of 1 + w.
    x = pt.maximum(x, np.asarray(-60, x.dtype))
    size = pt.softplus(x)
    w = size * (1 - pt.log1p(size) / (2 + size))
    for _ in range(4):
        w = w / (1 + w) * (1 + x - pt.log(w))
    return w
