"""Mixtures of Gaussians that cover curves and separate modes, from weighted draws.

Adaptive importance sampling: Gaussians are fitted to weighted draws by the EM algorithm, and then
to weighted draws of their mixture (Cappé, Douc, Guillin, Marin & Robert, Adaptive importance
sampling in general mixture classes, Statistics and Computing 18, 2008). Wide Gaussians remain a
part of the mixture, so that no weight is large where the others have no mass (Hesterberg, Weighted
average importance sampling and defensive mixture distributions, Technometrics 37(2), 1995). Nothing
is trained or compiled.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from pymc_flows.flows.frame import Frame
from pymc_flows.importance import Quality, systematic, weigh
from pymc_flows.start.search import with_covariance
from pymc_flows.start.weighted.moments import Weighted, log_normal

# Gaussians of each round; a round with as many as before begins with those of the round before. At
# most `MOST` times the square of the dimension.
ROUNDS, MOST = (8, 32, 128, 128), 32
# Least effective draws for each parameter of a Gaussian: they bound the number of Gaussians.
DRAWS_PER_NUMBER = 8
# Draws of each round, and how many are resampled for the EM algorithm.
DRAWS, FITTED = 16_000, 8_000
# Shares of effective draws: with more than the first the search ends, with less than the second at
# its end there is no result.
EVEN, HOPEFUL = 0.8, 0.1
# Share of each wide Gaussian, for gaps between the others and tails beyond them, and their widths.
DEFENSIVE, WIDER = 0.05, (1.2, 2.0)
# The EM algorithm: most steps, the gain (nats) below which it ends, twice the least share of a
# Gaussian that is kept, and the first variance. Narrow Gaussians do not overlap at first: those
# that do stay where they are.
STEPS, SETTLED, LEAST, NARROW = 100, 1e-4, 1e-3, 0.3
# Draws for which the first covariance counts.
PRIOR_DRAWS = 1.0


@dataclass(frozen=True, eq=False)
class Cover:
    """A mixture of Gaussians with weights (parts,), and its quality by its draws."""

    frames: tuple[Frame, ...]
    weights: np.ndarray
    quality: Quality


def cover(
    log_density: Callable[[np.ndarray], np.ndarray], first: Weighted, rng: np.random.Generator
) -> Cover | None:
    """Fit mixtures of more and more Gaussians, from draws of one that covers the posterior.

    ``log_density`` returns log densities (n,) at points (n, dim), in nats. The mixture with the
    most even weights is returned; None if effective draws are too few from the start, or in all
    mixtures.
    """
    points, weights = first.points, np.exp(first.log_weights)
    if not weights.sum() > 0:
        return None
    frame = first.matched()
    wide, best, parts = [frame.widened(factor) for factor in WIDER], None, None
    rest = np.full(len(wide), DEFENSIVE)
    for before, count in pairwise((0, *ROUNDS)):
        most = 1 / np.square(weights).sum() / (DRAWS_PER_NUMBER * _numbers(len(frame.center)))
        if most < 2:
            break
        z, effective = frame.inverse(points), 1 / np.square(weights).sum()
        z = z[systematic(weights, FITTED, rng)]
        if parts is None or count > before:
            parts = _Parts.spread_out(z, min(count, int(most), MOST * z.shape[1] ** 2), rng)
        parts = parts.fitted(z, effective)
        placed = zip(parts.means, parts.lower, strict=True)
        frames = tuple(_placed(frame, mean, lower) for mean, lower in placed)
        found, points, weights = _drawn(
            log_density,
            (*frames, *wide),
            np.append((1 - rest.sum()) * parts.shares, rest),
            rng,
        )
        if best is None or found.quality.share > best.quality.share:
            best = found
        if not weights.sum() > 0 or found.quality.share > EVEN:
            break
    return best if best is not None and best.quality.share > HOPEFUL else None


def _numbers(dim: int) -> int:
    """Number of parameters of a Gaussian."""
    return dim * (dim + 3) // 2


def _placed(frame: Frame, mean: np.ndarray, lower: np.ndarray) -> Frame:
    """A Gaussian in the coordinates of a frame as one in those of the posterior."""
    if frame.scale is not None and not frame.is_elementwise:
        factor = frame.scale @ lower
    else:
        factor = (1.0 if frame.scale is None else frame.scale[:, None]) * lower
    placed = with_covariance(frame.forward(mean), factor @ factor.T)
    return Frame(placed.center, placed.scale, frame.variables)


def _drawn(
    log_density: Callable[[np.ndarray], np.ndarray],
    frames: tuple[Frame, ...],
    weights: np.ndarray,
    rng: np.random.Generator,
) -> tuple[Cover, np.ndarray, np.ndarray]:
    """The mixture, its draws (n, dim), and their weights (n,), which sum to 1."""
    dim = len(frames[0].center)
    counts = np.maximum(np.round(weights * DRAWS).astype(int), 1)
    points = np.concatenate(
        [f.forward(rng.standard_normal((n, dim))) for f, n in zip(frames, counts, strict=True)]
    )
    shares = counts / counts.sum()
    logs = [math.log(s) + log_normal(f, points) for f, s in zip(frames, shares, strict=True)]
    quality, smoothed = weigh(log_density(points) - np.logaddexp.reduce(logs, axis=0))
    return Cover(frames, shares, quality), points, np.exp(smoothed)


@dataclass(frozen=True, eq=False)
class _Parts:
    """Gaussians in coordinates in which the draws have mean 0 and covariance I.

    Attributes
    ----------
    shares : ndarray, shape (parts,)
    means : ndarray, shape (parts, dim)
    lower : ndarray, shape (parts, dim, dim)
        Triangular factors of covariances.
    """

    shares: np.ndarray
    means: np.ndarray
    lower: np.ndarray

    @classmethod
    def spread_out(cls, z: np.ndarray, count: int, rng: np.random.Generator) -> _Parts:
        """Narrow Gaussians at random draws z (n, dim) that are far from each other.

        Arthur & Vassilvitskii, k-means++: the advantages of careful seeding, SODA 2007.
        """
        chosen = [z[rng.integers(len(z))]]
        nearest = np.full(len(z), np.inf)
        for _ in range(count - 1):
            nearest = np.minimum(nearest, np.square(z - chosen[-1]).sum(axis=1))
            if not nearest.sum() > 0:
                break
            chosen.append(z[rng.choice(len(z), p=nearest / nearest.sum())])
        k, dim = len(chosen), z.shape[1]
        width = math.sqrt(NARROW) * k ** (-1 / dim)
        return cls(np.full(k, 1 / k), np.stack(chosen), np.tile(width * np.eye(dim), (k, 1, 1)))

    def fitted(self, z: np.ndarray, effective: float) -> _Parts:
        """Fit the Gaussians to draws z (n, dim), so many of them effective, by the EM algorithm."""
        parts, last = self, -math.inf
        prior = NARROW * np.eye(z.shape[1]) * len(self.means) ** (-2 / z.shape[1])
        for _ in range(STEPS):
            logs = parts.log_densities(z) + np.log(parts.shares)
            top = np.logaddexp.reduce(logs, axis=1)
            value = float(top.mean())
            if value - last < SETTLED:
                break
            last = value
            mass = np.exp(logs - top[:, None]) / len(z)
            total = mass.sum(axis=0)
            least = max(LEAST, _numbers(z.shape[1]) / effective) / 2
            kept = (total > least) | (total == total.max())  # one at least
            parts = _Parts.moments(z, mass[:, kept], effective, prior)
        return parts

    @classmethod
    def moments(
        cls, z: np.ndarray, mass: np.ndarray, effective: float, prior: np.ndarray
    ) -> _Parts:
        """Gaussians with the moments of draws (n, dim) with masses (n, parts).

        Covariances are shrunk to the prior one where draws are few.
        """
        total = mass.sum(axis=0)
        means = (mass.T @ z) / total[:, None]
        draws = effective * total
        lower = []
        for mean, share, n in zip(means, (mass / total).T, draws, strict=True):
            rest = z - mean
            found = (rest.T * share) @ rest
            lower.append(np.linalg.cholesky((n * found + PRIOR_DRAWS * prior) / (n + PRIOR_DRAWS)))
        return cls(total / total.sum(), means, np.stack(lower))

    def log_densities(self, z: np.ndarray) -> np.ndarray:
        """Log densities (n, parts) at draws (n, dim), in nats."""
        u = np.linalg.inv(self.lower) @ (z.T - self.means[:, :, None])
        log_det = np.log(np.diagonal(self.lower, axis1=1, axis2=2)).sum(axis=1)
        squares = np.square(u).sum(axis=1).T
        return np.asarray(-0.5 * (squares + z.shape[1] * math.log(2 * math.pi)) - log_det)
