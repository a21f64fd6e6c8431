"""Pools of rows in memory: the current one, and the next one, which a thread reads."""

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
    memory : dict of str to ndarray
        Rows in the order in which they were read; arrays may be longer than the pool.
    places : ndarray of int
        Positions of the rows in ``memory``, in the order of the epoch.
    """

    pool: Pool
    memory: Arrays
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
        self._free: list[Arrays] = []

    def at(self, row: int) -> Loaded:
        """The pool of a row, counted from the first row of the first epoch."""
        pool, current = self._order.pool_at(row), self._current
        if current is not None and current.pool == pool:
            return current
        if current is not None and current.pool.blocks == pool.blocks:  # all rows are in memory
            self._current = Loaded(pool, current.memory, self._order.permutation(pool))
            return self._current
        found = self._awaited(pool)
        if current is not None:
            self._free.append(current.memory)
            self._current = None
        self._current = found or self._load(pool, self._memory())
        following = self._order.after(pool)
        if following.blocks != pool.blocks:
            self._next = following, self._thread().submit(self._load, following, self._memory())
        return self._current

    def close(self) -> None:
        """Give the memory back."""
        self._current = self._next = self._executor = None
        self._free = []

    def _awaited(self, pool: Pool) -> Loaded | None:
        """The pool, if it is the one that the thread reads."""
        if self._next is None:
            return None
        (expected, future), self._next = self._next, None
        found = future.result()
        if expected == pool:
            return found
        self._free.append(found.memory)
        return None

    def _memory(self) -> Arrays:
        """Arrays for a pool, reused if possible: the system must clear new memory."""
        if self._free:
            return self._free.pop()
        n = self._order.largest
        return {k: np.empty((n, *c.shape), c.dtype) for k, c in self._source.columns.items()}

    def _thread(self) -> ThreadPoolExecutor:
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, "pymc_flows.rows")
        return self._executor

    def _load(self, pool: Pool, memory: Arrays) -> Loaded:
        begin = 0
        for block in pool.blocks:
            end = begin + int(self._source.lengths[block])
            part = {name: array[begin:end] for name, array in memory.items()}
            self._source.read(block, part)
            check_block(part, self._source, block)
            begin = end
        return Loaded(pool, memory, self._order.permutation(pool))

    def __getstate__(self) -> dict[str, object]:
        """Leave out what is in memory."""
        return {"_source": self._source, "_order": self._order}

    def __setstate__(self, state: dict[str, object]) -> None:
        """Restore."""
        self.__dict__.update(state)
        self.close()
