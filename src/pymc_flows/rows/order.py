"""Which rows come when: blocks at random, in pools whose rows are permuted together."""

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
        Which of the pools of which epoch.
    blocks : tuple of int
        In the order in which they are read.
    begin, end : int
        Rows of the epoch before its first, and up to its last.
    """

    epoch: int
    index: int
    blocks: tuple[int, ...]
    begin: int
    end: int


class Order:
    """The order of all rows, epoch by epoch; each has every row once.

    Blocks are read in an order that is drawn for each epoch. Consecutive ones make a pool, whose
    rows are permuted. So a row can come anywhere in an epoch, but rows of one block come near to
    each other: by a pool. It is a function of the seed alone, and any place of it is found at once.

    Parameters
    ----------
    lengths : sequence of int
        Rows of each block.
    pool_rows : int
        A pool ends with the block that brings it to so many rows.
    seed : int or None
        None is the order in which rows are stored.
    """

    def __init__(self, lengths: Sequence[int], pool_rows: int, seed: int | None):
        self._lengths, self._pool_rows, self.seed = np.asarray(lengths), pool_rows, seed
        self.total = int(self._lengths.sum())
        self._pools = lru_cache(maxsize=2)(self._drawn)

    @property
    def largest(self) -> int:
        """As many rows as a pool may have."""
        return min(self.total, self._pool_rows + int(self._lengths.max()) - 1)

    def pool_at(self, row: int) -> Pool:
        """The pool that has a row, counted on from the first row of the first epoch."""
        epoch, offset = divmod(row, self.total)
        pools = self._pools(epoch)
        return pools[bisect_right(pools, offset, key=lambda pool: pool.begin) - 1]

    def after(self, pool: Pool) -> Pool:
        """The pool that follows."""
        return self.pool_at(pool.epoch * self.total + pool.end)

    def permutation(self, pool: Pool) -> np.ndarray:
        """In which order the rows of a pool come."""
        n = pool.end - pool.begin
        if self.seed is None:
            return np.arange(n)
        return np.random.default_rng([self.seed, pool.epoch, 1 + pool.index]).permutation(n)

    def _drawn(self, epoch: int) -> list[Pool]:
        blocks = np.arange(len(self._lengths))
        # Where all rows are in memory, the order of blocks does not matter.
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
        """Leave what is drawn again."""
        return {k: v for k, v in self.__dict__.items() if k != "_pools"}

    def __setstate__(self, state: dict[str, object]) -> None:
        """Restore."""
        self.__dict__.update(state)
        self._pools = lru_cache(maxsize=2)(self._drawn)
