"""A mixture of Gaussians with the moments of a posterior's modes, by importance weights.

Population Monte Carlo with mixtures (Cappé, Douc, Guillin, Marin & Robert, Adaptive importance
sampling in general mixture classes, Statistics and Computing 18, 2008): weighted draws of the
mixture have moments that are better than its own. Nothing is trained or compiled for that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pymc_flows.flows.frame import Frame
from pymc_flows.importance import Quality, weigh
from pymc_flows.start.search import with_covariance
from pymc_flows.start.weighted.moments import ENOUGH, GAIN, N_ERRORS, log_normal

# Draws per Gaussian in each round, and most draws of all together.
ROUNDS, MOST_DRAWS = (1_000, 2_000, 4_000, 8_000, 8_000), 64_000
# With a larger share of effective draws nothing is left to gain.
EVEN = 0.99
# Each Gaussian keeps this part of an even share of the draws, however light it is.
LEAST_SHARE = 0.02


@dataclass(frozen=True, eq=False)
class GaussianMixture:
    """Gaussians at modes, and the quality of their mixture by its draws."""

    frames: tuple[Frame, ...]
    quality: Quality


def match_modes(
    log_density: Callable[[np.ndarray], np.ndarray],
    frames: Sequence[Frame],
    rng: np.random.Generator,
) -> GaussianMixture:
    """Improve Gaussians at modes while the weights of their mixture become more even.

    ``log_density`` returns log densities (n,) at points (n, dim), in nats. The mixture with the
    most even weights is returned.
    """
    frames, weights = tuple(frames), np.full(len(frames), 1 / len(frames))
    best: GaussianMixture | None = None
    for draws in ROUNDS:
        n = min(draws * len(frames), MOST_DRAWS)
        found, weights, matched = _round(log_density, frames, weights, n, rng)
        share = found.quality.share
        gain = share - (-1.0 if best is None else best.quality.share)
        best = found if best is None or gain > 0 else best
        if share > EVEN or gain <= GAIN:
            break
        frames = matched
    assert best is not None
    return best


def _round(
    log_density: Callable[[np.ndarray], np.ndarray],
    frames: tuple[Frame, ...],
    weights: np.ndarray,
    n: int,
    rng: np.random.Generator,
) -> tuple[GaussianMixture, np.ndarray, tuple[Frame, ...]]:
    """Draw and weigh; return the mixture, and the weights and Gaussians of the next round."""
    dim = len(frames[0].center)
    counts = np.maximum(np.floor(weights * n).astype(int), 2)
    points = np.concatenate(
        [f.forward(rng.standard_normal((n, dim))) for f, n in zip(frames, counts, strict=True)]
    )
    log_shares = np.log(counts / counts.sum())
    log_parts = np.stack([log_normal(f, points) for f in frames]) + log_shares[:, None]
    log_q = np.logaddexp.reduce(log_parts, axis=0)
    log_weights = log_density(points) - log_q
    quality, smoothed = weigh(log_weights)
    found, draws = GaussianMixture(frames, quality), np.exp(smoothed)
    if not draws.sum() > 0:
        return found, weights, frames
    shares = np.exp(log_parts - log_q) * draws
    own = np.repeat(np.arange(len(frames)), counts)
    matched = tuple(
        _matched(frame, points, share, _gap(log_weights[own == k]))
        for k, (frame, share) in enumerate(zip(frames, shares, strict=True))
    )
    weights = np.maximum(shares.sum(axis=1), LEAST_SHARE / len(frames))
    return found, weights / weights.sum(), matched


def _gap(log_weights: np.ndarray) -> float:
    """Log of the mean weight less the mean log weight, in nats; ∞ if a log weight is not finite."""
    top = float(log_weights.max())
    if not math.isfinite(top):
        return math.inf
    return top + math.log(float(np.exp(log_weights - top).mean())) - float(log_weights.mean())


def _matched(frame: Frame, points: np.ndarray, share: np.ndarray, gap: float) -> Frame:
    """The Gaussian with the moments of weighted draws.

    The given one is kept if effective draws are too few, or if their moments differ from its own by
    no more than noise: matching a mean and a covariance to n draws costs d(d + 3)/4n nats.
    """
    dim, mass, squares = len(frame.center), share.sum(), np.square(share).sum()
    if not mass > 0 or mass**2 < ENOUGH * dim * squares:
        return frame
    draws, weights = mass**2 / squares, share / mass
    z = frame.inverse(points)
    mean = weights @ z
    sd = np.sqrt(weights @ np.square(z - mean))
    is_noise = (np.maximum(abs(mean), abs(sd - 1)) < N_ERRORS / math.sqrt(draws)).all()
    if is_noise and gap < dim * (dim + 3) / (4 * draws):
        return frame
    center = weights @ points
    rest = (points - center) * np.sqrt(weights)[:, None]
    found = with_covariance(center, rest.T @ rest, dense=not frame.is_elementwise)
    return Frame(found.center, found.scale, frame.variables)
