"""A proposal with wider tails for groups that are not Gaussian.

Where its likelihood is flat, a group's posterior falls off as slowly as its prior. The Gaussian at
its mode is narrower, and weights have an infinite variance if its variance is less than half of the
prior's. So one of eight draws of such a group comes from a Gaussian with twice the standard
deviations, one of sixteen from one with four times these, and weights refer to the mixture: they
are bounded if the prior's standard deviations are no more than four times as large (Hesterberg,
Weighted average importance sampling and defensive mixture distributions, Technometrics 37(2), 1995;
with fixed instead of random shares, Owen & Zhou, Safe and effective importance sampling, JASA
95(449), 2000).
"""

from __future__ import annotations

import math

import numpy as np

# One of so many draws has so many times the standard deviations; the widest come last.
PARTS = ((8, 2.0), (16, 4.0))
# Wide draws of larger groups are too far out to be of use: weights are bounded by 16 · 4^size.
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


def spreads(n: int) -> np.ndarray:
    """Standard deviations (n,) of n draws: most are 1, the last ones larger.

    Blocks of sixteenths of a Sobol' sequence are spread evenly; every sixteenth point would not be.
    """
    found, end = np.ones(n), n
    for one_of, wider in reversed(PARTS):
        begin = end - n // one_of
        found[begin:end] = wider
        end = begin
    return found


def log_mixture(squares: np.ndarray, sizes: np.ndarray, spreads: np.ndarray) -> np.ndarray:
    """Log density (m, k) of the mixture, relative to that of a standard normal, in nats.

    Parameters
    ----------
    squares : ndarray, shape (m, k)
        Squared norms of the noise of k groups.
    sizes : ndarray of int, shape (k,)
        Numbers of elements of the groups.
    spreads : ndarray, shape (n,)
        Standard deviations of the draws, which tell the shares.
    """
    found = np.full_like(squares, -np.inf)
    for wider, count in zip(*np.unique(spreads, return_counts=True), strict=True):
        part = math.log(count / len(spreads)) - sizes * math.log(wider)
        found = np.logaddexp(found, part + 0.5 * (1 - wider**-2) * squares)
    return found
