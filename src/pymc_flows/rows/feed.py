"""Batches of consecutive steps, and all rows once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pymc_flows.errors import StorageError
from pymc_flows.rows.order import Order
from pymc_flows.rows.pools import Pools
from pymc_flows.rows.source import Source
from pymc_flows.support.arguments import as_count


class Feed:
    """The batches of steps 0, 1, …: consecutive rows of a seeded order, across epochs.

    Parameters
    ----------
    source : Source
    names : sequence of str
        Columns, in the order in which arrays are filled.
    batch_size : int
    pool_rows : int
    seed : int or None
    """

    def __init__(
        self,
        source: Source,
        names: Sequence[str],
        batch_size: int,
        pool_rows: int,
        seed: int | None,
    ):
        self._source, self._names = source, list(names)
        self._batch_size, self._pool_rows = batch_size, pool_rows
        self._begin(seed)

    def _begin(self, seed: int | None) -> None:
        self._seed = seed
        self._order = Order(self._source.lengths, self._pool_rows, seed)
        self._pools = Pools(self._source, self._order)

    def fill(self, step: int, arrays: Sequence[np.ndarray]) -> None:
        """Put the batches of a step and of the following ones into arrays.

        Parameters
        ----------
        step : int
        arrays : sequence of ndarray, shape (steps, batch_size, *shape of the column)
            One for each name.

        Raises
        ------
        ArgumentError
            If there are NaN or NULLs among the rows.
        """
        flat = [a.reshape((-1, *a.shape[2:])) for a in arrays]
        self.rows(step * self._batch_size, flat)

    def rows(self, row: int, arrays: Sequence[np.ndarray]) -> None:
        """Put a row and the following ones into arrays (rows, *shape of the column)."""
        total, n, done = self._order.total, len(arrays[0]), 0
        while done < n:
            loaded = self._pools.at(row + done)
            begin = (row + done) % total - loaded.pool.begin
            places = loaded.places[begin : begin + n - done]
            for name, array in zip(self._names, arrays, strict=True):
                # All places are inside; mode="raise" would copy.
                part = array[done : done + len(places)]
                np.take(loaded.memory[name], places, axis=0, out=part, mode="clip")
            done += len(places)

    def close(self) -> None:
        """Give memory back; the next batches are read again."""
        self._pools.close()

    def state_dict(self) -> dict[str, Any]:
        """The state for a file, as JSON; the file has the number of steps itself."""
        return {"seed": self._seed, "rows": self._order.total, "batch_size": self._batch_size}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue the order of a file.

        Raises
        ------
        StorageError
            If it is the order of other rows.
        KeyError, TypeError, ValueError
            If the state is malformed.
        """
        own = self.state_dict()
        other = {k: state[k] for k in own if k != "seed" and state[k] != own[k]}
        if other:
            raise StorageError(
                f"the fit in the file has read other rows\nexpected {own}, got {dict(state)}"
            )
        self._begin(as_count(state["seed"]))


class Scan:
    """All rows once, in the order in which they are stored, in batches of one size.

    Parameters
    ----------
    feed : Feed
        Without a seed.
    arrays : sequence of ndarray, shape (batch_size, *shape of the column)
        Filled with one batch after the other.
    total : int
        Number of rows.
    """

    def __init__(self, feed: Feed, arrays: Sequence[np.ndarray], total: int):
        self._feed, self._arrays, self._total = feed, arrays, total

    def __iter__(self) -> Iterator[float]:
        """Fill the arrays batch by batch, and yield the weight of each batch.

        If a function of a batch is a mean over its rows, its sum over batches with these weights is
        the mean over all rows. All batches have one size: the last one is filled up with copies of
        a row, and a batch of this row alone, with a negative weight, subtracts them again.
        """
        size, total, arrays = len(self._arrays[0]), self._total, self._arrays
        for begin in range(0, total, size):
            n = min(size, total - begin)
            self._feed.rows(begin, [a[:n] for a in arrays])
            for array in arrays:
                array[n:] = array[0]
            yield size / total
            if n < size:
                for array in arrays:
                    array[:] = array[0].copy()
                yield -(size - n) / total
        self._feed.close()
