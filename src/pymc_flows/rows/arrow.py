"""Rows of Parquet files and of Arrow tables."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pymc_flows.errors import ArgumentError
from pymc_flows.rows.source import BLOCK_BYTES, Arrays, Column, dtype_of, no_number

type Columns = Mapping[str, str | Sequence[str]] | Sequence[str] | None


class ParquetSource:
    """Parquet files; blocks are their row groups.

    Parameters
    ----------
    path : str, path-like or sequence of them
        A file, a folder, or several files, on any file system that Arrow knows.
    columns : mapping, sequence of str or None
        As for `Rows.parquet`.

    Raises
    ------
    ArgumentError
        If there is no row, a column is missing, has NULLs or is not numeric, or files differ in
        their columns.
    ModuleNotFoundError
        If pyarrow is missing (the extra ``parquet``).
    """

    def __init__(self, path: Any, columns: Columns):
        self._filesystem, files = _files(path)
        self._blocks: list[tuple[str, int]] = []
        self._metadata: dict[str, Any] = {}
        lengths: list[int] = []
        self._names: dict[str, list[str] | str] = {}
        self.columns: dict[str, Column] = {}
        for file in files:
            opened = self._open(file)
            metadata = self._metadata[file] = opened.metadata
            names = _names(columns, opened.schema_arrow.names, file)
            found = _columns(names, opened.schema_arrow, file)
            if self.columns and found != self.columns:
                raise ArgumentError(
                    f"the columns of {file!r} are not those of {files[0]!r}\n"
                    f"expected {self.columns}, got {found}"
                )
            self._names, self.columns = names, found
            for group in range(metadata.num_row_groups):
                if rows := metadata.row_group(group).num_rows:
                    self._blocks.append((file, group))
                    lengths.append(rows)
            _check_nulls(metadata, _flat(names), file)
        if not lengths:
            raise ArgumentError(f"there are no rows in {path!r}")
        self.lengths = tuple(lengths)
        self.label = f"Parquet, {len(files)} file{'s' if len(files) > 1 else ''}"

    def read(self, block: int, out: Arrays) -> None:
        """Read one row group."""
        file, group = self._blocks[block]
        table = self._open(file).read_row_group(group, columns=_flat(self._names))
        _copy(table, self._names, out, self.where(block))

    def where(self, block: int) -> str:
        """File and row group."""
        file, group = self._blocks[block]
        return f"row group {group} of {file!r}"

    def _open(self, file: str) -> Any:
        import pyarrow.parquet as pq  # slow to import

        known = self._metadata.get(file)
        return pq.ParquetFile(file, metadata=known, filesystem=self._filesystem)


class TableSource:
    """An Arrow table, also one that is a memory map.

    Parameters
    ----------
    table : pyarrow.Table
    columns : mapping, sequence of str or None
    """

    def __init__(self, table: Any, columns: Columns):
        _require_arrow()
        if not hasattr(table, "schema") or not hasattr(table, "slice"):
            raise ArgumentError(f"table must be a pyarrow.Table, got {type(table).__name__}")
        self._names = _names(columns, table.schema.names, "the table")
        self.columns = _columns(self._names, table.schema, "the table")
        self._table = table.select(list(dict.fromkeys(_flat(self._names))))
        if not table.num_rows:
            raise ArgumentError("there are no rows in the table")
        size = max(1, BLOCK_BYTES // sum(c.nbytes for c in self.columns.values()))
        self._begins = range(0, table.num_rows, size)
        self.lengths = tuple(min(size, table.num_rows - b) for b in self._begins)
        self.label = "Arrow table"

    def read(self, block: int, out: Arrays) -> None:
        """Copy a slice of the table."""
        part = self._table.slice(self._begins[block], self.lengths[block])
        _copy(part, self._names, out, self.where(block))

    def where(self, block: int) -> str:
        """Its first row."""
        return f"the rows from {self._begins[block]:,} on"


def _require_arrow() -> None:
    try:
        import pyarrow  # noqa: F401 - slow to import
    except ModuleNotFoundError as error:
        if error.name != "pyarrow":
            raise
        raise ModuleNotFoundError(
            "Parquet and Arrow need pyarrow, which is not installed\n"
            "install pyarrow (the extra 'parquet')",
            name="pyarrow",
        ) from None


def _files(path: Any) -> tuple[Any, list[str]]:
    """The file system and the files of a path, in the order of their names."""
    _require_arrow()
    import pyarrow as pa
    import pyarrow.dataset as ds  # slow to import

    is_one = isinstance(path, str | os.PathLike)
    given = [os.fspath(p) for p in ([path] if is_one else path)]
    if is_one and "://" not in given[0] and not Path(given[0]).exists():
        raise FileNotFoundError(f"there is no file or folder {given[0]!r}")
    try:
        dataset = ds.dataset(given[0] if is_one else given, format="parquet")
    except pa.ArrowInvalid as error:
        raise ArgumentError(f"{path!r} cannot be read as Parquet: {error}") from error
    files = sorted(dataset.files) if is_one else list(dataset.files)
    if not files:
        raise ArgumentError(f"there are no Parquet files in {path!r}")
    return dataset.filesystem, files


def _names(columns: Columns, known: Sequence[str], where: str) -> dict[str, list[str] | str]:
    """Columns by name; several columns make one array of rows and columns."""
    if columns is None:
        columns = known
    if isinstance(columns, str):
        columns = [columns]
    if not isinstance(columns, Mapping):
        columns = {name: name for name in columns}
    if not columns:
        raise ArgumentError("columns must name at least one column")
    names = {k: v if isinstance(v, str) else list(v) for k, v in columns.items()}
    missing = [name for name in _flat(names) if name not in known]
    if missing:
        shown = ", ".join(map(repr, known[:20])) + (", …" if len(known) > 20 else "")
        raise ArgumentError(f"{where} has no column {missing[0]!r}\nIt has: {shown}.")
    return names


def _flat(names: Mapping[str, list[str] | str]) -> list[str]:
    return [c for v in names.values() for c in ([v] if isinstance(v, str) else v)]


def _columns(names: Mapping[str, list[str] | str], schema: Any, where: str) -> dict[str, Column]:
    found = {}
    for name, given in names.items():
        parts = [given] if isinstance(given, str) else given
        if not parts:
            raise ArgumentError(f"columns has no column for {name!r}")
        dtypes = [_dtype(schema.field(part).type, f"column {part!r} of {where}") for part in parts]
        shape = () if isinstance(given, str) else (len(parts),)
        dtype = dtype_of(np.result_type(*dtypes), f"{name!r} of {where}")
        found[name] = Column(shape, dtype)
    return found


def _dtype(arrow: Any, what: str) -> str:
    import pyarrow as pa

    if pa.types.is_dictionary(arrow) or not (
        pa.types.is_floating(arrow) or pa.types.is_integer(arrow) or pa.types.is_boolean(arrow)
    ):
        raise no_number(arrow, what)
    return dtype_of(arrow.to_pandas_dtype(), what)


def _check_nulls(metadata: Any, names: Sequence[str], file: str) -> None:
    """Refuse NULLs that a file's statistics report, before anything is read."""
    places = {metadata.schema.column(i).path: i for i in range(metadata.num_columns)}
    for group in range(metadata.num_row_groups):
        for name in names:
            chunk = metadata.row_group(group).column(places[name])
            statistics = chunk.statistics if chunk.is_stats_set else None
            if statistics is not None and statistics.has_null_count and statistics.null_count:
                _refuse_nulls(name, statistics.null_count, f"row group {group} of {file!r}")


def _refuse_nulls(name: str, count: int, where: str) -> None:
    raise ArgumentError(
        f"column {name!r} has {count:,} NULLs in {where}\n"
        "Leave out rows with missing values, or fill them in, before the fit."
    )


def _copy(table: Any, names: Mapping[str, list[str] | str], out: Arrays, where: str) -> None:
    """Copy columns of a table into arrays."""
    for name in _flat(names):
        if count := table.column(name).null_count:
            _refuse_nulls(name, count, where)
    for name, array in out.items():
        given = names[name]
        if isinstance(given, str):
            array[...] = table.column(given).to_numpy()
            continue
        for k, part in enumerate(given):
            array[:, k] = table.column(part).to_numpy()
