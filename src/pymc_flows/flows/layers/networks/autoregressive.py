"""Inverse and masked autoregressive flows: each coordinate depends on those before it."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.gradient import disconnected_grad
from pytensor.tensor import TensorVariable

from pymc_flows.flows.base import AFFINE, KernelFlow, Pair, Params
from pymc_flows.flows.layers.networks.masked_affine import MaskedAffine
from pymc_flows.flows.layers.networks.network import place_in_block
from pymc_flows.formula.registry import register_flow

# Copies of the network run faster than a loop and, up to this number, compile faster.
_MOST_COPIES = 16

type _Step = Callable[[TensorVariable, TensorVariable, TensorVariable], TensorVariable]


@dataclass(frozen=True)
class _Autoregressive(MaskedAffine):
    """Base of layers with the masks of MADE: outputs of rank r see inputs of lower ranks only."""

    def masks(self, dim: int) -> list[np.ndarray]:
        """Every unit has a rank, and its inputs are units of ranks up to its own."""
        ranks = _ranks(dim)
        # Hidden ranks are spread evenly over those that some output may see.
        top = max(dim - 2, 0)
        units = np.floor(np.linspace(0, top + 1, self.hidden, endpoint=False))
        levels = [ranks, *[np.stack([units, units])] * self.depth]
        inner = [a[:, :, None] <= b[:, None, :] for a, b in itertools.pairwise(levels)]
        last = levels[-1][:, :, None] < ranks[:, None, :]
        return [
            np.concatenate([mask, np.ones_like(mask[:, :1])], axis=1).astype(float)
            for mask in (*inner, last)
        ]

    def constrain(self, raw: Params) -> Params:
        """The matrices without their hidden entries, and the ``rank`` (dim,) of coordinates."""
        first = raw["dense0"]
        ranks = _ranks(first.type.shape[-2] - 1)
        rank = place_in_block(ranks, first).astype(first.dtype)
        return {**super().constrain(raw), "rank": pt.constant(rank)}

    def parallel(self, points: TensorVariable, params: Params, step: _Step) -> Pair:
        """Map all coordinates at once: the network sees the given points."""
        s, t = self.log_scale_and_shift(points, params)
        return step(points, s, t), s.sum(axis=-1)

    def sequential(self, points: TensorVariable, params: Params, step: _Step) -> Pair:
        """Map one coordinate after the other: the network sees the result, which is exact.

        Each pass evaluates the whole network, and determines the coordinate of one more rank.
        """
        dim = points.type.shape[-1]
        result = s = pt.zeros_like(points)
        if dim <= _MOST_COPIES:
            for k in range(dim):
                result, s = self._advance(k, result, points, params, step)
            return result, s.sum(axis=-1)

        def advance(k: TensorVariable, result: TensorVariable, *fixed: TensorVariable) -> Pair:
            values = dict(zip(params, fixed[1:], strict=True))
            return self._advance(k, result, fixed[0], values, step)

        # Fixed values are handed over, or the loop would compute them again in each pass.
        results, scales = pytensor.scan(
            advance,
            sequences=[pt.arange(dim)],
            outputs_info=[result, None],
            non_sequences=[points, *params.values()],
            strict=True,
            return_updates=False,
        )
        return results[-1], scales[-1].sum(axis=-1)

    def _advance(
        self,
        k: TensorVariable | int,
        result: TensorVariable,
        points: TensorVariable,
        params: Params,
        step: _Step,
    ) -> Pair:
        """Coordinates of ranks up to k, with 0 for the others; and log-scales."""
        s, t = self.log_scale_and_shift(result, params)
        is_known = pt.le(disconnected_grad(params["rank"]), k)
        return pt.switch(is_known, step(points, s, t), 0), s


def _expand(z: TensorVariable, s: TensorVariable, t: TensorVariable) -> TensorVariable:
    return z * pt.exp(s) + t


def _contract(y: TensorVariable, s: TensorVariable, t: TensorVariable) -> TensorVariable:
    return (y - t) * pt.exp(-s)


def _ranks(dim: int) -> np.ndarray:
    """Rank (2, dim) of each coordinate: ascending at even places, descending at odd ones."""
    ranks = np.arange(dim)
    return np.stack([ranks, ranks[::-1]])


@register_flow
@dataclass(frozen=True)
class IAF(_Autoregressive, KernelFlow):
    r"""Inverse autoregressive flow: z'ᵢ = exp(sᵢ(z₍<i₎)) zᵢ + tᵢ(z₍<i₎).

    Each coordinate is scaled and shifted by a function of those before it (section 4 of [1]_, with
    exp(s) for σ): the Jacobian is triangular and log det = Σ sᵢ. One network makes all sᵢ and tᵢ,
    with the masks of MADE [2]_; log-scales are clipped softly, s = clip · tanh(x / clip). From one
    repeat of a block to the next the order of the coordinates is reversed.

    The forward map, which fitting and drawing need, computes all coordinates at once. The inverse,
    for densities of given points, is exact; it evaluates the network ``dim`` times, one coordinate
    after the other. `MAF` is the other way round. In 1 dimension the map is affine.

    At jitter 0 hidden weights are random, the last matrix is 0, and the map is the identity.

    Parameters
    ----------
    hidden, depth : int
        Units in each hidden layer, and number of hidden layers. With fewer than dim − 1 units, some
        neighbours in the order depend on the same coordinates. On the ridges ``pot2`` and ``pot4``
        a second layer lowers the KL of ``iaf*8-scale-loc`` from 0.56 and 0.96 to 0.49 and 0.78
        nats. Without hidden layers, ``depth=0``, log-scales and shifts are linear, as in a funnel.
    clip : float
        Bound on log-scales.
    activation : {'tanh', 'relu', 'silu'}
        Function of hidden units.
    shift : {'after', 'before'}
        ``'before'`` shifts first, z'ᵢ = exp(sᵢ) (zᵢ + tᵢ). In the neck of a funnel, where a scale
        vanishes, the error of a shift then vanishes, too.

    References
    ----------
    .. [1] Kingma, Salimans, Jozefowicz, Chen, Sutskever & Welling, Improved Variational Inference
       with Inverse Autoregressive Flow, NeurIPS 2016, arXiv:1606.04934.
    .. [2] Germain, Gregor, Murray & Larochelle, MADE: Masked Autoencoder for Distribution
       Estimation, ICML 2015, arXiv:1502.03509.
    """

    word = "iaf"
    equation = "exp(sᵢ(z₍<i₎)) zᵢ + tᵢ(z₍<i₎)"

    def forward_and_log_det(self, z: TensorVariable, params: Params) -> Pair:
        """Scale and shift all coordinates at once."""
        return self.parallel(z, params, _expand)

    def inverse_and_log_det(self, y: TensorVariable, params: Params) -> Pair:
        """Shift and scale back one coordinate after the other."""
        return self.sequential(y, params, _contract)

    def note(self, dim: int) -> str:
        """Say which direction is slow."""
        if dim == 1:
            return AFFINE
        return f"fast to fit; densities of given points take {dim} passes"


@register_flow
@dataclass(frozen=True)
class MAF(_Autoregressive):
    r"""Masked autoregressive flow: z'ᵢ = exp(sᵢ(z'₍<i₎)) zᵢ + tᵢ(z'₍<i₎).

    Each coordinate is scaled and shifted by a function of the *new* values of those before it (eq.
    3 of [1]_, with exp(α) = exp(s)): the Jacobian is triangular and log det = Σ sᵢ. One network
    makes all sᵢ and tᵢ, with the masks of MADE [2]_; log-scales are clipped softly, s = clip ·
    tanh(x / clip). From one repeat of a block to the next the order of the coordinates is reversed.

    The inverse computes all coordinates at once, so densities of given points are cheap. The
    forward map, which fitting and drawing need, evaluates the network ``dim`` times, one coordinate
    after the other. `IAF` is the other way round, and nearly always the better choice for fitting.
    In 1 dimension the map is affine.

    At jitter 0 hidden weights are random, the last matrix is 0, and the map is the identity.

    Parameters
    ----------
    hidden, depth : int
        Units in each hidden layer, and number of hidden layers. With fewer than dim − 1 units, some
        neighbours in the order depend on the same coordinates. With ``depth=0`` the network is
        linear.
    clip : float
        Bound on log-scales.
    activation : {'tanh', 'relu', 'silu'}
        Function of hidden units.
    shift : {'after', 'before'}
        ``'before'`` shifts first, z'ᵢ = exp(sᵢ) (zᵢ + tᵢ), as for `IAF`.

    References
    ----------
    .. [1] Papamakarios, Pavlakou & Murray, Masked Autoregressive Flow for Density Estimation,
       NeurIPS 2017, arXiv:1705.07057.
    .. [2] Germain, Gregor, Murray & Larochelle, MADE: Masked Autoencoder for Distribution
       Estimation, ICML 2015, arXiv:1502.03509.
    """

    word = "maf"
    equation = "exp(sᵢ(z'₍<i₎)) zᵢ + tᵢ(z'₍<i₎)"

    def forward_and_log_det(self, z: TensorVariable, params: Params) -> Pair:
        """Scale and shift one coordinate after the other."""
        return self.sequential(z, params, _expand)

    def inverse_and_log_det(self, y: TensorVariable, params: Params) -> Pair:
        """Shift and scale all coordinates back at once."""
        return self.parallel(y, params, _contract)

    def note(self, dim: int) -> str:
        """Say which direction is slow."""
        if dim == 1:
            return AFFINE
        return f"slow to fit: each step takes {dim} passes; iaf takes one"
