"""Integer seeds from the argument ``random_seed``."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from pymc_flows.errors import ArgumentError

__all__ = ["RandomState", "integer_seed", "integer_seeds"]

type RandomState = (
    int | Sequence[int] | np.ndarray | np.random.RandomState | np.random.Generator | None
)

# Drawn seeds lie below this, as PyMC's do, so that the same argument gives the same seeds.
_BELOW = 2**30


def integer_seed(random_seed: RandomState) -> int:
    """Return one integer seed, see `integer_seeds`."""
    return integer_seeds(random_seed, 1)[0]


def integer_seeds(random_seed: RandomState, n: int) -> list[int]:
    """Return ``n`` integer seeds, the ones that PyMC makes of the same argument.

    Parameters
    ----------
    random_seed : int, sequence of int, Generator, RandomState or None
        An integer is itself the only seed, or seeds the draw of several seeds. A generator gives
        the next seeds of its stream. A sequence holds the seeds. None gives new ones.
    n : int

    Returns
    -------
    list of int
        Distinct, unless they were given.

    Raises
    ------
    ArgumentError
        If it is none of these, or a sequence of another length.
    """
    if isinstance(random_seed, np.random.RandomState):
        return _distinct(random_seed.randint, n)
    if isinstance(random_seed, np.random.Generator):
        return _distinct(random_seed.integers, n)
    if random_seed is None:
        return _distinct(np.random.default_rng().integers, n)
    if isinstance(random_seed, list | tuple | np.ndarray) and np.ndim(random_seed) == 1:
        if len(random_seed) != n:
            raise ArgumentError(
                f"random_seed holds {len(random_seed)} seeds, expected {n}\n"
                "Give one integer or a numpy.random.Generator: it seeds everything."
            )
        return [_integer(seed) for seed in random_seed]
    seed = _integer(random_seed)
    return [seed] if n == 1 else _distinct(np.random.default_rng(seed).integers, n)


def _integer(seed: Any) -> int:
    try:
        return operator.index(seed)
    except TypeError:
        raise ArgumentError(
            f"random_seed must be an integer, a numpy.random.Generator or None, got {seed!r}"
        ) from None


def _distinct(integers: Any, n: int) -> list[int]:
    seeds: list[int] = []
    while len(set(seeds)) != n:
        seeds = [int(seed) for seed in integers(_BELOW, dtype=np.int64, size=n)]
    return seeds
