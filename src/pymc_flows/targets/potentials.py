"""The potentials of Rezende & Mohamed: two sides of a ring, and wavy ridges."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, reduce
from math import ceil, exp, log, pi, sqrt
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytensor.tensor as pt

from pymc_flows.targets.base import Target
from pymc_flows.targets.shapes import Ring, collected


@dataclass(frozen=True)
class SplitRing(Target):
    """U(z) = ½ ((‖z‖ − 2) / 0.4)² − ln(e^{−½ ((z[0] − 2) / 0.6)²} + e^{−½ ((z[0] + 2) / 0.6)²}).

    The left and the right side of a ring, two modes of equal mass. U1 of Rezende & Mohamed
    (2015), Table 1.
    """

    _ring: ClassVar[Ring] = Ring("ring", 2.0, 0.4)
    _mode_width: ClassVar[float] = 0.6

    dim = 2

    @cached_property
    def log_z(self) -> float:
        """Log normalising constant, in nats, by quadrature in polar coordinates.

        Trapezia around the circle, where the integrand is periodic, and Gauss-Legendre along the
        radius up to 10 widths outside the ring: both converge geometrically, here to rounding.
        """
        angle = 2 * pi * np.arange(256) / 256
        direction = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
        node, weight = np.polynomial.legendre.leggauss(200)
        half = (self._ring.radius + 10 * self._ring.width) / 2
        radius = half * (node + 1)
        density = np.exp(self.log_density(radius[:, None, None] * direction))
        return log(half * (weight * radius) @ density.mean(-1) * 2 * pi)

    def _sides(self, z0: Any) -> tuple[Any, Any]:
        """Log densities of the right and of the left mode along z[0]."""
        reach, width = self._ring.radius, self._mode_width
        return -0.5 * ((z0 - reach) / width) ** 2, -0.5 * ((z0 + reach) / width) ** 2

    def _log_density(self, z: Any, xp: ModuleType) -> Any:
        return self._ring._log_density(z, xp) + _logaddexp(*self._sides(z[..., 0]), xp)

    def _sample(self, n: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
        """Rejection from the plain ring; half of the proposals are accepted."""
        # At z[0] ≥ 0 the right mode is at most 1 and the left at most its value at z[0] = 0.
        bound = 1 + exp(-0.5 * (self._ring.radius / self._mode_width) ** 2)

        def propose(wanted: int) -> npt.NDArray[np.float64]:
            z = self._ring.sample(ceil(2.2 * wanted) + 16, random_seed=rng)
            sides = sum(np.exp(side) for side in self._sides(z[:, 0]))
            return z[rng.uniform(size=len(z)) < sides / bound]

        return collected(n, propose)


def _wave(z0: Any, xp: ModuleType) -> Any:
    """w1(z) = sin(2π z[0] / 4)."""
    return xp.sin(z0 * (2 * pi / 4))


def _bump(z0: Any, xp: ModuleType) -> Any:
    """w2(z) = 3 exp(−½ ((z[0] − 1) / 0.6)²)."""
    return 3 * xp.exp(-0.5 * ((z0 - 1) / 0.6) ** 2)


def _step(z0: Any, xp: ModuleType) -> Any:
    """w3(z) = 3 σ((z[0] − 1) / 0.3), by tanh, which does not overflow."""
    return 1.5 * (1 + xp.tanh((z0 - 1) / 0.6))


def _on_wave(z0: Any, xp: ModuleType) -> Any:
    """Zero: this ridge follows the wave itself."""
    return xp.zeros_like(z0)


@dataclass(frozen=True)
class Ridge:
    """A ridge along z[1] = w1(z) − drop(z[0]) of Gaussian profile.

    Attributes
    ----------
    width : float
        Standard deviation of the profile along z[1].
    drop : callable
        ``drop(z0, xp)``: how far the ridge lies below the wave w1.
    """

    width: float
    drop: Callable[[Any, ModuleType], Any] = _on_wave


@dataclass(frozen=True)
class Ridges(Target):
    """U(z) = 0.1 ``|z[0]|`` − ln Σ_k e^{−½ ((z[1] − w1(z) + drop_k(z)) / width_k)²}.

    One or two wavy ridges. U2 to U4 of Rezende & Mohamed (2015), Table 1, with the tail
    0.1 ``|z[0]|`` that makes them integrable. Given z[0], z[1] is a mixture of normals of weights
    width_k, whose sum does not depend on z[0]; so z[0] is Laplace distributed with scale 10, which
    gives `log_z` and the draws in closed form.

    Attributes
    ----------
    name : str
        Name of the variable in `model`.
    ridges : tuple of Ridge
        One or two ridges.
    """

    ridges: tuple[Ridge, ...] = field(repr=False)
    _tail_scale: ClassVar[float] = 10.0

    dim = 2

    @property
    def log_z(self) -> float:
        """Log normalising constant, in nats: ln(20 √(2π) Σ_k width_k)."""
        widths = sum(ridge.width for ridge in self.ridges)
        return log(2 * self._tail_scale * sqrt(2 * pi) * widths)

    def _log_density(self, z: Any, xp: ModuleType) -> Any:
        z0, z1 = z[..., 0], z[..., 1]
        height = z1 - _wave(z0, xp)
        profiles = [
            -0.5 * ((height + ridge.drop(z0, xp)) / ridge.width) ** 2 for ridge in self.ridges
        ]
        across = reduce(lambda a, b: _logaddexp(a, b, xp), profiles)
        return across - xp.abs(z0) / self._tail_scale

    def _sample(self, n: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
        z0 = rng.laplace(scale=self._tail_scale, size=n)
        widths = np.array([ridge.width for ridge in self.ridges])
        which = rng.choice(len(widths), size=n, p=widths / widths.sum())
        drops = np.stack([ridge.drop(z0, np) for ridge in self.ridges])
        centre = _wave(z0, np) - drops[which, np.arange(n)]
        return np.stack([z0, rng.normal(centre, widths[which])], axis=-1)


def _logaddexp(a: Any, b: Any, xp: ModuleType) -> Any:
    """ln(eᵃ + eᵇ), with gradients that share a tie evenly."""
    if xp is np:
        return np.logaddexp(a, b)
    # One stable scalar function with a stable derivative, unlike log(exp(a) + exp(b)), and a
    # smaller graph than pt.logaddexp.
    return a + pt.softplus(b - a)


pot1 = SplitRing("pot1")
pot2 = Ridges("pot2", (Ridge(0.4),))
pot3 = Ridges("pot3", (Ridge(0.35), Ridge(0.35, _bump)))
pot4 = Ridges("pot4", (Ridge(0.4), Ridge(0.35, _step)))

POTENTIALS: tuple[Target, ...] = (pot1, pot2, pot3, pot4)
"""``pot1`` to ``pot4``, in order."""
