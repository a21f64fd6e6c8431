"""Pools of rows in memory: one that is used, and the next one, which a thread reads."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from pymc_flows.rows.order import Order, Pool
from pymc_flows.rows.source import Arrays, Source, check_block


@dataclass(frozen=True)
class Loaded:
    """A pool in memory.

    Attributes
    ----------
    pool : Pool
    arrays : dict of str to ndarray
        Rows in the order in which they were read.
    places : ndarray of int
        Where the rows of the epoch are, in their order.
    """

    pool: Pool
    arrays: Arrays
    places: np.ndarray


class Pools:
    """Reads pools in order, one ahead.

    Parameters
    ----------
    source : Source
    order : Order
    """

    def __init__(self, source: Source, order: Order):
        self._source, self._order = source, order
        self._current: Loaded | None = None
        self._next: tuple[Pool, Future[Loaded]] | None = None
        self._executor: ThreadPoolExecutor | None = None

    def at(self, row: int) -> Loaded:
        """The pool that has a row, counted on from the first of the first epoch."""
        pool = self._order.pool_at(row)
        if self._current is None or self._current.pool != pool:
            self._current = None  # before another one takes its memory
            if self._next is not None and self._next[0] == pool:
                found = self._next[1].result()
            else:
                found = self._load(pool)
            self._current = found
            following = self._order.after(pool)
            if following.blocks == pool.blocks and len(found.places) == self._order.total:
                # All rows are in memory: there is nothing to read.
                self._next = None
            else:
                self._next = following, self._thread().submit(self._load, following)
        return self._current

    def close(self) -> None:
        """Give the memory back."""
        self._current = self._next = self._executor = None

    def _thread(self) -> ThreadPoolExecutor:
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, "pymc_flows.rows")
        return self._executor

    def _load(self, pool: Pool) -> Loaded:
        n = pool.end - pool.begin
        columns = self._source.columns
        arrays = {name: np.empty((n, *c.shape), c.dtype) for name, c in columns.items()}
        begin = 0
        for block in pool.blocks:
            found = self._source.read(block)
            check_block(found, self._source, block)
            end = begin + int(self._source.lengths[block])
            for name, array in arrays.items():
                array[begin:end] = found[name]
            begin = end
        return Loaded(pool, arrays, self._order.permutation(pool))

    def __getstate__(self) -> dict[str, object]:
        """Leave what is in memory."""
        return {"_source": self._source, "_order": self._order}

    def __setstate__(self, state: dict[str, object]) -> None:
        """Restore."""
        self.__dict__.update(state)
        self.close()
