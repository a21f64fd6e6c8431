"""Neal's funnel."""

from dataclasses import dataclass
from math import log, pi
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from pymc_flows.targets.base import Target


@dataclass(frozen=True)
class Funnel(Target):
    """U(z) = ½ (z[0] / scale)² + Σᵢ (½ z[i]² e^{−z[0]} + ½ z[0]), i = 1, …, dim − 1.

    v = z[0] is normal, and given v all others are, with variance e^v [1]_: the scale of a
    hierarchical model without data. NUTS needs short steps in the neck, where v is low, and long
    ones in the mouth. Below z[0] of about −700 the density of points with other z[i] than 0
    underflows to 0.

    Attributes
    ----------
    name : str
        Name of the variable in `model`.
    dim : int
        Number of dimensions.
    scale : float
        Standard deviation of z[0].

    References
    ----------
    .. [1] Neal, Slice Sampling, Annals of Statistics 31(3), 2003, section 8, with dim = 10 and
       scale = 3.
    """

    dim: int = 10
    scale: float = 3.0

    @property
    def log_z(self) -> float:
        """Log normalising constant, in nats: ln scale + ½ dim ln(2π)."""
        return log(self.scale) + 0.5 * self.dim * log(2 * pi)

    def _log_density(self, z: Any, xp: ModuleType) -> Any:
        v, others = z[..., 0], z[..., 1:]
        narrow = -0.5 * ((others * xp.exp(-0.5 * v)[..., None]) ** 2).sum(-1)
        return -0.5 * (v / self.scale) ** 2 + narrow - 0.5 * (self.dim - 1) * v

    def _sample(self, n: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
        v = rng.normal(scale=self.scale, size=(n, 1))
        return np.concatenate([v, np.exp(v / 2) * rng.normal(size=(n, self.dim - 1))], axis=-1)


funnel = Funnel("funnel")
