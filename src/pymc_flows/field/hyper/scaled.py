"""Fixed effects whose spread follows the scales.

Of few groups, a fixed effect is known as well as the mean of their effects: its standard deviation
given the scale of the groups grows with that scale. So its marginal has the tails of a Student-t
distribution, and lies in a funnel with the scale, where a Gaussian, a copula and profiles along
axes have hardly any draws. Here effects are Student-t given the scales, with a mean that is linear
in these and standard deviations whose logarithms are: a regression with both, by weighted values
(Aitkin, Modelling variance heterogeneity in normal regression using GLIM, Applied Statistics
36(3), 1987).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pymc_flows.field.hyper.proposal import Proposal, lower_factor, moments

# Steps of Fisher scoring, and the largest of them in a logarithm.
STEPS, LONGEST = 25, 1.0
# Standard deviations go with a scale itself, at most: a logarithm with a logarithm.
STEEPEST = 1.0
# Tails, and how much wider than the values: those far out are few.
DEGREES, WIDER = 5.0, 1.3
# Weighted values count as so many more without any slope.
PRIOR = 10.0


@dataclass(frozen=True, eq=False)
class ScaledEffects:
    """A Student-t distribution of scales, and one of effects given these.

    Attributes
    ----------
    is_effect : ndarray of bool, shape (n_hyper,)
    scales : Proposal
        Of the others.
    mean, spread : ndarray, shape (1 + n_scales, n_effects)
        Coefficients of the mean of effects, and of the logs of their standard deviations: of 1 and
        of the scales less their location.
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
        """Fit to weighted values (n, n_hyper); weights sum to 1."""
        effects, others = hyper[:, is_effect], hyper[:, ~is_effect]
        loc, covariance = moments(others, weights)
        scales = Proposal(loc, WIDER * lower_factor(covariance), DEGREES)
        design = _design(others, loc)
        mean = _solve(design, weights, effects)
        rest = effects - design @ mean
        ess = 1 / float(np.square(weights).sum())
        spread = np.stack([_log_spread(design, weights, r, ess) for r in rest.T], axis=1)
        standard = rest / np.exp(design @ spread)
        _, correlation = moments(standard, weights)
        return cls(is_effect, scales, mean, spread, WIDER * lower_factor(correlation))

    def draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Draw ``n`` points (n, n_hyper), from a scrambled Sobol' sequence."""
        others = self.scales.draw(n, rng)
        unit = Proposal(np.zeros(len(self.lower)), self.lower, DEGREES).draw(n, rng)
        # The two sequences are scrambled on their own: their order must not go together.
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


def _design(others: np.ndarray, loc: np.ndarray) -> np.ndarray:
    return np.concatenate([np.ones((len(others), 1)), others - loc], axis=1)


def _solve(design: np.ndarray, weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    root = np.sqrt(weights)[:, None]
    return np.linalg.lstsq(root * design, root * values, rcond=None)[0]


def _log_spread(
    design: np.ndarray, weights: np.ndarray, rest: np.ndarray, ess: float
) -> np.ndarray:
    """Coefficients of the log standard deviation of residuals: a gamma regression of squares."""
    squares = np.square(rest)
    found = np.zeros(design.shape[1])
    found[0] = 0.5 * math.log(max(float(weights @ squares), 1e-300))
    prior = np.zeros((len(found), len(found)))
    # In units of the spread of the scales, so that those that hardly vary get no slope.
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
