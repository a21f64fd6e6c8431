"""The order of rows: blocks at random, in pools whose rows are permuted together."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np


@dataclass(frozen=True)
class Pool:
    """Rows that are in memory together.

    Attributes
    ----------
    epoch, index : int
        The epoch, and the number of the pool in it, both from 0.
    blocks : tuple of int
        Blocks, in the order in which they are read.
    begin, end : int
        Half-open range of its rows in the epoch.
    """

    epoch: int
    index: int
    blocks: tuple[int, ...]
    begin: int
    end: int


class Order:
    """The order of all rows, epoch by epoch; each epoch has every row once.

    The order of the blocks is drawn for each epoch. Consecutive blocks make a pool, whose rows are
    permuted. So a row can come anywhere in an epoch, but the rows of one block come in one pool.
    The order is a function of the seed alone, and any position in it is found at once.

    Parameters
    ----------
    lengths : sequence of int
        Rows of each block.
    pool_rows : int
        A pool ends with the block that brings it to this many rows.
    seed : int or None
        None gives the order in which rows are stored.
    """

    def __init__(self, lengths: Sequence[int], pool_rows: int, seed: int | None):
        self._lengths, self._pool_rows, self.seed = np.asarray(lengths), pool_rows, seed
        self.total = int(self._lengths.sum())
        self._pools = lru_cache(maxsize=2)(self._drawn)

    @property
    def largest(self) -> int:
        """Most rows that a pool may have."""
        return min(self.total, self._pool_rows + int(self._lengths.max()) - 1)

    def pool_at(self, row: int) -> Pool:
        """The pool of a row, counted from the first row of the first epoch."""
        epoch, offset = divmod(row, self.total)
        pools = self._pools(epoch)
        return pools[bisect_right(pools, offset, key=lambda pool: pool.begin) - 1]

    def after(self, pool: Pool) -> Pool:
        """The pool that follows."""
        return self.pool_at(pool.epoch * self.total + pool.end)

    def permutation(self, pool: Pool) -> np.ndarray:
        """The order of the rows of a pool."""
        n = pool.end - pool.begin
        if self.seed is None:
            return np.arange(n)
        return np.random.default_rng([self.seed, pool.epoch, 1 + pool.index]).permutation(n)

    def _drawn(self, epoch: int) -> list[Pool]:
        blocks = np.arange(len(self._lengths))
        # If one pool has all rows, the order of the blocks does not matter.
        if self.seed is not None and self._pool_rows < self.total:
            np.random.default_rng([self.seed, epoch, 0]).shuffle(blocks)
        pools: list[Pool] = []
        begin, end, members = 0, 0, list[int]()
        for block in blocks.tolist():
            members.append(block)
            end += int(self._lengths[block])
            if end - begin >= self._pool_rows or end == self.total:
                pools.append(Pool(epoch, len(pools), tuple(members), begin, end))
                begin, members = end, []
        return pools

    def __getstate__(self) -> dict[str, object]:
        """Leave out the cache of pools."""
        return {k: v for k, v in self.__dict__.items() if k != "_pools"}

    def __setstate__(self, state: dict[str, object]) -> None:
        """Restore."""
        self.__dict__.update(state)
        self._pools = lru_cache(maxsize=2)(self._drawn)
