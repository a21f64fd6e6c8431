"""Whether an approximation has draws where a reference has draws."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytensor

from pymc_flows.approximation import NormalizingFlow
from pymc_flows.diagnostics.reliability import Moments
from pymc_flows.diagnostics.thresholds import THRESHOLDS
from pymc_flows.errors import ArgumentError
from pymc_flows.importance import ROUNDING, Quality
from pymc_flows.model.log_density import LogDensity
from pymc_flows.model.points import to_unconstrained


@dataclass(frozen=True)
class Coverage:
    """Draws of a reference compared with those of an approximation.

    Let t be the largest log weight, log p − log q, of the draws of the approximation. If the
    approximation covers the posterior, its weights also predict which share of the posterior has
    log weights above t: E_q[w; w > e^t] / E_q[w], for weights with a Pareto tail of shape k about
    w_max / Σw / (1 − k), times an exponential variable, since t is random. The share above t + Δ
    is smaller by the factor e^(−Δ(1/k − 1)). Where the approximation never goes, q is almost 0:
    draws from there have huge log weights, and the weights do not predict their share. So
    something is missing if, for Δ = 0, 1, 2, 5, 10 or 20 nats, the share of the reference exceeds
    what the weights predict in 99 of 100 cases, plus 1 %, by three standard errors.

    Attributes
    ----------
    n_draws : int
        Draws of the reference that were compared, at most as many as of the approximation.
    n_effective : float
        Their effective number, by the autocorrelation of their log p − log q.
    invalid : float
        Share of the draws of the reference without a density under the model.
    distance : float
        The Δ, in nats, at which the share comes nearest to its limit, or is furthest above it.
    beyond : float
        Share with a log p − log q above t + Δ.
    limit : float
        Largest such share that is no surprise.
    """

    n_draws: int
    n_effective: float
    invalid: float
    distance: float
    beyond: float
    limit: float

    @property
    def is_missing(self) -> bool:
        """Whether the share is above its limit."""
        return self.beyond > self.limit


def cover(
    approx: NormalizingFlow, reference: Any, log_weights: np.ndarray, quality: Quality
) -> tuple[Coverage, Moments]:
    """Compare draws of a reference with the weights of the approximation's own draws.

    Returns the comparison, and the moments of the reference in the unconstrained space.

    Parameters
    ----------
    approx : NormalizingFlow
    reference : mapping of str to array-like, Dataset or DataTree
    log_weights : ndarray, shape (n,)
        log p − log q of draws of the approximation, in nats.
    quality : Quality
        Of these.

    Raises
    ------
    ArgumentError
        If no draw of the reference has a density under the model.
    """
    placed = to_unconstrained(approx.density, reference)
    rows = np.flatnonzero(placed.inside & np.isfinite(placed.points).all(axis=1))
    n_all = len(placed.points)
    outside = 1 - len(rows) / max(n_all, 1)
    rows = rows[:: -(-len(rows) // len(log_weights)) or 1]
    points = placed.points[rows]
    log_p = LogDensity(approx.density).value(points) if len(points) else np.zeros(0)
    valid = np.isfinite(log_p)
    if not valid.any():
        raise ArgumentError(
            f"none of the {n_all} draws of the reference has a density under the model\n"
            "Give draws of the posterior of the same model."
        )
    points, log_p = points[valid], log_p[valid]
    log_q = approx.log_prob(points)
    ratios = np.where(np.isfinite(log_q), log_p - log_q, np.inf)
    n_effective = _effective(ratios)
    beyond, limits = _shares(ratios, n_effective, log_weights, quality.khat)
    worst = int(np.argmax(beyond / limits))
    coverage = Coverage(
        n_draws=len(ratios),
        n_effective=n_effective,
        invalid=outside + (1 - outside) * float(1 - valid.mean()),
        distance=THRESHOLDS.beyond[worst],
        beyond=float(beyond[worst]),
        limit=float(limits[worst]),
    )
    return coverage, Moments.of_reference(points)


def _effective(ratios: np.ndarray) -> float:
    """Effective number of draws of a series (n,), by ranks, since values may be infinite."""
    from arviz_stats.base.array import array_stats  # slow to import

    n = len(ratios)
    found = float(array_stats.ess(ratios, chain_axis=None, method="bulk"))
    # Too few draws have no autocorrelation; a series that alternates would be worth more.
    return min(found, n) if math.isfinite(found) else float(n)


def _shares(
    ratios: np.ndarray, n_effective: float, log_weights: np.ndarray, khat: float
) -> tuple[np.ndarray, np.ndarray]:
    """Shares of the reference beyond the largest log weight, and their limits."""
    beyond_nats = np.array(THRESHOLDS.beyond)
    finite = log_weights[np.isfinite(log_weights)]
    if not len(finite):
        return np.ones(len(beyond_nats)), np.full(len(beyond_nats), THRESHOLDS.share)
    top = float(finite.max())
    # Equal weights differ by rounding alone, by a little more after an inverse.
    rounding = 10 * ROUNDING[pytensor.config.floatX]
    edges = top + rounding * (1 + abs(top)) + beyond_nats
    beyond = (ratios[:, None] > edges).mean(axis=0)
    share = 1 / float(np.exp(finite - top).sum())
    k = min(max(khat, 0.01), 0.95)
    expected = share / (1 - k) * np.exp(-beyond_nats * (1 / k - 1))
    if not math.isfinite(khat):
        expected = np.full(len(beyond_nats), share)
    predicted = np.minimum(THRESHOLDS.rare * expected, 0.5) + THRESHOLDS.share
    noise = (
        THRESHOLDS.share_errors * np.sqrt(predicted * (1 - predicted) / n_effective)
        + 2 / n_effective
    )
    return beyond, predicted + noise
