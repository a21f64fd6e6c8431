"""Fixed mixing of coordinates."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from pytensor.tensor import TensorVariable

from pymc_flows.errors import ArgumentError
from pymc_flows.flows.base import FixedFlow, Pair, Params
from pymc_flows.flows.numerics import zeros_of_batch
from pymc_flows.formula.registry import register_flow

_KINDS = ("random", "reverse", "rotate")


@register_flow
@dataclass(frozen=True)
class Perm(FixedFlow):
    """Fixed mixing: z' = Q z, with an orthogonal Q that has no parameters.

    Between layers that treat coordinates differently, it lets each layer see them in another order,
    as the permutations between coupling layers in [1]_ do. Volume is preserved.

    Parameters
    ----------
    kind : {'reverse', 'random', 'rotate'}
        ``'reverse'`` takes coordinates from last to first. ``'random'`` is a random cycle, in which
        each coordinate takes the place of another. ``'rotate'`` is a random rotation or reflection,
        uniform among all.
    seed : int
        Seed of the random kinds. Equal layers are equal maps: give the layers of a formula
        different seeds.

    References
    ----------
    .. [1] Dinh, Sohl-Dickstein & Bengio, Density estimation using Real NVP, ICLR 2017, section 3.5,
       arXiv:1605.08803.
    """

    word = "perm"
    equation = "Q z, Q fixed and orthogonal"
    has_inverse = True
    is_volume_preserving = True
    is_affine = True
    kind: str = "reverse"
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the options."""
        if self.kind not in _KINDS:
            raise ArgumentError(f"kind must be one of {', '.join(_KINDS)}, got {self.kind!r}")
        if self.seed < 0:
            raise ArgumentError(f"seed must be at least 0, got {self.seed!r}")

    def forward_and_log_det(self, z: TensorVariable, params: Params) -> Pair:
        """Multiply by Q; the log-determinant is 0."""
        return self._mix(z, inverse=False), zeros_of_batch(z)

    def inverse_and_log_det(self, y: TensorVariable, params: Params) -> Pair:
        """Multiply by the transpose of Q; the log-determinant is 0."""
        return self._mix(y, inverse=True), zeros_of_batch(y)

    def note(self, dim: int) -> str:
        """Say that there is nothing to mix in 1 dimension."""
        return "in 1 dimension the map is z or −z" if dim == 1 else ""

    def _mix(self, points: TensorVariable, *, inverse: bool) -> TensorVariable:
        if self.kind == "reverse":
            return points[..., ::-1]
        dim = points.type.shape[-1]
        if self.kind == "random":
            order = _cycle(dim, self.seed)
            return points[..., np.argsort(order) if inverse else order]
        q = _rotation(dim, self.seed).astype(points.dtype)
        return points @ (q if inverse else q.T)


@lru_cache(maxsize=64)
def _cycle(dim: int, seed: int) -> np.ndarray:
    """Source of each coordinate: one cycle through all, so that none stays if dim > 1."""
    order = np.random.default_rng(seed).permutation(dim)
    source = np.empty(dim, int)
    source[order] = np.roll(order, 1)
    return source


@lru_cache(maxsize=64)
def _rotation(dim: int, seed: int) -> np.ndarray:
    """Orthogonal matrix, uniform once the signs of the QR decomposition are fixed."""
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((dim, dim)))
    return q * np.sign(np.diag(r))
