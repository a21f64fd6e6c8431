"""How good an approximation is, by importance weights of its own draws."""

from __future__ import annotations

import math
from dataclasses import dataclass

import arviz  # noqa: F401 - its accessor of xarray objects has PSIS
import numpy as np
from pymc.util import RandomState
from xarray import DataArray

from pymc_flows.approximation import NormalizingFlow
from pymc_flows.log_density import LogDensity


@dataclass(frozen=True)
class Quality:
    """What the importance weights p/q of fresh draws say of an approximation.

    They know nothing of places where the approximation has no draws: a mode that was never visited
    changes none of these numbers.

    Attributes
    ----------
    n_draws : int
    elbo, elbo_error : float
        Evidence lower bound and its Monte-Carlo standard error, in nats; −∞ and NaN if a draw has
        no density.
    khat : float
        Shape of the generalised Pareto distribution of the largest weights; −∞ if all weights are
        equal, ∞ if a weight is not finite.
    ess : float
        Effective number of draws after Pareto smoothing.
    log_evidence, log_evidence_error : float
        Importance-sampling estimate of log Z and its standard error (delta method), in nats.
    """

    n_draws: int
    elbo: float
    elbo_error: float
    khat: float
    ess: float
    log_evidence: float
    log_evidence_error: float

    @property
    def threshold(self) -> float:
        """Largest k-hat with which estimates from this many draws can be trusted.

        min(1 − 1/log10 S, 0.7), Vehtari, Simpson, Gelman, Yao & Gabry, JMLR 25(72), 2024.
        """
        return min(1 - 1 / math.log10(max(self.n_draws, 11)), 0.7)


def measure(
    approx: NormalizingFlow, n_draws: int = 10_000, *, random_seed: RandomState = None
) -> Quality:
    """Measure an approximation with fresh draws.

    Parameters
    ----------
    approx : NormalizingFlow
    n_draws : int
    random_seed : int, Generator, RandomState, optional
    """
    points, log_q = approx.sample_and_log_prob(n_draws, random_seed=random_seed)
    return quality(LogDensity(approx.density).value(points) - log_q)


def quality(log_weights: np.ndarray) -> Quality:
    """Judge by log weights (n,) of draws of the approximation, in nats."""
    n = len(log_weights)
    usable = ~np.isnan(log_weights) & (log_weights < np.inf)
    if not usable.all() or not np.isfinite(log_weights).any():
        return Quality(n, -math.inf, math.nan, math.inf, 0.0, math.nan, math.nan)
    finite = np.isfinite(log_weights).all()
    elbo = float(log_weights.mean()) if finite else -math.inf
    error = float(log_weights.std(ddof=1) / math.sqrt(n)) if finite else math.nan
    spread = np.ptp(log_weights[np.isfinite(log_weights)])
    if finite and spread < 1e-9 * (1 + abs(elbo)):  # q = p: a fit of the tail would be of rounding
        return Quality(n, elbo, error, -math.inf, float(n), elbo, error)
    smoothed, khat = _smooth(log_weights[np.isfinite(log_weights)])
    top = float(log_weights.max())
    weights = np.exp(log_weights - top)
    relative_error = float(weights.std(ddof=1) / weights.mean() / math.sqrt(n))
    return Quality(
        n,
        elbo,
        error,
        khat,
        float(np.exp(-_log_sum_exp(2 * smoothed))),
        top + math.log(weights.mean()),
        relative_error,
    )


def _smooth(log_weights: np.ndarray) -> tuple[np.ndarray, float]:
    """Pareto-smoothed log weights, normalised, and k-hat."""
    # ArviZ takes the log likelihoods of leave-one-out cross-validation: minus the log weights.
    likelihoods = DataArray(-log_weights, dims="draw")
    try:
        smoothed, khat = likelihoods.azstats.psislw(dim="draw")
    except ValueError:  # the largest weights are all equal: there is no tail
        return log_weights - _log_sum_exp(log_weights), -math.inf
    return smoothed.values, float(khat)


def _log_sum_exp(values: np.ndarray) -> float:
    top = float(values.max())
    return top + math.log(float(np.exp(values - top).sum()))
