"""Densities with known answers: the potentials of Rezende & Mohamed [1]_, and Gaussians.

Each target is one definition of an unnormalised log density that NumPy and PyTensor both evaluate,
with its exact log normalising constant and exact independent draws, so that the error of an
approximation can be measured instead of judged by eye:
KL(q ‖ p) = E_q[log q(z) − `Target.log_density` (z)] + `Target.log_z`.

``pot1`` to ``pot4`` are U1 to U4 of Table 1 of [1]_, with log density −U(z). U2 to U4 do not decay
along z[0] and so are no densities; as is usual, ``0.1 |z[0]|`` is added to each of them.

References
----------
.. [1] Rezende & Mohamed, Variational Inference with Normalizing Flows, ICML 2015, Table 1,
   arXiv:1505.05770.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, reduce
from math import ceil, exp, log, pi, prod, sqrt
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pymc as pm
import pytensor.tensor as pt
from pytensor.graph.basic import Variable
from pytensor.tensor.variable import TensorVariable

from pymc_flows.errors import FlowShapeError

__all__ = ["POTENTIALS", "Gaussian", "Ridges", "Ring", "Target", "gaussian"]

type RandomSeed = int | np.random.Generator | None


@dataclass(frozen=True)
class Target(ABC):
    """An unnormalised density over R^dim whose normalising constant and draws are known.

    Targets are values: frozen, compared by their fields, picklable.

    Attributes
    ----------
    name : str
        Name of the variable in `model`.
    """

    name: str

    @property
    @abstractmethod
    def dim(self) -> int:
        """Number of dimensions."""

    @property
    @abstractmethod
    def log_z(self) -> float:
        """Log of the integral of exp(`log_density`) over R^dim, in nats."""

    @abstractmethod
    def _log_density(self, z: Any, xp: ModuleType) -> Any:
        """Log density of points whose last axis is known to be ``dim``."""

    @abstractmethod
    def _sample(self, n: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
        """Draw ``n`` points, shape (n, dim)."""

    def log_density(self, z: Any, xp: ModuleType | None = None) -> Any:
        """Unnormalised log density, −U(z).

        Values and gradients are finite wherever the squares of the coordinates are, the origin
        and the ties between modes included.

        Parameters
        ----------
        z : array_like or TensorVariable, shape (..., dim)
            Points.
        xp : module, optional
            ``numpy`` or ``pytensor.tensor``, whichever is to evaluate it. By default PyTensor
            for a PyTensor variable and NumPy for anything else.

        Returns
        -------
        ndarray or TensorVariable, shape (...)
            In nats; subtract `log_z` to normalise it.

        Raises
        ------
        FlowShapeError
            If the last axis of ``z`` is known not to be ``dim`` long.
        """
        if xp is None:
            xp = pt if isinstance(z, Variable) else np
        if xp is np:
            z = np.asarray(z)
            shape = z.shape
        else:
            z = pt.as_tensor_variable(z)
            shape = z.type.shape
        if not shape or shape[-1] not in (self.dim, None):
            raise FlowShapeError(
                f"expected points of shape (..., {self.dim}) for the target {self.name!r}\n"
                f"got shape {shape}\n"
                "put the coordinates of a point on the last axis"
            )
        return self._log_density(z, xp)

    def sample(self, n: int, *, random_seed: RandomSeed = None) -> npt.NDArray[np.float64]:
        """Draw independent points from the normalised density, exactly.

        Exact means that there is no grid, truncation or Markov chain: the error is that of
        floating-point arithmetic.

        Parameters
        ----------
        n : int
            Number of draws.
        random_seed : int or numpy.random.Generator, optional
            Seed, or generator to draw from.

        Returns
        -------
        ndarray, shape (n, dim)
        """
        return self._sample(n, np.random.default_rng(random_seed))

    def model(self) -> pm.Model:
        """Build a PyMC model of this density: one free variable called ``name``, shape (dim,).

        Its log density is `log_density`, unnormalised, and its initial point the origin.
        ``pm.draw`` and ``pm.sample_prior_predictive`` return exact draws.

        Returns
        -------
        pymc.Model
        """

        def random(rng: np.random.Generator, size: tuple[int, ...] | None) -> npt.NDArray[Any]:
            batch = tuple(size or ())
            return self._sample(prod(batch), rng).reshape(*batch, self.dim)

        def support_point(rv: TensorVariable, size: Any) -> TensorVariable:
            return pt.zeros_like(rv)

        with pm.Model() as model:
            pm.CustomDist(
                self.name,
                logp=self.log_density,
                random=random,
                support_point=support_point,
                signature=f"->({self.dim})",
            )
        return model


@dataclass(frozen=True)
class Ring(Target):
    """U(z) = ½ ((‖z‖ − 2) / 0.4)² − ln(e^{−½ ((z[0] − 2) / 0.6)²} + e^{−½ ((z[0] + 2) / 0.6)²}).

    The left and the right side of a ring, two modes of equal mass. U1 of Rezende & Mohamed
    (2015), Table 1.
    """

    _radius: ClassVar[float] = 2.0
    _width: ClassVar[float] = 0.4
    _mode_width: ClassVar[float] = 0.6

    @property
    def dim(self) -> int:
        """Number of dimensions, 2."""
        return 2

    @cached_property
    def log_z(self) -> float:
        """Log normalising constant, in nats, by quadrature in polar coordinates.

        Trapezia around the circle, where the integrand is periodic, and Gauss-Legendre along the
        radius up to 10 widths outside the ring: both converge geometrically, here to rounding.
        """
        angle = 2 * pi * np.arange(256) / 256
        direction = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
        node, weight = np.polynomial.legendre.leggauss(200)
        half = (self._radius + 10 * self._width) / 2
        radius = half * (node + 1)
        density = np.exp(self.log_density(radius[:, None, None] * direction))
        return log(half * (weight * radius) @ density.mean(-1) * 2 * pi)

    def _log_density(self, z: Any, xp: ModuleType) -> Any:
        z0, z1 = z[..., 0], z[..., 1]
        square = z0**2 + z1**2
        # The square root has no derivative at 0. Taking it of 1 there makes the gradient 0, the
        # mean over the directions, where it would be NaN.
        at_origin = xp.equal(square, 0.0)
        radius = xp.where(at_origin, 0.0, xp.sqrt(xp.where(at_origin, 1.0, square)))
        right, left = (
            -0.5 * ((z0 - centre) / self._mode_width) ** 2
            for centre in (self._radius, -self._radius)
        )
        ring = -0.5 * ((radius - self._radius) / self._width) ** 2
        return ring + _logaddexp(right, left, xp)

    def _sample(self, n: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
        """Rejection from the plain ring; half of the proposals are accepted.

        The radius has density r exp(−½ ((r − 2) / 0.4)²). Since r ≤ m exp(r / m − 1), a Gaussian
        tilted by exp(r / m) bounds it, tightly for m near the mode; this is a normal distribution
        around 2 + 0.4² / m.
        """
        tilt = self._radius
        # At z[0] ≥ 0 the right mode is at most 1 and the left at most its value at z[0] = 0.
        modes_bound = 1 + exp(-0.5 * (self._radius / self._mode_width) ** 2)
        draws = np.empty((n, 2))
        filled = 0
        while filled < n:
            size = ceil(2.2 * (n - filled)) + 16
            radius = rng.normal(self._radius + self._width**2 / tilt, self._width, size)
            angle = rng.uniform(0, 2 * pi, size)
            z = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
            modes = sum(
                np.exp(-0.5 * ((z[:, 0] - centre) / self._mode_width) ** 2)
                for centre in (self._radius, -self._radius)
            )
            # A negative radius is accepted with probability 0.
            accept = radius / tilt * np.exp(1 - radius / tilt) * modes / modes_bound
            accepted = z[rng.uniform(size=size) < accept][: n - filled]
            draws[filled : filled + len(accepted)] = accepted
            filled += len(accepted)
        return draws


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
    """U(z) = 0.1 |z[0]| − ln Σ_k e^{−½ ((z[1] − w1(z) + drop_k(z)) / width_k)²}.

    One or two wavy ridges. U2 to U4 of Rezende & Mohamed (2015), Table 1, with the tail
    0.1 |z[0]| that makes them integrable. Given z[0], z[1] is a mixture of normals of weights
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

    @property
    def dim(self) -> int:
        """Number of dimensions, 2."""
        return 2

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


@dataclass(frozen=True)
class Gaussian(Target):
    """U(z) = ½ (z − mean)ᵀ cov⁻¹ (z − mean); made by `gaussian`.

    Attributes
    ----------
    name : str
        Name of the variable in `model`.
    mean : tuple of float, length dim
        Mean.
    cov : tuple of tuple of float, shape (dim, dim)
        Covariance matrix.
    """

    mean: tuple[float, ...]
    cov: tuple[tuple[float, ...], ...]

    @property
    def dim(self) -> int:
        """Number of dimensions, the length of ``mean``."""
        return len(self.mean)

    @property
    def log_z(self) -> float:
        """Log normalising constant, in nats: ½ ln det(2π cov)."""
        return 0.5 * self.dim * log(2 * pi) + float(np.log(np.diag(self._cholesky)).sum())

    @cached_property
    def _cholesky(self) -> npt.NDArray[np.float64]:
        return np.linalg.cholesky(np.array(self.cov))

    def _log_density(self, z: Any, xp: ModuleType) -> Any:
        # Constants in the dtype of z, so that they do not promote a float32 graph.
        dtype = np.result_type(z.dtype, np.float32)
        mean = np.array(self.mean, dtype)
        whiten = np.linalg.inv(self._cholesky).T.astype(dtype)
        return -0.5 * (((z - mean) @ whiten) ** 2).sum(-1)

    def _sample(self, n: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
        return np.array(self.mean) + rng.normal(size=(n, self.dim)) @ self._cholesky.T


def gaussian(mean: npt.ArrayLike, cov: npt.ArrayLike, *, name: str = "gaussian") -> Gaussian:
    """Gaussian target with a given mean and covariance.

    Parameters
    ----------
    mean : array_like, shape (dim,)
        Mean.
    cov : array_like, shape (dim, dim)
        Covariance matrix, symmetric and positive definite.
    name : str, optional
        Name of the variable in the target's model.

    Returns
    -------
    Gaussian
        Its log density is the quadratic form alone, so its ``log_z`` is ½ ln det(2π cov).

    Raises
    ------
    FlowShapeError
        If ``mean`` is not a vector or ``cov`` not a square matrix of its length.
    ValueError
        If ``cov`` is not symmetric and positive definite.
    """
    mean, cov = np.asarray(mean, dtype=float), np.asarray(cov, dtype=float)
    if mean.ndim != 1 or cov.shape != 2 * mean.shape:
        raise FlowShapeError(
            "expected a mean of shape (dim,) and a covariance of shape (dim, dim)\n"
            f"got shapes {mean.shape} and {cov.shape}"
        )
    if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
        raise ValueError("expected a finite mean and covariance\ngot NaN or infinite entries")
    # A covariance that was computed is a little asymmetric, and a singular one has eigenvalues of
    # either sign, by rounding.
    symmetric = np.allclose(cov, cov.T, rtol=0, atol=1e-10 * np.abs(cov).max())
    smallest, largest = np.linalg.eigvalsh(cov)[[0, -1]]
    if not symmetric or smallest <= len(mean) * np.finfo(float).eps * largest:
        kind = "a symmetric" if symmetric else "an asymmetric"
        raise ValueError(
            "expected a symmetric positive-definite covariance\n"
            f"got {kind} matrix whose smallest eigenvalue is {smallest:g}\n"
            "check for repeated or linearly dependent coordinates"
        )
    return Gaussian(name, tuple(mean.tolist()), tuple(map(tuple, cov.tolist())))


def _logaddexp(a: Any, b: Any, xp: ModuleType) -> Any:
    """ln(eᵃ + eᵇ), with gradients that share a tie evenly."""
    if xp is np:
        return np.logaddexp(a, b)
    # One stable scalar function with a stable derivative, unlike log(exp(a) + exp(b)), and a
    # smaller graph than pt.logaddexp.
    return a + pt.softplus(b - a)


pot1 = Ring("pot1")
pot2 = Ridges("pot2", (Ridge(0.4),))
pot3 = Ridges("pot3", (Ridge(0.35), Ridge(0.35, _bump)))
pot4 = Ridges("pot4", (Ridge(0.4), Ridge(0.35, _step)))

POTENTIALS: tuple[Target, ...] = (pot1, pot2, pot3, pot4)
"""``pot1`` to ``pot4``, in order."""
