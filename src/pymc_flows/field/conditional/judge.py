"""How good the Gaussian over the field is, group by group."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pymc_flows.field.conditional.weights import GroupWeights
from pymc_flows.importance import threshold

# k-hat is fitted to groups with a smaller share of effective draws than this, and to no more than
# this many, the worst ones.
EVEN, MOST = 0.9, 1_000
# Draws of the posterior are chosen from 64 of each group, or fewer. With a smaller share of
# effective ones than this, less than four of them, weights correct little, whatever their tail.
FEWEST = 1 / 16
# With fewer draws, the largest fifth of the weights is too few to say anything of a tail.
MIN_DRAWS = 25


@dataclass(frozen=True, eq=False)
class GroupQuality:
    """Quality of the Gaussian in each group, by weights of draws.

    Attributes
    ----------
    n_draws : int
        Draws of each group.
    ess : ndarray, shape (n_groups,)
        Effective number of draws.
    khat : ndarray, shape (n_groups,)
        Shape k of the generalised Pareto distribution of the largest weights; of several values of
        the hyperparameters, the largest k. −∞ where it was not fitted because the weights are even;
        ∞ where weights cannot be judged, or too few draws are effective (`FEWEST`).
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
        """Indices of the n worst groups: by largest k-hat, then by fewest effective draws."""
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
    khat = np.where(ess > 0, -np.inf, np.inf)
    poor = np.flatnonzero((ess > 0) & (ess < EVEN * n_draws))
    poor = poor[np.argsort(ess[poor], kind="stable")[:MOST]]
    if n_draws < MIN_DRAWS:
        khat[poor] = np.inf
    elif len(poor):
        blocks = np.concatenate([weights.by_group[:, :, poor] for weights in found])
        khat[poor] = _khat(blocks).max(axis=0)
    khat[ess < FEWEST * n_draws] = np.inf
    return GroupQuality(n_draws, ess, khat)


def _khat(log_weights: np.ndarray) -> np.ndarray:
    """k-hat (m, groups) of log weights (m, draws, groups)."""
    from arviz_stats.base.array import BaseArray  # slow to import

    # ArviZ takes the log likelihoods of leave-one-out cross-validation: minus the log weights.
    likelihoods = -np.moveaxis(log_weights, 1, -1)
    psis = BaseArray().psislw
    found = np.full(likelihoods.shape[:-1], -np.inf)
    for index in np.ndindex(found.shape):
        try:
            found[index] = psis(likelihoods[index])[1]
        except ValueError:  # the largest weights are all equal: there is no tail
            continue
    return found
