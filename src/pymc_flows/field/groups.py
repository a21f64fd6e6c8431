"""How far the weights of the groups can be trusted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pymc_flows.field.result import FieldApproximation
from pymc_flows.importance import MIN_DRAWS, smooth, threshold

# Values of the hyperparameters at which groups are judged, and the groups of each, those with the
# smallest effective numbers of draws, whose tails are looked at.
VALUES, WORST = 4, 200
# Draws of a group that must count, as a share, unless its k-hat can be trusted.
EVEN = 0.9


@dataclass(frozen=True, eq=False)
class GroupQuality:
    """What the weights of draws of the field say of each group, at a few values of g.

    Attributes
    ----------
    n_draws : int
        Draws of each group for one value of the hyperparameters.
    ess : ndarray, shape (n_groups,)
        Smallest effective number of them.
    khat : ndarray, shape (n_groups,)
        Largest Pareto k-hat; −∞ where the weights are equal, or so even that no tail matters.
    error : float
        Standard error of the log density of the hyperparameters that comes from all groups, in
        nats.
    """

    n_draws: int
    ess: np.ndarray
    khat: np.ndarray
    error: float

    @property
    def n_groups(self) -> int:
        """Number of groups."""
        return len(self.ess)

    @property
    def smallest_ess(self) -> float:
        """Smallest effective number of draws of any group."""
        return float(self.ess.min(initial=self.n_draws))

    @property
    def largest_khat(self) -> float:
        """Largest k-hat of any group."""
        return float(self.khat.max(initial=-np.inf))

    @property
    def threshold(self) -> float:
        """Largest k-hat that can be trusted."""
        return threshold(self.n_draws)

    @property
    def is_untrusted(self) -> np.ndarray:
        """Whether the weights of each group cannot be trusted (n_groups,)."""
        return np.round(self.khat, 2) > round(self.threshold, 2)

    @property
    def is_trusted(self) -> bool:
        """Whether the weights of all groups can be trusted."""
        return not self.is_untrusted.any()

    def worst(self, n: int) -> np.ndarray:
        """Indices of the n groups with the largest k-hat, then the smallest effective numbers."""
        return np.lexsort((self.ess, -self.khat))[:n]


def judge_groups(found: FieldApproximation) -> GroupQuality:
    """Weigh draws of every group at a few values of the hyperparameters, evenly by their weight."""
    marginal, values = found.marginal, found.values
    n_groups = found.posterior.n_groups
    if marginal.is_gaussian:
        n = len(marginal.noise) // marginal.n_outer
        return GroupQuality(n, np.full(n_groups, float(n)), np.full(n_groups, -np.inf), 0.0)
    total = np.cumsum(np.exp(values.log_weights))
    places = (0.5 + np.arange(VALUES)) / VALUES
    chosen = np.unique(np.searchsorted(total / total[-1], places).clip(max=len(total) - 1))
    n_draws = len(marginal.noise) // marginal.n_outer
    ess, khat, error = np.full(n_groups, float(n_draws)), np.full(n_groups, -np.inf), 0.0
    for _, gaussian in marginal.gaussians(values.hyper[chosen]):
        if gaussian is None:
            continue
        weights = marginal.weigh(gaussian)
        ess, error = np.minimum(ess, weights.ess), max(error, weights.error)
        uneven = np.flatnonzero(weights.ess < EVEN * n_draws)
        looked_at = uneven[np.argsort(weights.ess[uneven])[:WORST]]
        for group in looked_at:
            for block in weights.by_group[:, :, group]:
                khat[group] = max(khat[group], _khat(block))
    return GroupQuality(n_draws, ess, khat, error)


def _khat(log_weights: np.ndarray) -> float:
    if not np.isfinite(log_weights).all():
        log_weights = log_weights[np.isfinite(log_weights)]
    return smooth(log_weights)[1] if len(log_weights) >= MIN_DRAWS else np.inf
