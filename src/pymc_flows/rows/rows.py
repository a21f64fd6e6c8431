"""`Rows`: data that a model sees batch by batch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pytensor
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Variable

from pymc_flows.errors import ArgumentError
from pymc_flows.rows.arrays import ArraySource
from pymc_flows.rows.arrow import Columns, ParquetSource, TableSource
from pymc_flows.rows.feed import Feed, Scan
from pymc_flows.rows.source import Source
from pymc_flows.support.arguments import check_integer

BATCH_SIZE = 4096
# Default size of a pool. Two pools are in memory at a time.
POOL_BYTES = 64 * 2**20
# Seed of the rows that a model has outside a fit.
FIRST_SEED = 0


class Rows:
    """Rows of data on disk, of which a model sees one batch at a time, as with `pymc.Minibatch`.

    ``rows["x"]`` is a variable to build a model from, for covariates and observed values alike. In
    each step of a fit it holds other rows. ``total_size=rows.total`` says how many there are.

    Rows are shuffled in two stages. The blocks of the source (row groups of Parquet, chunks of zarr
    and Dask, a megabyte of other arrays) are read in a random order, and several consecutive ones
    make a pool, whose rows are put into a random order in memory. Each row comes once an epoch, and
    rows of one block come in the same pool. So if rows are sorted on disk, let a pool have many
    blocks: use small row groups, or a larger ``pool_rows``. A thread reads the next pool while
    steps are taken. The seed of a fit decides the order.

    Made by `parquet`, `arrow` and `arrays`.

    Attributes
    ----------
    total : int
        Number of rows.
    batch_size : int
        Rows in a step.
    pool_rows : int
        A pool ends with the block that brings it to this many rows.
    names : tuple of str
        Names of the columns.

    Examples
    --------
    >>> import numpy as np
    >>> import pymc as pm
    >>> import pymc_flows as pmf
    >>> rows = pmf.Rows.arrays({"y": np.random.default_rng(1).normal(3, 1, 10_000)}, batch_size=500)
    >>> with pm.Model():
    ...     mu = pm.Normal("mu", 0, 10)
    ...     y = pm.Normal("y", mu, 1, observed=rows["y"], total_size=rows.total)
    >>> rows
    Rows(arrays (numpy), rows=10,000, batch_size=500, names=['y'])
    """

    def __init__(self, source: Source, batch_size: int, pool_rows: int | None):
        self._source = source
        self.total = int(sum(source.lengths))
        if not self.total:
            raise ArgumentError("there are no rows")
        self.batch_size = check_integer("batch_size", batch_size)
        if self.batch_size > self.total:
            raise ArgumentError(
                f"batch_size is {self.batch_size:,}, and there are {self.total:,} rows"
            )
        width = sum(column.nbytes for column in source.columns.values())
        default = max(self.batch_size, POOL_BYTES // max(1, width))
        self.pool_rows = default if pool_rows is None else check_integer("pool_rows", pool_rows)
        self.names = tuple(source.columns)

    @classmethod
    def parquet(
        cls,
        path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        columns: Columns = None,
        *,
        batch_size: int = BATCH_SIZE,
        pool_rows: int | None = None,
    ) -> Rows:
        """Rows of Parquet files.

        Parameters
        ----------
        path : str, path-like or sequence of them
            A file, a folder, or several files; also a URI that Arrow knows, such as ``s3://…``.
        columns : mapping, sequence of str, optional
            Names of columns; by default all. A mapping renames columns, or joins several into one
            array: with ``{"x": ["x0", "x1"], "y": "y"}``, ``rows["x"]`` has shape (batch_size, 2).
        batch_size : int
            Rows in a step.
        pool_rows : int, optional
            Rows that are shuffled together, by default 64 MiB of them. A pool has whole row
            groups, at least one, and two pools are in memory at a time.

        Raises
        ------
        ArgumentError
            If there are no rows, a column is missing, not numeric, or has NULLs, or files differ
            in their columns.
        FileNotFoundError
            If there is no such file.
        ModuleNotFoundError
            If pyarrow is missing (the extra ``parquet``).
        """
        return cls(ParquetSource(path, columns), batch_size, pool_rows)

    @classmethod
    def arrow(
        cls,
        table: Any,
        columns: Columns = None,
        *,
        batch_size: int = BATCH_SIZE,
        pool_rows: int | None = None,
    ) -> Rows:
        """Rows of an Arrow table, which may be a memory map.

        Parameters
        ----------
        table : pyarrow.Table
        columns, batch_size, pool_rows
            As for `parquet`. Blocks take a megabyte.

        Raises
        ------
        ArgumentError, ModuleNotFoundError
            As `parquet`.
        """
        return cls(TableSource(table, columns), batch_size, pool_rows)

    @classmethod
    def arrays(
        cls,
        arrays: Mapping[str, Any],
        *,
        batch_size: int = BATCH_SIZE,
        pool_rows: int | None = None,
    ) -> Rows:
        """Rows of arrays of one length, of NumPy (also memory maps), zarr, Dask or HDF5.

        Parameters
        ----------
        arrays : mapping of str to array
            Anything with a shape, a dtype and slices; rows on the first axis.
        batch_size, pool_rows
            As for `parquet`. Blocks are the chunks of the arrays.

        Raises
        ------
        ArgumentError
            If lengths differ, or an array is not numeric or has masked values.
        """
        return cls(ArraySource(arrays), batch_size, pool_rows)

    def __repr__(self) -> str:
        """Source and sizes."""
        return (
            f"Rows({self._source.label}, rows={self.total:,}, batch_size={self.batch_size:,}, "
            f"names={list(self.names)})"
        )

    def __getitem__(self, name: str) -> SharedVariable:
        """The variable (batch_size, *shape of the column) of a name.

        Outside a fit its value is that of `first`.
        """
        if name not in self.names:
            raise ArgumentError(f"there is no column {name!r}\nThere are: {', '.join(self.names)}.")
        return self._variables[name]

    @cached_property
    def first(self) -> dict[str, np.ndarray]:
        """A random batch of rows, by name: always the same one."""
        arrays = self.buffers(1, self.names)
        self.feed(self.names, FIRST_SEED).fill(0, arrays)
        return {name: array[0] for name, array in zip(self.names, arrays, strict=True)}

    @cached_property
    def _variables(self) -> dict[str, SharedVariable]:
        found = {}
        for name, value in self.first.items():
            found[name] = pytensor.shared(value, name=name, shape=value.shape)
            found[name].tag.rows = self
        return found

    # ------------------------------------------------------------------------------- for fits

    def feed(self, names: Sequence[str], seed: int | None) -> Feed:
        """Batches of some columns, in an order of their own."""
        return Feed(self._source, names, self.batch_size, self.pool_rows, seed)

    def scan(self, names: Sequence[str], arrays: Sequence[np.ndarray]) -> Scan:
        """All rows once; arrays (batch_size, *shape of the column) are filled."""
        return Scan(self.feed(names, None), arrays, self.total)

    def buffers(self, n: int, names: Sequence[str]) -> list[np.ndarray]:
        """Arrays (n, batch_size, *shape of the column) for batches of some columns."""
        columns = [self._source.columns[name] for name in names]
        return [np.zeros((n, self.batch_size, *c.shape), c.dtype) for c in columns]


def rows_of(variables: Sequence[Variable]) -> dict[Variable, Rows]:
    """Variables among the given ones that stand for rows, and their rows."""
    found = ((v, getattr(v.tag, "rows", None)) for v in variables)
    return {v: rows for v, rows in found if isinstance(rows, Rows)}
