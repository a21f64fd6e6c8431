"""A logarithmic range for deep flows."""

import math
from dataclasses import dataclass

import numpy as np
import pytensor.tensor as pt
from pytensor.gradient import disconnected_grad
from pytensor.tensor import TensorVariable

from pymc_flows.errors import ArgumentError
from pymc_flows.flows.base import FixedFlow, Pair, Params
from pymc_flows.formula.registry import register_flow

# From this excess over the threshold on, the map continues along its tangent: otherwise its range
# would end at threshold + log(largest float). No draw of a flow gets there.
_LAST = 1e30


@register_flow
@dataclass(frozen=True)
class Loft(FixedFlow):
    r"""Log soft extension: the identity up to the threshold t, logarithmic beyond it.

    .. math::
        z' = \operatorname{sign}(z) \bigl(\min(|z|, t) + \log(1 + \max(|z| - t, 0))\bigr)

    in each coordinate (LOFT, [1]_). Deep stacks sometimes throw a draw very far, and its gradient
    then spoils a step; after this layer, which has no parameters, no draw is far. Put the scale of
    the posterior after it: ``nvp*20-loft-scale-loc``. The log-determinant is
    −Σ log(1 + max(\|z\| − t, 0)).

    Parameters
    ----------
    threshold : float
        Largest size that does not change.

    References
    ----------
    .. [1] Andrade, Stable Training of Normalizing Flows for High-dimensional Variational Inference,
       2024, arXiv:2402.16408.
    """

    word = "loft"
    equation = "z, beyond ±t: ±(t + log(1 ± z − t))"
    has_inverse = True
    is_elementwise = True
    threshold: float = 100.0

    def __post_init__(self) -> None:
        """Raise unless the threshold is a finite size."""
        if not (math.isfinite(self.threshold) and self.threshold >= 0):
            raise ArgumentError(f"threshold must be finite and at least 0, got {self.threshold!r}")

    def forward_and_log_det(self, z: TensorVariable, params: Params) -> Pair:
        """Take the logarithm of the excess over the threshold."""
        t, last = (np.asarray(value, z.dtype) for value in (self.threshold, _LAST))
        excess = pt.maximum(pt.abs(z) - t, 0)
        within = pt.minimum(excess, last)
        log_slope = -pt.log1p(within)
        shrunk = pt.maximum(excess - last, 0) / (1 + last) - log_slope
        return _outside(z, t, t + shrunk), log_slope.sum(axis=-1)

    def inverse_and_log_det(self, y: TensorVariable, params: Params) -> Pair:
        """Take the exponential of the excess over the threshold."""
        t, last = (np.asarray(value, y.dtype) for value in (self.threshold, np.log1p(_LAST)))
        excess = pt.maximum(pt.abs(y) - t, 0)
        within = pt.minimum(excess, last)
        grown = pt.expm1(within) + pt.maximum(excess - last, 0) * np.asarray(1 + _LAST, y.dtype)
        return _outside(y, t, t + grown), -within.sum(axis=-1)


def _outside(z: TensorVariable, t: np.ndarray, size: TensorVariable) -> TensorVariable:
    """Give z another size where it is beyond the threshold; its slope at 0 stays 1."""
    return pt.switch(pt.le(pt.abs(disconnected_grad(z)), t), z, pt.sign(z) * size)
