"""Importance weights p/q: how good an approximation is, and corrected draws."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pytensor
from xarray import Dataset

from pymc_flows.errors import ArgumentError, FitError

type Correction = Literal["psis", "resample", False]

# With fewer weights, the largest fifth is too small to fit a tail.
MIN_DRAWS = 25
# Differences of log weights below this share of the log density are rounding errors.
ROUNDING = {"float32": 1e-5, "float64": 1e-9}
# Standard errors to which a log evidence is taken to be known.
N_ERRORS = 2.0
# An approximation that lacks more than this share of the evidence is incomplete.
LACKING = 0.1
# Weights with a larger share of effective draws, and a smaller gap between ELBO and evidence
# (nats), are nearly equal: in no direction is a mean off by more than √0.04 standard deviations.
EVEN_SHARE, EVEN_GAP = 0.9, 0.02
# The largest weights are equal if their logs differ by less than this, in nats.
SAME = 1e-3
# With trusted weights and a larger share of effective draws, draws are resampled: that takes at
# most twice as many evaluations.
RESAMPLED_SHARE = 0.5


@dataclass(frozen=True)
class Quality:
    """Quality of an approximation by importance weights p/q of fresh draws.

    They do not see where the approximation has no draws: a mode that it misses changes none of
    these numbers.

    Attributes
    ----------
    n_draws : int
    elbo, elbo_error : float
        Evidence lower bound and its Monte-Carlo standard error, in nats; −∞ and NaN if a draw has
        no density.
    khat : float
        Shape of the generalised Pareto distribution of the largest weights; −∞ if all weights are
        equal, ∞ if a weight is not finite or there are too few of them to say.
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
        """Largest k-hat with which estimates from this many draws can be trusted."""
        return threshold(self.n_draws)

    @property
    def is_trusted(self) -> bool:
        """Whether estimates by the weights can be trusted: one rule for `report` and `fit`.

        They can if the weights are nearly equal, whatever k-hat says, or if k-hat is at most the
        threshold, both to the two decimals that are shown: the number and the verdict agree.
        """
        return self.is_even or self.has_small_khat

    @property
    def has_small_khat(self) -> bool:
        """Whether k-hat is at most the threshold, both to two decimals."""
        return round(self.khat, 2) <= round(self.threshold, 2)

    @property
    def is_even(self) -> bool:
        """Whether the weights are nearly equal, so that the tail, by k-hat, does not matter.

        More than 90 % of the draws are effective, and the ELBO is within 0.02 nats of the evidence,
        or within two standard errors of their difference.
        """
        if self.n_draws < MIN_DRAWS or not math.isfinite(self.elbo):
            return False
        noise = N_ERRORS * math.hypot(self.elbo_error, self.log_evidence_error)
        gap = self.log_evidence - self.elbo
        return self.ess > EVEN_SHARE * self.n_draws and gap < max(EVEN_GAP, noise)

    @property
    def share(self) -> float:
        """Share of effective draws."""
        return self.ess / self.n_draws

    @property
    def can_be_resampled(self) -> bool:
        """Whether draws, resampled by their weights, are good draws of the posterior."""
        return self.is_trusted and self.share > RESAMPLED_SHARE

    @property
    def is_usable(self) -> bool:
        """Whether the approximation is of use: its weights are trusted, or have a finite mean.

        The mean is finite if k-hat is below 1.
        """
        return self.is_trusted or (math.isfinite(self.elbo) and self.khat < 1)


def threshold(n_draws: int) -> float:
    """Largest k-hat with which estimates from so many draws can be trusted.

    min(1 − 1/log10 S, 0.7), Vehtari, Simpson, Gelman, Yao & Gabry, JMLR 25(72), 2024.
    """
    return min(1 - 1 / math.log10(max(n_draws, 11)), 0.7)


def quality(log_weights: np.ndarray) -> Quality:
    """Judge an approximation by the log weights (n,) of its draws, in nats."""
    return weigh(log_weights)[0]


def known_evidence(found: Sequence[Quality]) -> float:
    """Largest lower bound of the log evidence by trusted weights, in nats; −∞ without any."""
    known = [q.log_evidence - N_ERRORS * q.log_evidence_error for q in found if q.is_trusted]
    return max(known, default=-math.inf)


def weigh(log_weights: np.ndarray, *, pairs: bool = False) -> tuple[Quality, np.ndarray]:
    """Judge by log weights, and smooth them.

    Parameters
    ----------
    log_weights : ndarray, shape (n,)
        log p − log q of draws of the approximation, in nats.
    pairs : bool
        Whether the second half are the mirror images of the first (antithetic draws). Each pair
        then counts as one draw with its mean weight: there are n/2.

    Returns
    -------
    quality : Quality
    smoothed : ndarray, shape (n,)
        Log weights after Pareto smoothing, normalised: their exponentials sum to 1. −∞ for draws
        without a density; −∞ throughout if no weight is finite.
    """
    if pairs:
        return _weigh_pairs(log_weights.astype(float).reshape(2, -1))
    n = len(log_weights)
    finite = np.isfinite(log_weights)
    usable = (finite | (log_weights == -np.inf)).all()
    smoothed = np.full(n, -np.inf)
    if not finite.any():
        return _unusable(n), smoothed
    kept = log_weights[finite].astype(float)
    # For draws far off, sums and squares of log densities may overflow: the ELBO is then −∞ or its
    # error infinite, as it should be.
    with np.errstate(over="ignore"):
        elbo = float(kept.mean())
        spread = float(kept.std(ddof=1)) if len(kept) > 1 else math.nan
    rounding = _rounding(elbo)
    if len(kept) > 1 and np.ptp(kept) < rounding:  # a fit of the tail would be of rounding
        smoothed[finite], khat = -math.log(len(kept)), -math.inf
    else:
        smoothed[finite], khat = smooth(kept)
    if not usable:
        return _unusable(n), smoothed
    top = float(kept.max())
    weights = np.exp(log_weights.astype(float) - top)
    error = math.nan
    relative_error = math.nan
    if n > 1:
        # Rounding is the same for equal weights: their spread does not show it.
        error = max(spread / math.sqrt(n), rounding)
        error = error if finite.all() else math.nan
        relative_error = float(weights.std(ddof=1) / weights.mean() / math.sqrt(n))
        # By the largest log density: one draw far off may dominate the ELBO, but not the evidence.
        relative_error = max(relative_error, _rounding(top))
    found = Quality(
        n,
        elbo if finite.all() else -math.inf,
        error,
        khat,
        float(np.exp(-_log_sum_exp(2 * smoothed[finite]))),
        top + math.log(weights.mean()),
        relative_error,
    )
    return found, smoothed


def _weigh_pairs(log_weights: np.ndarray) -> tuple[Quality, np.ndarray]:
    """Weigh pairs (2, n) by their mean weights, and divide each between its two draws."""
    with np.errstate(invalid="ignore"):
        together = np.logaddexp(*log_weights)
        found, smoothed = weigh(together - math.log(2))
        shared = np.where(log_weights == -np.inf, -np.inf, log_weights - together + smoothed)
    means = log_weights.mean(axis=0)
    if found.ess and np.isfinite(means).all():
        error = float(means.std(ddof=1)) / math.sqrt(len(means)) if len(means) > 1 else math.nan
        elbo = float(means.mean())
        return replace(found, elbo=elbo, elbo_error=max(error, _rounding(elbo))), shared.ravel()
    return replace(found, elbo=-math.inf, elbo_error=math.nan), shared.ravel()


def _unusable(n: int) -> Quality:
    return Quality(n, -math.inf, math.nan, math.inf, 0.0, math.nan, math.nan)


def _rounding(log_density: float) -> float:
    return ROUNDING[pytensor.config.floatX] * (1 + abs(log_density))


def smooth(log_weights: np.ndarray) -> tuple[np.ndarray, float]:
    """Pareto-smoothed log weights (n,), normalised, and k-hat.

    Vehtari, Simpson, Gelman, Yao & Gabry, Pareto Smoothed Importance Sampling, JMLR 25(72), 2024.
    """
    if len(log_weights) < MIN_DRAWS:
        return log_weights - _log_sum_exp(log_weights), math.inf
    n_tail = math.ceil(min(len(log_weights) / 5, 3 * math.sqrt(len(log_weights))))
    largest = np.partition(log_weights, -n_tail - 1)[-n_tail - 1 :]
    # All equal, but for rounding: there is no tail.
    if np.ptp(largest) < min(_rounding(float(largest.max())), SAME):
        return log_weights - _log_sum_exp(log_weights), -math.inf
    from arviz_stats.base.array import array_stats  # slow to import

    try:
        # It takes the log likelihoods of leave-one-out cross-validation: minus the log weights. For
        # a huge k-hat its quantiles overflow, to what it truncates.
        with np.errstate(over="ignore"):
            smoothed, khat = array_stats.psislw(-log_weights)
    except ValueError:  # the largest weights are all equal: there is no tail
        return log_weights - _log_sum_exp(log_weights), -math.inf
    return smoothed, float(khat)


def _log_sum_exp(values: np.ndarray) -> float:
    top = float(values.max())
    return top + math.log(float(np.exp(values - top).sum()))


# ------------------------------------------------------------------------------- corrected draws


def check_correction(correct: Correction | None, *, return_inferencedata: bool) -> None:
    """Raise `ArgumentError` if a correction is unknown, or the result has no place for weights."""
    if correct is not None and correct is not False and correct not in ("psis", "resample"):
        raise ArgumentError(f"correct must be None, 'psis', 'resample' or False, got {correct!r}")
    if correct and not return_inferencedata:
        raise ArgumentError(
            f"correct={correct!r} puts weights next to the draws, and a MultiTrace has no place "
            "for them\nLeave out return_inferencedata=False."
        )


def corrected(
    correct: Correction,
    points: np.ndarray,
    log_p: np.ndarray,
    log_q: np.ndarray,
    rng: np.random.Generator,
    n: int | None = None,
) -> tuple[np.ndarray, Dataset]:
    """Weigh draws of an approximation, or resample them by their weights.

    Parameters
    ----------
    correct : 'psis' or 'resample'
    points : ndarray, shape (n, dim)
    log_p, log_q : ndarray, shape (n,)
        Log densities of the model and of the approximation at the points.
    rng : Generator
        For resampling.
    n : int, optional
        How many draws are resampled, from weights already judged good; default: as many as given.

    Returns
    -------
    points : ndarray, shape (n, dim)
    stats : Dataset
        ``lp``, ``log_q`` and ``log_weight``, shape (chain, draw) each, in nats; its ``attrs`` say
        how good the weights are.

    Raises
    ------
    FitError
        If draws are to be resampled and none has a finite weight.

    Warns
    -----
    UserWarning
        If the weights cannot be trusted and ``n`` is not given.
    """
    log_weights = log_p - log_q
    found, smoothed = weigh(log_weights)
    n_without = int((~np.isfinite(log_weights)).sum())
    if n is None and not found.is_trusted:
        without = f"; {n_without} of them have no finite density" if n_without else ""
        warnings.warn(
            f"Pareto k-hat of the importance weights is {found.khat:.2f}, above "
            f"{found.threshold:.2f}, for {len(points)} draws{without}: the correction cannot be "
            "trusted. Use a richer formula or more steps.",
            stacklevel=3,
        )
    if correct == "resample":
        if n_without == len(points):
            raise FitError(
                f"none of {n_without} draws has a finite weight: there is nothing to resample\n"
                "Fit the approximation, or fit it for longer, before its draws are corrected."
            )
        chosen = systematic(np.exp(smoothed), len(points) if n is None else n, rng)
        points, log_p, log_q = points[chosen], log_p[chosen], log_q[chosen]
        smoothed = np.full(len(points), -math.log(len(points)))
    values = {"lp": log_p, "log_q": log_q, "log_weight": smoothed}
    attrs = {
        "correct": correct,
        "khat": found.khat,
        "khat_threshold": found.threshold,
        "importance_ess": found.ess,
        "n_without_density": n_without,
    }
    stats = {name: (("chain", "draw"), value[None]) for name, value in values.items()}
    return points, Dataset(stats, attrs=attrs)


def systematic(weights: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Systematic resampling: n indices in order, each n·weight times rounded up or down.

    Copies of a draw stay side by side: effective sample sizes and Monte-Carlo errors, which ArviZ
    computes from autocorrelations, then count them as one draw.
    """
    total = np.cumsum(weights / weights.sum())
    total[np.flatnonzero(weights)[-1] :] = np.inf  # whatever sums and places are rounded to
    return np.searchsorted(total, (rng.random() + np.arange(n)) / n, side="right")
