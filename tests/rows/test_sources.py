"""Rows of Parquet, Arrow, zarr, Dask and memory maps are those of the arrays behind them."""

import dask.array
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr

from pymc_flows.errors import ArgumentError
from pymc_flows.rows import Rows

N = 500
rng = np.random.default_rng(3)
X = rng.normal(size=(N, 3))
GROUP = rng.integers(7, size=N).astype(np.int16)
TABLE = pa.table(
    {**{f"x{k}": X[:, k] for k in range(3)}, "g": GROUP, "hit": GROUP > 3, "name": ["a"] * N}
)
COLUMNS = {"x": ["x0", "x1", "x2"], "g": "g", "y": "hit"}


def everything(rows):
    """All rows, in the order in which they are stored."""
    arrays = [a[0] for a in rows.buffers(1, rows.names)]
    rows.feed(rows.names, None).rows(0, arrays)
    return dict(zip(rows.names, arrays, strict=True))


def parquet(folder):
    for k, part in enumerate((TABLE.slice(0, 320), TABLE.slice(320, 0), TABLE.slice(320))):
        pq.write_table(part, folder / f"part-{k}.parquet", row_group_size=100)
    return Rows.parquet(folder, COLUMNS, batch_size=N)


def files(folder):
    parquet(folder)
    paths = [folder / "part-0.parquet", folder / "part-2.parquet"]
    return Rows.parquet(paths, COLUMNS, batch_size=N)


def table(folder):
    return Rows.arrow(TABLE, COLUMNS, batch_size=N)


def arrays(folder):
    given = {"x": X.tolist(), "g": GROUP, "y": GROUP > 3}
    return Rows.arrays(given, batch_size=N)


def memory_map(folder):
    np.save(folder / "x.npy", X.astype(">f4"))
    x = np.load(folder / "x.npy", mmap_mode="r")
    return Rows.arrays({"x": x, "g": GROUP, "y": GROUP > 3}, batch_size=N)


def zarr_and_dask(folder):
    x = zarr.create_array(folder / "x.zarr", shape=X.shape, chunks=(90, 2), dtype=X.dtype)
    x[:] = X
    lazy = dask.array.from_array(GROUP, chunks=(60,))
    return Rows.arrays({"x": x, "g": lazy, "y": lazy > 3}, batch_size=N)


@pytest.mark.parametrize("make", [parquet, files, table, arrays, memory_map, zarr_and_dask])
def test_a_source_has_the_rows_of_its_arrays(make, tmp_path):
    rows = make(tmp_path)
    assert rows.total == N
    found = everything(rows)
    np.testing.assert_allclose(found["x"], X, rtol=1e-6 if make is memory_map else 0)
    np.testing.assert_array_equal(found["g"], GROUP)
    np.testing.assert_array_equal(found["y"], GROUP > 3)
    assert {k: v.dtype.name for k, v in found.items()} == {
        "x": "float64",
        "g": "int16",
        "y": "int8",
    }


def test_blocks_are_those_of_the_storage(tmp_path):
    assert parquet(tmp_path)._source.lengths == (100, 100, 100, 20, 100, 80)
    assert zarr_and_dask(tmp_path)._source.lengths == (90, 90, 90, 90, 90, 50)


def test_rows_show_what_they_are(tmp_path):
    rows = parquet(tmp_path)
    expected = f"Rows(Parquet, 3 files, rows=500, batch_size=500, names={['x', 'g', 'y']})"
    assert repr(rows) == expected
    assert rows["x"].type.shape == (N, 3)
    assert rows["x"] is rows["x"]
    with pytest.raises(ArgumentError, match="no column 'z'"):
        rows["z"]


def write(folder, **columns):
    path = folder / "some.parquet"
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize(
    ("columns", "wanted", "message"),
    [
        ({"x": [1.0, None]}, None, "column 'x' has 1 NULLs in row group 0 of '.*some.parquet'"),
        ({"x": ["a", "b"]}, None, "column 'x' of .* has type string, expected real"),
        ({"x": [1.0, 2.0]}, ["z"], "has no column 'z'\nIt has: 'x'."),
        ({"x": pa.array([], pa.float64())}, None, "there are no rows in"),
        ({"x": [1.0, 2.0]}, {"x": []}, "columns has no column for 'x'"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_at_once(columns, wanted, message, tmp_path):
    with pytest.raises(ArgumentError, match=message):
        Rows.parquet(write(tmp_path, **columns), wanted, batch_size=1)


def test_what_is_no_rows_is_refused(tmp_path):
    (tmp_path / "no.parquet").write_bytes(b"no Parquet at all")
    with pytest.raises(ArgumentError, match="cannot be read as Parquet"):
        Rows.parquet(tmp_path / "no.parquet")
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        Rows.parquet(tmp_path / "nowhere")
    write(tmp_path, x=[1.0])
    pq.write_table(pa.table({"x": [1]}), tmp_path / "other.parquet")
    paths = [tmp_path / "other.parquet", tmp_path / "some.parquet"]
    with pytest.raises(ArgumentError, match=r"the columns of .* are not those of"):
        Rows.parquet(paths)
    with pytest.raises(ArgumentError, match="arrays must have one length"):
        Rows.arrays({"x": X, "y": X[:-1]})
    with pytest.raises(ArgumentError, match="'x' has masked values"):
        Rows.arrays({"x": np.ma.array(X, mask=X > 1)}, batch_size=1)
    with pytest.raises(ArgumentError, match="batch_size is 501, and there are 500 rows"):
        Rows.arrays({"x": X}, batch_size=501)
    with pytest.raises(ArgumentError, match="'when' has type datetime64"):
        Rows.arrays({"when": np.zeros(3, "datetime64[s]")}, batch_size=1)
