"""A proposal with wider tails for groups that are not Gaussian.

Where its likelihood is flat, a group's posterior falls off as slowly as its prior, and the Gaussian
at its mode, which is narrower, leaves weights whose variance is infinite if it has less than half
of the prior's. So one of eight draws of such a group comes from a Gaussian with twice the standard
deviations, and weights refer to the mixture of both: they are bounded if the prior's variances are
no more than four times as large (Hesterberg, Weighted average importance sampling and defensive
mixture distributions, Technometrics 37(2), 1995; in shares that are fixed instead of random, Owen &
Zhou, Safe and effective importance sampling, JASA 95(449), 2000).
"""

from __future__ import annotations

import math

import numpy as np

# One of so many draws is wide, and has so many times the standard deviations.
ONE_OF, WIDER = 8, 2.0
# Of larger groups, wide draws are too far out to be of use: weights are bounded by 8 · 2^size.
LARGEST = 6
# Share of effective draws of a group that is as good as Gaussian. It is strict, since 64 draws miss
# most tails that matter to some of thousands of groups.
EVEN = 0.998


def want_wider(ess: np.ndarray, n_draws: int, groups: np.ndarray) -> np.ndarray:
    """Choose the groups (n_groups,) that need wider tails.

    Parameters
    ----------
    ess : ndarray, shape (n_groups,)
        Effective number of draws of the Gaussian alone.
    n_draws : int
    groups : ndarray of int, shape (n_field,)
        −1 in the separator.
    """
    sizes = np.bincount(groups[groups >= 0], minlength=len(ess))
    return ~(ess >= EVEN * n_draws) & (sizes <= LARGEST)


def n_wide(n: int) -> int:
    """How many of n draws are wide: the last ones, which cover as much as the others.

    Aligned blocks of a Sobol' sequence are evenly spread, every eighth point is not.
    """
    return n // ONE_OF


def log_mixture(squares: np.ndarray, sizes: np.ndarray, share: float) -> np.ndarray:
    """Log density of the mixture, relative to that of a standard normal, in nats.

    Parameters
    ----------
    squares : ndarray, shape (n, k)
        Squared norms of noise, of k groups.
    sizes : ndarray of int, shape (k,)
        Their dimensions.
    share : float
        Of wide draws.
    """
    if not share:
        return np.zeros_like(squares)
    wide = 0.5 * (1 - WIDER**-2) * squares - sizes * math.log(WIDER)
    return np.logaddexp(math.log1p(-share), math.log(share) + wide)
