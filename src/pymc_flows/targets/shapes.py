"""Shapes that Gaussians do not fit: separate modes, a banana and a ring."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil, cos, erfc, exp, log, pi, sin, sqrt
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from pymc_flows.targets.base import Target


@dataclass(frozen=True)
class Mixture(Target):
    """U(z) = −ln Σ_k e^{−½ ‖z − mean_k‖² / sd²}.

    Round Gaussians of equal weight.

    Attributes
    ----------
    name : str
        Name of the variable in `model`.
    means : tuple of tuple of float, shape (modes, dim)
        Where the modes are.
    sd : float
        Standard deviation of each of them, in each direction.
    """

    means: tuple[tuple[float, ...], ...] = field(repr=False)
    sd: float

    @property
    def dim(self) -> int:
        """Number of dimensions."""
        return len(self.means[0])

    @property
    def log_z(self) -> float:
        """Log normalising constant, in nats: ln modes + ½ dim ln(2π sd²)."""
        return log(len(self.means)) + self.dim * (log(self.sd) + 0.5 * log(2 * pi))

    def nearest(self, z: npt.ArrayLike) -> npt.NDArray[np.intp]:
        """Positions (...) in ``means`` of the modes that are nearest to points (..., dim)."""
        distance = np.asarray(z)[..., None, :] - np.array(self.means)
        return (distance**2).sum(-1).argmin(-1)

    def _log_density(self, z: Any, xp: ModuleType) -> Any:
        means = np.array(self.means, np.result_type(z.dtype, np.float32))
        modes = -0.5 * (((z[..., None, :] - means) / self.sd) ** 2).sum(-1)
        # Relative to the highest mode, since far away all of them underflow.
        top = xp.max(modes, axis=-1)
        return top + xp.log(xp.exp(modes - top[..., None]).sum(-1))

    def _sample(self, n: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
        centre = np.array(self.means)[rng.integers(len(self.means), size=n)]
        return centre + self.sd * rng.normal(size=(n, self.dim))


@dataclass(frozen=True)
class Banana(Target):
    """U(z) = ½ (z[0] / scale)² + ½ ((z[1] − bend z[0]²) / width)².

    A ridge along a parabola, like that of Rosenbrock's function: z[0] is normal, and so is z[1]
    given z[0].

    Attributes
    ----------
    name : str
        Name of the variable in `model`.
    scale : float
        Standard deviation of z[0].
    width : float
        Standard deviation of z[1] around the parabola.
    bend : float
        Half the curvature of the parabola.
    """

    scale: float = 2.0
    width: float = 0.5
    bend: float = 0.5

    dim = 2

    @property
    def log_z(self) -> float:
        """Log normalising constant, in nats: ln(2π scale width)."""
        return log(2 * pi * self.scale * self.width)

    def _log_density(self, z: Any, xp: ModuleType) -> Any:
        z0, z1 = z[..., 0], z[..., 1]
        across = (z1 - self.bend * z0**2) / self.width
        return -0.5 * (z0 / self.scale) ** 2 - 0.5 * across**2

    def _sample(self, n: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
        z0 = rng.normal(scale=self.scale, size=n)
        return np.stack([z0, rng.normal(self.bend * z0**2, self.width)], axis=-1)


@dataclass(frozen=True)
class Ring(Target):
    """U(z) = ½ ((‖z‖ − radius) / width)².

    A round ridge, the same in all directions.

    Attributes
    ----------
    name : str
        Name of the variable in `model`.
    radius : float
        Distance of the ridge from the origin.
    width : float
        Standard deviation of its profile.
    """

    radius: float = 3.0
    width: float = 0.3

    dim = 2

    @cached_property
    def log_z(self) -> float:
        """Log normalising constant, in nats: ln(2π ∫ r e^{−½ ((r − radius) / width)²} dr)."""
        edge = self.radius / self.width
        profile = exp(-0.5 * edge**2) + edge * sqrt(pi / 2) * erfc(-edge / sqrt(2))
        return log(2 * pi * self.width**2 * profile)

    def _log_density(self, z: Any, xp: ModuleType) -> Any:
        square = z[..., 0] ** 2 + z[..., 1] ** 2
        # The square root has no derivative at 0, so the gradient would be NaN there. With the root
        # of 1 in its place it is 0, the mean over all directions.
        at_origin = xp.equal(square, 0.0)
        radius = xp.where(at_origin, 0.0, xp.sqrt(xp.where(at_origin, 1.0, square)))
        return -0.5 * ((radius - self.radius) / self.width) ** 2

    def _sample(self, n: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
        """Rejection of radii.

        They have density r exp(−½ ((r − radius) / width)²). Since r ≤ m exp(r / m − 1), a Gaussian
        tilted by exp(r / m) bounds it, tightly for m near the mode; this is a normal distribution
        around radius + width² / m.
        """
        tilt = max(self.radius, self.width)  # m

        def propose(wanted: int) -> npt.NDArray[np.float64]:
            size = ceil(1.1 * wanted) + 16
            radius = rng.normal(self.radius + self.width**2 / tilt, self.width, size)
            angle = rng.uniform(0, 2 * pi, size)
            # A negative radius is accepted with probability 0.
            accept = rng.uniform(size=size) < radius / tilt * np.exp(1 - radius / tilt)
            z = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
            return z[accept]

        return collected(n, propose)


def collected(n: int, propose: Callable[[int], npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
    """Collect n accepted points; ``propose(wanted)`` returns some, about as many as wanted."""
    found = propose(n)
    while len(found) < n:
        found = np.concatenate([found, propose(n - len(found))])
    return found[:n]


def _on_a_circle(n: int, radius: float) -> tuple[tuple[float, ...], ...]:
    return tuple((radius * cos(2 * pi * k / n), radius * sin(2 * pi * k / n)) for k in range(n))


eight_gaussians = Mixture("eight_gaussians", _on_a_circle(8, 5.0), 0.5)
banana = Banana("banana")
ring = Ring("ring")
