"""Damaged and forged files: each is refused with a clear error."""

import hashlib

import h5netcdf
import numpy as np
import pytest
import xarray as xr

import pymc_flows as pmf
from fits import three_variables
from pymc_flows.errors import StorageError
from pymc_flows.io import files as _files
from pymc_flows.io.files import Content


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """An approximation with coordinates and losses of its own."""
    start = pmf.Frame(np.array([1.0, -2.0, 0.5, 3.0]), np.tril(np.ones((4, 4))))
    approx = pmf.NormalizingFlow(
        "scale-planar*2-loc", model=three_variables(), random_seed=1, start=start
    )
    approx.hist = np.array([3.0, np.nan, 2.0])
    path = tmp_path_factory.mktemp("files") / "approx.nc"
    approx.save(path)
    return path


def test_every_damage_is_seen(bench, file, rng, tmp_path, monkeypatch):
    """And before HDF5 sees it."""
    monkeypatch.setattr(_files, "_content", None)
    path, data = tmp_path / "a.nc", file.read_bytes()
    seen = set()
    for _, damaged in bench.damage.mutations(data, rng, 600):
        path.write_bytes(damaged)
        with pytest.raises(StorageError) as error:
            pmf.load(path, three_variables)
        seen.add(str(error.value).partition(" ")[2])
    assert len(seen) == 2


@pytest.mark.parametrize("data", [b"", b"x" * 500, b"\x89HDF\r\n\x1a\n"])
def test_files_that_are_something_else(data, tmp_path):
    path = tmp_path / "a.nc"
    path.write_bytes(data)
    with pytest.raises(StorageError, match="not written by pymc-flows"):
        pmf.load(path, three_variables())


def test_netcdf_files_of_others(tmp_path):
    path = tmp_path / "a.nc"
    xr.Dataset({"x": ("i", [1.0])}).to_netcdf(path, engine="h5netcdf")
    with pytest.raises(StorageError, match="not written by pymc-flows"):
        pmf.load(path, three_variables())


# Content that has the right digest, but was not made by `save`.


def test_a_digest_below_something_else(tmp_path):
    path = tmp_path / "a.nc"
    for data in (b"", b"x" * 500):
        digest = hashlib.sha256(data).hexdigest().encode()
        path.write_bytes(data + _files.MARK + digest + b"\n")
        with pytest.raises(StorageError, match="malformed"):
            pmf.load(path, three_variables())


def changed(record, key, value):
    return {**record, key: value}


FORGED = {
    "no model": lambda r: changed(r, "model", None),
    "a model of numbers": lambda r: changed(r, "model", [1, 2]),
    "a variable without a shape": lambda r: changed(r, "model", [{"name": "a"}]),
    "a generator of another kind": lambda r: changed(r, "draws_rng", r["seeds_rng"]),
    "no generator": lambda r: {k: v for k, v in r.items() if k != "seeds_rng"},
    "a state that is too large": lambda r: changed(
        r, "draws_rng", {**r["draws_rng"], "state": {"state": 2**130, "inc": 1}}
    ),
    "a position behind the end": lambda r: changed(
        r, "seeds_rng", {**r["seeds_rng"], "state": {**r["seeds_rng"]["state"], "pos": 10**6}}
    ),
    "log densities of no model": lambda r: changed(r, "log_density", [1, 2]),
    "log densities that are none": lambda r: changed(
        r, "log_density", {key: ["x", "y", "z"] for key in r["log_density"]}
    ),
    "too few log densities": lambda r: changed(
        r, "log_density", {key: [1.0] for key in r["log_density"]}
    ),
    "a ladder without rungs": lambda r: changed(r, "ladder", {"rungs": [], "taken": 0}),
    "a ladder of nothing": lambda r: changed(r, "ladder", {"rungs": [5], "taken": 0}),
    "a ladder with another quality": lambda r: changed(
        r,
        "ladder",
        {"rungs": [{"formula": "loc", "quality": {"x": 1}, "seconds": 1.0}], "taken": 0},
    ),
    "a key that is too short": lambda r: changed(
        r,
        "seeds_rng",
        {**r["seeds_rng"], "state": {"key": ["uint32", [1, 2]], "pos": 0}},
    ),
}


@pytest.mark.parametrize("case", FORGED)
def test_a_forged_record(case, file, tmp_path):
    content = _files.read(file)
    _files.write(
        tmp_path / "a.nc",
        Content(content.formula, content.arrays, FORGED[case](dict(content.record))),
    )
    with pytest.raises(StorageError):
        pmf.load(tmp_path / "a.nc", three_variables())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("center", np.zeros(3)),
        ("scale", np.zeros((4, 4))),
        ("scale", np.zeros((4, 4, 4))),
        ("hist", np.zeros((2, 2))),
        ("hist", np.zeros(2, dtype=np.int64)),
        ("param_0_scale_rho", np.zeros((2, 4))),
        ("param_0_scale_rho", None),
    ],
)
def test_forged_arrays(name, value, file, tmp_path):
    content = _files.read(file)
    arrays = {k: v for k, v in {**content.arrays, name: value}.items() if v is not None}
    _files.write(tmp_path / "a.nc", Content(content.formula, arrays, content.record))
    with pytest.raises((StorageError, pmf.FlowError), match=name):
        pmf.load(tmp_path / "a.nc", three_variables())


def test_a_file_that_declares_more_than_it_holds(tmp_path):
    path = tmp_path / "a.nc"
    with h5netcdf.File(path, "w") as file:
        file.attrs["pymc_flows_format"] = 1
        file.attrs["formula"] = "loc"
        file.dimensions = {"n": 10**12}
        file.create_variable("center", ("n",), float, chunks=(1000,))
    sign(path)
    with pytest.raises(StorageError, match="more data than it holds"):
        pmf.load(path, three_variables())


@pytest.mark.parametrize(
    ("attrs", "text", "message"),
    [
        ({"pymc_flows_format": 2, "formula": "loc"}, "{}", "format"),
        ({"formula": "loc"}, "{}", "malformed"),
        ({"pymc_flows_format": 1, "formula": "loc-" * 2000 + "loc"}, "{}", "formula"),
        ({"pymc_flows_format": 1, "formula": 5}, "{}", "formula"),
        ({"pymc_flows_format": 1, "formula": "loc"}, "[]", "no table"),
        ({"pymc_flows_format": 1, "formula": "loc"}, "[" * 100_000, "malformed"),
        ({"pymc_flows_format": 1, "formula": "loc"}, "{}", "floatX"),
    ],
)
def test_other_forgeries(attrs, text, message, tmp_path):
    path = tmp_path / "a.nc"
    xr.Dataset({"record": ((), text)}, attrs=attrs).to_netcdf(path, engine="h5netcdf")
    sign(path)
    with pytest.raises(StorageError, match=message):
        pmf.load(path, three_variables())


def sign(path):
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest().encode()
    path.write_bytes(data + _files.MARK + digest + b"\n")
