"""Batches: those of consecutive steps, and all rows once."""

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
        """Put the batches of a step and of those after it into arrays.

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
        """Put a row and those after it into arrays (rows, *shape of the column)."""
        total, n, done = self._order.total, len(arrays[0]), 0
        while done < n:
            loaded = self._pools.at(row + done)
            begin = (row + done) % total - loaded.pool.begin
            places = loaded.places[begin : begin + n - done]
            for name, array in zip(self._names, arrays, strict=True):
                # Places are known to be inside; to raise for others it would copy.
                part = array[done : done + len(places)]
                np.take(loaded.memory[name], places, axis=0, out=part, mode="clip")
            done += len(places)

    def close(self) -> None:
        """Give memory back; the next batches are read again."""
        self._pools.close()

    def state_dict(self) -> dict[str, Any]:
        """What a file keeps, as JSON has it, besides the number of steps."""
        return {"seed": self._seed, "rows": self._order.total, "batch_size": self._batch_size}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the order of a file.

        Raises
        ------
        StorageError
            If it is that of other rows.
        KeyError, TypeError, ValueError
            If it is not one.
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
        Are filled with one batch after the other.
    total : int
    """

    def __init__(self, feed: Feed, arrays: Sequence[np.ndarray], total: int):
        self._feed, self._arrays, self._total = feed, arrays, total

    def __iter__(self) -> Iterator[float]:
        """Fill the arrays; each time with the weight of the batch that is in them.

        The sum of a function of batches that is a mean over their rows, with these weights, is the
        mean over all rows. The last rows are filled up with copies of one of them, whose share is
        then taken away again: a batch of nothing else has a negative weight. So all have one size.
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
