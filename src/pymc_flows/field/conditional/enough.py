"""How many draws of groups, and of the separator, a corrected marginal needs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

# Fewest draws behind the weights of groups; with a separator, fewest draws of it, and of the groups
# given each: some of them must be wide if any groups have wide tails.
MIN_DRAWS, MIN_OUTER, MIN_INNER, MIN_WIDE = 16, 4, 4, 8
# Most times by which draws become more.
MOST_FACTOR = 4

type Noise = tuple[float, float]
"""Variances of the log weight of a block and of the log marginal, see `GroupWeights.variances`."""


def enough(
    levels: Sequence[Noise],
    differences: Sequence[Noise],
    now: tuple[int, int],
    variance: float,
    cheap: float,
    most: float,
    *,
    wide: bool = False,
) -> tuple[int, int]:
    """Numbers of blocks, and of draws in each, that suffice: powers of two.

    Draws of the hyperparameters depend on differences of the log marginal alone, the log evidence
    on its level. So draws for differences may take long, more draws for the level must be cheap.

    Parameters
    ----------
    levels, differences : sequence of Noise
        Of the log marginal at several values of the hyperparameters, and of its differences from
        one value, with the draws that there are ``now``.
    now : tuple of int
        Numbers of blocks and of draws in each.
    variance : float
        Variance that suffices, in nats².
    cheap, most : float
        Numbers of draws that are cheap, and that are affordable at all.
    wide : bool
        Whether any groups have wide tails.
    """
    least = MIN_WIDE if wide else MIN_INNER
    needed = _numbers(*_mean(differences), now, variance, least)
    wished = _numbers(*_mean(levels), now, variance, least)
    needed = _bounded(needed, (MIN_OUTER, least), max(most, math.prod(now)))
    return _bounded((max(needed[0], wished[0]), max(needed[1], wished[1])), needed, cheap)


def _mean(found: Sequence[Noise]) -> Noise:
    """Means over values; infinite if any is not finite."""
    within, total = np.mean(found, axis=0) if len(found) else (math.inf, math.inf)
    is_known = np.isfinite([within, total]).all()
    return (float(within), float(total)) if is_known else (math.inf, math.inf)


def _numbers(
    within: float, total: float, now: tuple[int, int], variance: float, least: int
) -> tuple[int, int]:
    """Numbers that have a variance: it falls with the number of draws."""
    n_outer, n_inner = now
    if n_outer == 1:
        return 1, _power(n_inner * total / variance, MIN_DRAWS, MOST_FACTOR * n_inner)
    inner = _power(n_inner * within / (n_outer * variance), least, n_inner)
    block = n_outer * total
    if inner < n_inner:  # a block then has more noise
        block += within * (n_inner / inner - 1)
    return _power(block / variance, MIN_OUTER, MOST_FACTOR * n_outer), inner


def _power(wanted: float, least: int, most: int) -> int:
    """The smallest power of two that is enough, between two bounds."""
    return int(np.clip(2.0 ** math.ceil(math.log2(np.clip(wanted, 1, most))), least, most))


def _bounded(numbers: tuple[int, int], least: tuple[int, int], most: float) -> tuple[int, int]:
    """Halve numbers, blocks first, until there are no more draws than ``most``."""
    n_outer, n_inner = numbers
    while n_outer * n_inner > most:
        if n_outer > least[0]:
            n_outer //= 2
        elif n_inner > least[1]:
            n_inner //= 2
        else:
            break
    return n_outer, n_inner
