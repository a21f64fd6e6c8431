"""A Gaussian with the mean and covariance of a posterior, by importance weights.

Near a posterior, the weighted draws of a Gaussian have moments that are better than its own, and
the Gaussian with these draws better (adaptive importance sampling: Cappé, Guillin, Marin & Robert,
Population Monte Carlo, JCGS 13(4), 2004). Nothing is trained or compiled for that.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from pymc_flows.frame import Frame
from pymc_flows.importance import weigh
from pymc_flows.search import with_covariance

# Draws of each round.
ROUNDS = (4_000, 4_000, 16_000, 4_000)
# Effective draws per dimension without which a covariance is noise.
ENOUGH = 10
# A gain in the share of effective draws that is worth a further round.
GAIN = 0.01


def match_moments(
    log_density: Callable[[np.ndarray], np.ndarray], frame: Frame, rng: np.random.Generator
) -> Frame:
    """Improve a Gaussian by the moments of its weighted draws, as long as it does.

    Parameters
    ----------
    log_density : callable
        Log density (n,) at points (n, dim), in nats.
    frame : Frame
        The Gaussian: its mean and a factor of its covariance.
    rng : numpy.random.Generator

    Returns
    -------
    Frame
        The one whose weights are the most even; ``frame`` itself where k-hat says that weights
        cannot be trusted, or there are too few effective draws for a covariance.
    """
    dim = len(frame.center)
    best, share, candidate = frame, 0.0, frame
    for draws in ROUNDS:
        half = rng.standard_normal((draws // 2, dim))
        noise = np.concatenate([half, -half])  # exact means of what is symmetric
        points = candidate.place(noise)
        log_q = -0.5 * (np.square(noise).sum(axis=1) + dim * math.log(2 * math.pi))
        found, log_weights = weigh(log_density(points) - log_q + candidate.log_det)
        has_gained = found.ess / draws > share + GAIN
        if found.ess / draws > share:
            best, share = candidate, found.ess / draws
        if not has_gained or not found.is_trusted or found.ess < ENOUGH * dim:
            break
        weights = np.exp(log_weights)
        center = weights @ points
        rest = (points - center) * np.sqrt(weights)[:, None]
        candidate = with_covariance(center, rest.T @ rest)
    return best
