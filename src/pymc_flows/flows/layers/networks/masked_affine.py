"""The base of affine coupling and autoregressive layers: a masked network of scales and shifts."""

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
import pytensor.tensor as pt
from pytensor.tensor import TensorVariable

from pymc_flows.flows.base import Arrays, Flow, Pair, Params, Shapes
from pymc_flows.flows.checks import check_choice, check_positive
from pymc_flows.flows.kernels.dense import DenseStack
from pymc_flows.flows.layers.networks.network import (
    check_network,
    dense_names,
    dense_reference,
    dense_shapes,
    gains,
    place_in_block,
    run_network,
)

_SHIFTS = ("after", "before")


@dataclass(frozen=True)
class MaskedAffine(Flow):
    """Base of layers that shift and scale coordinates by the outputs of a masked network.

    Raw parameters are the matrices of the network, ``dense0`` (dim + 1, hidden) to the last one
    (hidden + 1, 2 dim), or the only one (dim + 1, 2 dim). Columns of the last are log-scales, then
    shifts. The masks are constants that multiply the matrices once per step: masked entries have no
    effect.
    """

    has_inverse = True
    period = 2
    hidden: int = 32
    depth: int = 2
    clip: float = 1.0
    activation: str = "tanh"
    shift: str = "after"

    def __post_init__(self) -> None:
        """Check the options."""
        check_network(self.word, self.hidden, self.depth, self.activation)
        check_positive(self.word, "clip", self.clip)
        check_choice(self.word, "shift", self.shift, _SHIFTS)

    @abstractmethod
    def masks(self, dim: int) -> list[np.ndarray]:
        """The mask (period, inputs + 1, outputs) of each matrix, biases included, in order.

        That of the last matrix has ``dim`` outputs, for log-scales and shifts alike.
        """

    def param_shapes(self, dim: int) -> Shapes:
        """``dense0`` (dim + 1, hidden) to the last matrix (hidden + 1, 2 dim)."""
        return {**dense_shapes(dim, self.hidden, self.depth, 2 * dim)}

    def reference_params(self, dim: int, count: int, rng: np.random.Generator) -> Arrays:
        """Random hidden units, and a last matrix of zeros: scale 1 and shift 0."""
        return dense_reference(self.param_shapes(dim), count, rng)

    def constrain(self, raw: Params) -> Params:
        """The masked matrices; masks depend on the place in the block."""
        constrained = {}
        for name, factors in self._factors(raw["dense0"].type.shape[-2] - 1).items():
            placed = place_in_block(factors, raw[name])
            constrained[name] = raw[name] * pt.constant(placed.astype(raw[name].dtype))
        return constrained

    def _factors(self, dim: int) -> Arrays:
        """Factors of each raw matrix, (period, inputs + 1, outputs): masks and gains."""
        masks = self.masks(dim)
        masks[-1] = np.concatenate([masks[-1]] * 2, axis=-1)
        pairs = zip(dense_names(self.depth), masks, strict=True)
        return {name: mask * gains(mask.shape) for name, mask in pairs}

    def log_scale_and_shift(self, z: TensorVariable, params: Params) -> Pair:
        """Evaluate the network at ``z`` (..., dim): s within ±clip, and the shift of e^s z."""
        dim = z.type.shape[-1]
        out = run_network(z, params, self.depth, self.activation)
        clip = np.asarray(self.clip, out.dtype)
        s, t = clip * pt.tanh(out[..., :dim] / clip), out[..., dim:]
        return s, t * pt.exp(s) if self.shift == "before" else t

    def stack(self, dim: int) -> DenseStack:
        """Layers whose network sees the points that enter them; `MAF` has no kernel."""
        return DenseStack(self.hidden, self.depth, self.clip, self.activation, self.shift)

    def kernel_params(self, theta: TensorVariable, dim: int) -> TensorVariable:
        """The masked matrices, in one vector."""
        places = np.arange(theta.type.shape[0] // self.stack(dim).layer_size(dim)) % self.period
        factors = [np.ravel(of_place[places]) for of_place in self._factors(dim).values()]
        return theta * np.concatenate(factors).astype(theta.dtype)
