"""Monotone splines of single coordinates."""

from dataclasses import dataclass

import numpy as np
from pytensor.tensor import TensorVariable

from pymc_flows.flows.base import Arrays, Flow, Pair, Params, Shapes
from pymc_flows.flows.checks import check_positive
from pymc_flows.flows.layers.elementwise.rational_quadratic import (
    check_bins,
    spline_table,
    transform,
    transform_back,
)
from pymc_flows.formula.registry import register_flow


@register_flow
@dataclass(frozen=True)
class Spline(Flow):
    r"""Spline: z' = RQ(z) in each coordinate.

    RQ is a monotone rational-quadratic spline from (−bound, −bound) to (bound, bound) with
    ``bins`` bins (section 3.1 of [1]_), and the identity outside of that square. It is continuously
    differentiable: its slope is 1 at both corners. Widths and heights of the bins are softmaxes of
    raw values, with at least 1/1000 of the square each. Slopes at inner knots are softplus of raw
    values, and at least 1/1000.

    The raw parameter is ``bins`` (dim, 3 bins − 1): widths, heights, slopes. The inverse is the
    root of a quadratic equation, in a form without cancellation.

    At jitter 0 all raw values are 0 and the map is the identity. The layer does nothing to points
    outside of the square, so the layers before it should keep most points inside.

    Parameters
    ----------
    bins : int
        Number of bins.
    bound : float
        Half the side of the square.

    References
    ----------
    .. [1] Durkan, Bekasov, Murray & Papamakarios, Neural Spline Flows, NeurIPS 2019,
       arXiv:1906.04032.
    """

    word = "spline"
    equation = "RQ(z), a spline"
    has_inverse = True
    is_elementwise = True
    bins: int = 8
    bound: float = 5.0

    def __post_init__(self) -> None:
        """Check the options."""
        check_bins(self.word, self.bins)
        check_positive(self.word, "bound", self.bound)

    def param_shapes(self, dim: int) -> Shapes:
        """``bins`` (dim, 3 bins - 1)."""
        return {"bins": (dim, 3 * self.bins - 1)}

    def reference_params(self, dim: int, count: int, rng: np.random.Generator) -> Arrays:
        """Bins of one width and height, and unit slopes."""
        return {"bins": np.zeros((count, dim, 3 * self.bins - 1))}

    def constrain(self, raw: Params) -> Params:
        """``table`` (dim, 6, bins): six numbers of each bin, see `spline_table`."""
        return {"table": spline_table(raw["bins"], self.bins, self.bound)}

    def forward_and_log_det(self, z: TensorVariable, params: Params) -> Pair:
        """Evaluate the splines; the log-determinant is the sum of their log-slopes."""
        value, log_slope = transform(z, params["table"], self.bound)
        return value, log_slope.sum(axis=-1)

    def inverse_and_log_det(self, y: TensorVariable, params: Params) -> Pair:
        """Solve a quadratic equation in each coordinate."""
        value, log_slope = transform_back(y, params["table"], self.bound)
        return value, log_slope.sum(axis=-1)
