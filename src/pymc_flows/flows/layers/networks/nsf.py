"""Neural spline flow: coupling whose map is a spline."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytensor.tensor as pt
from pytensor.gradient import disconnected_grad
from pytensor.tensor import TensorVariable

from pymc_flows.flows.base import Arrays, Flow, Pair, Params, Shapes
from pymc_flows.flows.checks import check_positive
from pymc_flows.flows.layers.elementwise.rational_quadratic import (
    check_bins,
    spline_table,
    transform,
    transform_back,
)
from pymc_flows.flows.layers.networks.network import (
    check_network,
    check_waves,
    dense_reference,
    dense_shapes,
    gains,
    place_in_block,
    run_network,
    wave_features,
)
from pymc_flows.formula.registry import register_flow

type _Spline = Callable[[TensorVariable, TensorVariable, float], Pair]


@register_flow
@dataclass(frozen=True)
class NSF(Flow):
    r"""Neural spline flow: one half of the coordinates chooses splines for the other.

    With a the half that stays and b the half that moves (section 3.2 of [1]_),

    .. math::
        a' = a, \qquad b'_i = \mathrm{RQ}_i(b_i; a),
        \qquad \log\det = \sum_i \log \mathrm{RQ}_i'(b_i; a),

    where a dense network of a makes the bins of monotone splines. These are as in `Spline`: the
    identity outside of (−bound, bound), with an inverse in closed form.

    The halves swap roles from one repeat of a block to the next: the last ⌈dim/2⌉ coordinates move
    in the 1st, 3rd, ... layer and the first ⌈dim/2⌉ in the others. So blocks should have two layers
    or more. In 1 dimension there is nothing to depend on, and the map is a `Spline`.

    At jitter 0 hidden weights are random, the last matrix is 0, and the map is the identity.

    Parameters
    ----------
    hidden, depth : int
        Units in each hidden layer, and number of hidden layers. On the ridges ``pot4`` a second
        layer lowers the KL of ``nsf*4-scale-loc`` from 1.04 to 0.83 nats (10,000 steps). With
        ``depth=0`` the network is linear.
    bins : int
        Number of bins of each spline. 16 were no better than 8 on ``pot4``, and worse on ``pot2``.
    bound : float
        Half the side of the square outside of which splines are the identity.
    activation : {'tanh', 'relu', 'silu'}
        Function of hidden units.
    waves : int
        Number of sines of the coordinates that stay, as further inputs of the network, which does
        not learn oscillations without them. On the wave ``pot2``, fitted in coordinates scaled by
        (14, 2), ``spline(bins=16)-nsf(hidden=64, waves=64, frequency=20)`` gets a KL of 0.003 nats.
    frequency : float
        Standard deviation of the angular frequencies of the sines at the start, in radians per
        unit.

    References
    ----------
    .. [1] Durkan, Bekasov, Murray & Papamakarios, Neural Spline Flows, NeurIPS 2019,
       arXiv:1906.04032.
    """

    word = "nsf"
    equation = "(a, RQ(b; a)), splines"
    has_inverse = True
    period = 2
    hidden: int = 32
    depth: int = 2
    bins: int = 8
    bound: float = 5.0
    activation: str = "tanh"
    waves: int = 0
    frequency: float = 10.0

    def __post_init__(self) -> None:
        """Check the options."""
        check_network(self.word, self.hidden, self.depth, self.activation)
        check_bins(self.word, self.bins)
        check_positive(self.word, "bound", self.bound)
        check_waves(self.word, self.waves, self.frequency)

    def param_shapes(self, dim: int) -> Shapes:
        """``dense0`` (⌊dim/2⌋ + 1, hidden) to the last (hidden + 1, ⌈dim/2⌉ (3 bins - 1))."""
        n_moved = _n_moved(dim)
        # In 1 dimension the network sees a constant.
        inputs = max(dim - n_moved, 1)
        outputs = n_moved * (3 * self.bins - 1)
        shapes = dense_shapes(inputs + self.waves, self.hidden, self.depth, outputs)
        return {**shapes, **({"waves": (inputs + 1, self.waves)} if self.waves else {})}

    def reference_params(self, dim: int, count: int, rng: np.random.Generator) -> Arrays:
        """Random hidden units and waves, and a last matrix of zeros."""
        shapes = self.param_shapes(dim)
        waves = shapes.pop("waves", None)
        random = {} if waves is None else {"waves": rng.standard_normal((count, *waves))}
        return dense_reference(shapes, count, rng) | random

    def constrain(self, raw: Params) -> Params:
        """Scaled matrices, and whether the order of the coordinates is reversed, ``flip`` ()."""
        flip = place_in_block(np.array([False, True]), raw["dense0"])
        scaled = {
            name: matrix * gains(matrix.type.shape).astype(matrix.dtype)
            for name, matrix in raw.items()
            if name != "waves"
        }
        waves = {"waves": raw["waves"]} if self.waves else {}
        return {**scaled, **waves, "flip": pt.constant(flip)}

    def forward_and_log_det(self, z: TensorVariable, params: Params) -> Pair:
        """Evaluate the splines of the half that moves."""
        return self._couple(z, params, transform)

    def inverse_and_log_det(self, y: TensorVariable, params: Params) -> Pair:
        """Invert the splines: the network sees only coordinates that the layer did not change."""
        return self._couple(y, params, transform_back)

    def _couple(self, points: TensorVariable, params: Params, spline: _Spline) -> Pair:
        dim = points.type.shape[-1]
        n_moved = _n_moved(dim)
        flip = disconnected_grad(params["flip"])
        ordered = pt.switch(flip, points[..., ::-1], points)
        stays, moves = ordered[..., : dim - n_moved], ordered[..., dim - n_moved :]
        seen = stays if dim > 1 else pt.zeros_like(points)
        if self.waves:
            seen = wave_features(seen, params["waves"], self.frequency)
        out = run_network(seen, params, self.depth, self.activation)
        raw = out.reshape((*out.shape[:-1], n_moved, 3 * self.bins - 1))
        moved, log_slope = spline(moves, spline_table(raw, self.bins, self.bound), self.bound)
        result = pt.concatenate([stays, moved], axis=-1)
        return pt.switch(flip, result[..., ::-1], result), log_slope.sum(axis=-1)

    def note(self, dim: int) -> str:
        """Name the map in 1 dimension."""
        return "in 1 dimension a spline" if dim == 1 else ""


def _n_moved(dim: int) -> int:
    return (dim + 1) // 2
