"""Fixed effects whose spread follows the scales.

With few groups, a fixed effect is known only as well as the mean of the groups' effects, whose
standard deviation grows with the scale of the groups. So effect and scale form a funnel, and the
marginal of the effect has the tails of a Student-t distribution. A Gaussian, a copula and profiles
along axes have hardly any draws there. Here effects are Student-t given the scales: their means,
and the logarithms of their standard deviations, are linear in the scales. Both are fitted by
regression to weighted values (Aitkin, Modelling variance heterogeneity in normal regression using
GLIM, Applied Statistics 36(3), 1987).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pymc_flows.field.hyper.proposal import (
    ENOUGH,
    Proposal,
    lower_factor,
    moments,
    spread_errors,
)

# Most steps of Fisher scoring, and the longest of them in any coefficient.
STEPS, LONGEST = 25, 1.0
# Largest slope of the log of a standard deviation in the log of a scale: proportionality.
STEEPEST = 1.0
# Degrees of freedom; and a factor by which the distribution is wider than the values, of which few
# lie far out.
DEGREES, WIDER = 5.0, 1.3
# Draws are for the variances of effects, or of a scale, to which large scales contribute most:
# scales have the location that they have with weights multiplied by this power of the spread of an
# effect, or of the scale.
POWER = 2.0
# A scale counts as no larger than e to this power times its geometric mean.
LARGEST = 20.0
# The prior that there is no slope counts as this many effective values.
PRIOR = 10.0


@dataclass(frozen=True, eq=False)
class ScaledEffects:
    """A Student-t distribution of scales, and one of effects given the scales.

    Attributes
    ----------
    is_effect : ndarray of bool, shape (n_hyper,)
        Which hyperparameters are effects; the others count as scales.
    scales : Proposal
    mean, spread : ndarray, shape (1 + n_scales, n_effects)
        Coefficients of the means of effects, and of the logs of their standard deviations, for a
        constant and for scales minus their location.
    lower : ndarray, shape (n_effects, n_effects)
        Factor of the correlation of effects given scales.
    """

    is_effect: np.ndarray
    scales: Proposal
    mean: np.ndarray
    spread: np.ndarray
    lower: np.ndarray

    @classmethod
    def fit(cls, hyper: np.ndarray, weights: np.ndarray, is_effect: np.ndarray) -> ScaledEffects:
        """Fit to weighted values (n, n_hyper); the weights (n,) sum to 1."""
        effects, others = hyper[:, is_effect], hyper[:, ~is_effect]
        loc, covariance = moments(others, weights)
        design = _design(others, loc)
        mean = _solve(design, weights, effects)
        rest = effects - design @ mean
        ess = 1 / float(np.square(weights).sum())
        spread = np.stack([_log_spread(design, weights, r, ess) for r in rest.T], axis=1)
        standard = rest / np.exp(design @ spread)
        _, correlation = moments(standard, weights)
        # For Gaussian scales, such weights shift the location, and change nothing else.
        shifts = POWER * covariance @ spread[1:]
        shift = shifts[:, np.argmax(np.sum(shifts * spread[1:], axis=0))]
        scales = Proposal(loc + shift, WIDER * lower_factor(covariance), DEGREES)
        mean[0] += shift @ mean[1:]
        spread[0] += shift @ spread[1:]
        return cls(is_effect, scales, mean, spread, WIDER * lower_factor(correlation))

    def draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Draw ``n`` points (n, n_hyper), from a scrambled Sobol' sequence."""
        others = self.scales.draw(n, rng)
        unit = Proposal(np.zeros(len(self.lower)), self.lower, DEGREES).draw(n, rng)
        # Both come from Sobol' sequences, and would depend on each other in this order.
        unit = unit[rng.permutation(n)]
        design = _design(others, self.scales.loc)
        hyper = np.empty((n, len(self.is_effect)))
        hyper[:, ~self.is_effect] = others
        hyper[:, self.is_effect] = design @ self.mean + unit * np.exp(design @ self.spread)
        return hyper

    def log_prob(self, hyper: np.ndarray) -> np.ndarray:
        """Log density (n,) at points (n, n_hyper), in nats."""
        others = hyper[:, ~self.is_effect]
        design = _design(others, self.scales.loc)
        spread = design @ self.spread
        unit = (hyper[:, self.is_effect] - design @ self.mean) * np.exp(-spread)
        given = Proposal(np.zeros(len(self.lower)), self.lower, DEGREES).log_prob(unit)
        return self.scales.log_prob(others) + given - spread.sum(axis=1)


def least_known(
    hyper: np.ndarray, weights: np.ndarray, is_scale: np.ndarray, among: np.ndarray
) -> tuple[int, float]:
    """Find the column of weighted values whose standard deviation has the largest error.

    Parameters
    ----------
    hyper : ndarray, shape (n, n_hyper)
    weights : ndarray, shape (n,)
        They sum to 1.
    is_scale : ndarray of bool, shape (n_hyper,)
        Logarithms of scales, whose own standard deviations count.
    among : ndarray of bool, shape (n_hyper,)
        Columns that are looked at.

    Returns
    -------
    column : int
    error : float
        Standard error of the standard deviation, relative to it.
    """
    values = np.where(is_scale, _scales(np.where(is_scale, hyper, 0.0), weights), hyper)
    errors = np.where(among, spread_errors(values, weights), -math.inf)
    worst = int(errors.argmax())
    return worst, float(errors[worst])


def large_scale(hyper: np.ndarray, weights: np.ndarray, which: int) -> Proposal:
    """A Student-t distribution that lies where the variance of a scale comes from.

    It has the moments of the values with weights multiplied by a power of the scale, or, where so
    few of these are effective that they tell no covariance, with the weights alone.

    Parameters
    ----------
    hyper : ndarray, shape (n, n_hyper)
    weights : ndarray, shape (n,)
        They sum to 1.
    which : int
        The column with the logarithm of the scale.
    """
    tilted = weights * _scales(hyper[:, which], weights) ** POWER
    tilted /= tilted.sum()
    if 1 / np.square(tilted).sum() < ENOUGH * hyper.shape[1]:
        tilted = weights
    loc, covariance = moments(hyper, tilted)
    return Proposal(loc, WIDER * lower_factor(covariance), DEGREES)


def _scales(logs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Scales relative to their geometric mean."""
    return np.exp(np.minimum(logs - weights @ logs, LARGEST))


def _design(others: np.ndarray, loc: np.ndarray) -> np.ndarray:
    return np.concatenate([np.ones((len(others), 1)), others - loc], axis=1)


def _solve(design: np.ndarray, weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    root = np.sqrt(weights)[:, None]
    return np.linalg.lstsq(root * design, root * values, rcond=None)[0]


def _log_spread(
    design: np.ndarray, weights: np.ndarray, rest: np.ndarray, ess: float
) -> np.ndarray:
    """Coefficients of the log standard deviation of residuals, by gamma regression of squares."""
    squares = np.square(rest)
    found = np.zeros(design.shape[1])
    found[0] = 0.5 * math.log(max(float(weights @ squares), 1e-300))
    prior = np.zeros((len(found), len(found)))
    # In units of the spread of the scales: a scale that hardly varies gets hardly any slope.
    prior[1:, 1:] = np.diag(weights @ np.square(design[:, 1:])) * PRIOR / ess
    fisher = (design * weights[:, None]).T @ design + prior
    for _ in range(STEPS):
        ratio = squares * np.exp(-2 * (design @ found))
        slope = 0.5 * design.T @ (weights * (ratio - 1)) - prior @ found
        step = np.clip(np.linalg.solve(fisher, slope), -LONGEST, LONGEST)
        found = found + step
        if np.abs(step).max() < 1e-6:
            break
    found[1:] = np.clip(found[1:], -STEEPEST, STEEPEST)
    return found
