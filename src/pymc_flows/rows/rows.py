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
# What a pool takes, unless told otherwise, in bytes. There are two of them at a time.
POOL_BYTES = 64 * 2**20
# Of the rows that a model shows where there is no fit.
FIRST_SEED = 0


class Rows:
    """Rows of data on disk, of which a model sees a batch at a time, as of a `pymc.Minibatch`.

    ``rows["x"]`` is a variable to build a model from, for covariates and observed values alike. In
    each step of a fit other rows stand there. ``total_size=rows.total`` says how many there are.

    Rows come shuffled: the blocks of the source (row groups of Parquet, chunks of zarr and Dask,
    a megabyte of other arrays) in a random order, and with consecutive blocks together in memory,
    in pools, the rows of each pool in a random order. Each row comes once an epoch. Rows that are
    stored near to each other so come near to each other, by a pool: where rows are sorted, let a
    pool have many blocks, by small row groups or a larger ``pool_rows``. A thread reads the next
    pool while steps are taken. The seed of a fit decides the order.

    Made by `parquet`, `arrow` and `arrays`.

    Attributes
    ----------
    total : int
        Number of rows.
    batch_size : int
        Rows in a step.
    pool_rows : int
        Rows after which a pool ends, at the end of a block.
    names : tuple of str

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
            Names of columns. A mapping gives them other names, and makes an array of several:
            ``{"x": ["x0", "x1"], "y": "y"}`` has ``rows["x"]`` of shape (batch_size, 2). All
            columns by default.
        batch_size : int
            Rows in a step.
        pool_rows : int, optional
            Rows that are shuffled together; as many as take 64 MiB by default. A pool has whole row
            groups, at least one, and two pools are in memory at a time.

        Raises
        ------
        ArgumentError
            If there are no rows, a column is missing, not of numbers, or has NULLs, or files have
            other columns than the first.
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
        """Rows of an Arrow table, also of one that is a memory map.

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
        """Rows of arrays of one length: NumPy's and memory maps, zarr's, Dask's, HDF5's.

        Parameters
        ----------
        arrays : mapping of str to array
            Whatever has a shape, a dtype and slices; rows on the first axis.
        batch_size, pool_rows
            As for `parquet`. Blocks are the chunks of the arrays.

        Raises
        ------
        ArgumentError
            If lengths differ, or an array is not of numbers.
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

        Its value, where there is no fit, is that of `first`.
        """
        if name not in self.names:
            raise ArgumentError(f"there is no column {name!r}\nThere are: {', '.join(self.names)}.")
        return self._variables[name]

    @cached_property
    def first(self) -> dict[str, np.ndarray]:
        """A batch of rows at random, by name: always the same."""
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
    """Those of the variables that stand for rows."""
    found = ((v, getattr(v.tag, "rows", None)) for v in variables)
    return {v: rows for v, rows in found if isinstance(rows, Rows)}
