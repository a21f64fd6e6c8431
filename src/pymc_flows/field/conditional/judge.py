"""How good the Gaussian over the field is, group by group."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pymc_flows.field.conditional.weights import GroupWeights
from pymc_flows.importance import threshold

# Pareto's k-hat is fitted to groups with a smaller share of effective draws than this, and to no
# more than so many, the worst ones.
EVEN, MOST = 0.9, 1_000
# Of fewer weights, the largest fifth is too small to say anything of a tail.
MIN_DRAWS = 25


@dataclass(frozen=True, eq=False)
class GroupQuality:
    """What the weights of draws say of each group.

    Attributes
    ----------
    n_draws : int
        Draws of each group.
    ess : ndarray, shape (n_groups,)
        Effective number of these.
    khat : ndarray, shape (n_groups,)
        Shape of the generalised Pareto distribution of the largest weights, the largest of those at
        several values of the hyperparameters; −∞ for groups with weights so even that it was not
        fitted.
    """

    n_draws: int
    ess: np.ndarray
    khat: np.ndarray

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

    def worst(self, n: int = 10) -> np.ndarray:
        """Numbers of the groups with the largest k-hat, then the fewest effective draws."""
        return np.lexsort((self.ess, -self.khat))[:n]


def judge(found: list[GroupWeights]) -> GroupQuality:
    """Judge groups by their weights at several values of the hyperparameters.

    Parameters
    ----------
    found : list of GroupWeights
        Not empty, with the same number of draws each.
    """
    ess = np.min([weights.ess for weights in found], axis=0)
    n_draws = found[0].by_group.shape[1]
    khat = np.full(len(ess), -np.inf)
    poor = np.flatnonzero(ess < EVEN * n_draws)
    poor = poor[np.argsort(ess[poor], kind="stable")[:MOST]]
    if len(poor) and n_draws >= MIN_DRAWS:
        blocks = np.concatenate([weights.by_group[:, :, poor] for weights in found])
        khat[poor] = _khat(blocks).max(axis=0)
    elif len(poor):
        khat[poor] = np.inf
    return GroupQuality(n_draws, ess, khat)


def _khat(log_weights: np.ndarray) -> np.ndarray:
    """k-hat (m, groups) of log weights (m, draws, groups)."""
    from arviz_stats.base.array import BaseArray  # slow to import

    # ArviZ takes the log likelihoods of leave-one-out cross-validation: minus the log weights.
    likelihoods = -np.moveaxis(log_weights, 1, -1)
    shape, psis = likelihoods.shape[:-1], BaseArray().psislw
    found = np.full(shape, -np.inf)
    for index in np.ndindex(shape):
        row = likelihoods[index]
        try:
            found[index] = psis(row)[1]
        except ValueError:  # the largest weights are all equal: there is no tail
            continue
    return found
