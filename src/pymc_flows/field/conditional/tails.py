"""A proposal with wider tails for groups that are not Gaussian.

Where its likelihood is flat, a group's posterior falls off as slowly as its prior. The Gaussian at
its mode is narrower, and weights have an infinite variance if its variance is less than half of the
prior's. So one of eight draws of such a group comes from a Gaussian with twice the standard
deviations, and weights refer to the mixture of both: they are bounded if the prior's variances are
no more than four times as large (Hesterberg, Weighted average importance sampling and defensive
mixture distributions, Technometrics 37(2), 1995; with fixed instead of random shares, Owen & Zhou,
Safe and effective importance sampling, JASA 95(449), 2000).
"""

from __future__ import annotations

import math

import numpy as np

# One of this many draws is wide, with this many times the standard deviations.
ONE_OF, WIDER = 8, 2.0
# Wide draws of larger groups are too far out to be of use: weights are bounded by 8 · 2^size.
LARGEST = 6
# A group with this share of effective draws counts as Gaussian. It is close to 1, since 64 draws
# miss most of the tails that matter for a few of thousands of groups.
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
    """How many of n draws are wide: the last ones.

    The last eighth of a Sobol' sequence is spread evenly; every eighth point would not be.
    """
    return n // ONE_OF


def log_mixture(squares: np.ndarray, sizes: np.ndarray, share: float) -> np.ndarray:
    """Log density of the mixture, relative to that of a standard normal, in nats.

    Parameters
    ----------
    squares : ndarray, shape (n, k)
        Squared norms of the noise of k groups.
    sizes : ndarray of int, shape (k,)
        Numbers of elements of the groups.
    share : float
        Share of wide draws.
    """
    if not share:
        return np.zeros_like(squares)
    wide = 0.5 * (1 - WIDER**-2) * squares - sizes * math.log(WIDER)
    return np.logaddexp(math.log1p(-share), math.log(share) + wide)
