"""The model of the tutorial, with its exact posterior from a grid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pymc as pm
from scipy.special import log_expit

from benchmarks._posteriors import Collection, Draws, Reference, score, summarized

LOG_DOSE = np.array([-0.86, -0.30, -0.05, 0.73])
DEATHS = np.array([0, 1, 3, 5])
ANIMALS = 5
# Ends and numbers of the grid's cells; nothing of the posterior lies beyond.
ALPHA, BETA = (-6.0, 12.0, 900), (-10.0, 80.0, 900)
EXACT_DRAWS = 100_000
NAME = "tutorial"


class Tutorial(Collection):
    """A collection with the model of the tutorial in front.

    Parameters
    ----------
    others : Collection
    """

    def __init__(self, others: Collection):
        self._others = others
        self.names = (NAME, *others.names)

    def model(self, name: str) -> pm.Model:
        """Build a model."""
        return bioassay() if name == NAME else self._others.model(name)

    def reference(self, name: str) -> Reference:
        """What is known of the posterior."""
        return exact() if name == NAME else self._others.reference(name)

    def score(self, draws: Draws, reference: Reference) -> Mapping[str, Any]:
        """Score by the project's own measures for the tutorial, else by those of the others."""
        is_own = set(reference["mean"]) == {"alpha", "beta"}
        return score(draws, reference) if is_own else self._others.score(draws, reference)

    def floor(self, name: str) -> Mapping[str, float]:
        """Scores of exact draws, where they are known."""
        return {} if name == NAME else self._others.floor(name)


def bioassay() -> pm.Model:
    """How likely death is at a dose: a logistic regression."""
    with pm.Model() as model:
        alpha = pm.Normal("alpha", 0, 10)
        beta = pm.Normal("beta", 0, 25)
        pm.Binomial("deaths", ANIMALS, logit_p=alpha + beta * LOG_DOSE, observed=DEATHS)
    return model


def exact() -> Reference:
    """Moments and draws of the posterior on a grid, without PyMC."""
    (alpha, beta), widths = zip(*(_cells(*ends) for ends in (ALPHA, BETA)), strict=True)
    a, b = np.meshgrid(alpha, beta, indexing="ij")
    log_p = -0.5 * ((a / 10) ** 2 + (b / 25) ** 2)
    for dose, deaths in zip(LOG_DOSE, DEATHS, strict=True):
        logit = a + b * dose
        log_p += deaths * log_expit(logit) + (ANIMALS - deaths) * log_expit(-logit)
    weights = np.exp(log_p - log_p.max()).ravel()
    rng = np.random.default_rng(0)
    chosen = rng.choice(weights.size, EXACT_DRAWS, p=weights / weights.sum())
    inside = rng.uniform(-0.5, 0.5, size=(2, EXACT_DRAWS))
    draws = {
        name: grid.ravel()[chosen] + width * u
        for name, grid, width, u in zip(("alpha", "beta"), (a, b), widths, inside, strict=True)
    }
    return summarized(draws)


def _cells(low: float, high: float, n: int) -> tuple[np.ndarray, float]:
    """Centres and width of n cells."""
    width = (high - low) / n
    return low + width * (np.arange(n) + 0.5), width
