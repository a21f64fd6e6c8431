"""Files of approximations: what comes back, and what is refused."""

import builtins
import hashlib
import os

import h5netcdf
import numpy as np
import pymc as pm
import pytensor
import pytest
import xarray as xr
from numpy.testing import assert_array_equal
from pymc.distributions.transforms import Interval, ordered

import pymc_flows as pmf
from pymc_flows import _files
from pymc_flows._files import Content
from pymc_flows.errors import StorageError
from pymc_flows.importance import Quality
from pymc_flows.ladder import Ladder, Rung

ALL_FIVE = "scale-radial*2-hh*3-planar*2-loc"


def make_model(a_shape=(), b_dist=pm.HalfNormal, **kwargs):
    with pm.Model() as model:
        pm.Normal("a", shape=a_shape)
        b_dist("b", **kwargs)
        pm.Normal("c", shape=2)
    return model


@pytest.fixture(scope="module")
def approx():
    """An approximation that has a past: other parameters, losses, draws."""
    rng = np.random.default_rng(0)
    start = pmf.Frame(np.array([1.0, -2.0, 0.5, 3.0]), np.tril(np.ones((4, 4))))
    approx = pmf.NormalizingFlow(ALL_FIVE, model=make_model(), random_seed=1, start=start)
    for value in approx.params:
        value.set_value(rng.standard_normal(value.type.shape))
    approx.hist = np.array([3.0, np.nan, 2.0])
    approx.scale_cost_to_minibatch = False
    approx.sample(2)
    return approx


@pytest.fixture(scope="module")
def file(approx, tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "approx.nc"
    approx.save(path)
    return path


# ------------------------------------------------------------------------- what comes back


def test_what_is_loaded_has_the_same_bits(approx, file):
    other = pmf.load(file, make_model())
    assert other.formula == approx.formula
    assert_array_equal(other.hist, approx.hist)
    assert not other.scale_cost_to_minibatch
    for mine, theirs in zip(approx.params, other.params, strict=True):
        assert mine.name == theirs.name
        assert_array_equal(theirs.get_value(), mine.get_value())
    points, log_prob = approx.sample_and_log_prob(5, random_seed=3)
    for x, y in zip(other.sample_and_log_prob(5, random_seed=3), (points, log_prob), strict=True):
        assert_array_equal(x, y)
    assert_array_equal(other.log_prob(points), approx.log_prob(points))
    assert other.sample(4, random_seed=1).posterior.equals(
        approx.sample(4, random_seed=1).posterior
    )


def test_draws_go_on_where_they_were(tmp_path):
    approx = pmf.NormalizingFlow("scale-loc", model=make_model(), random_seed=1)
    approx.sample_and_log_prob(3)
    approx.rng.normal()  # the generator keeps a second one
    approx.save(tmp_path / "a.nc")
    with make_model():
        other = pmf.load(str(tmp_path / "a.nc"))
    assert_array_equal(other.sample_and_log_prob(3)[0], approx.sample_and_log_prob(3)[0])
    assert_array_equal(other.rng.normal(size=3), approx.rng.normal(size=3))


@pytest.mark.parametrize("scale", [None, np.array([1.0, 2.0, 3.0, 4.0])])
def test_other_frames(scale, tmp_path):
    frame = pmf.Frame(np.arange(4.0), scale)
    approx = pmf.NormalizingFlow("planar", model=make_model(), start=frame)
    approx.save(tmp_path / "a.nc")
    other = pmf.load(tmp_path / "a.nc", make_model())
    assert_array_equal(other.sample_and_log_prob(3)[1], approx.sample_and_log_prob(3)[1])
    assert len(other.hist) == 0


def test_xarray_reads_the_file(approx, file):
    with xr.open_dataset(file) as dataset:
        assert dataset.attrs["formula"] == str(approx.formula)
        assert_array_equal(dataset["hist"], approx.hist)
        assert_array_equal(dataset["param_0_scale_rho"], approx.params[0].get_value())


def test_a_file_takes_the_place_of_another_and_leaves_nothing_behind(approx, file, tmp_path):
    target = tmp_path / "real.nc"
    target.write_bytes(b"old")
    (tmp_path / "link.nc").symlink_to(target)
    approx.save(tmp_path / "link.nc")
    assert (tmp_path / "link.nc").is_symlink()
    assert pmf.load(target, make_model()).formula == approx.formula
    assert {p.name for p in tmp_path.iterdir()} == {"real.nc", "link.nc"}


def test_a_write_that_fails_leaves_the_old_file(approx, tmp_path, monkeypatch):
    path = tmp_path / "a.nc"
    approx.save(path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        approx.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# ------------------------------------------------------------------------- what is refused


OTHER_MODELS = {
    "a name": (lambda: renamed("d"), r"'c': only in the file\n  'd': only in the model"),
    "a shape": (
        lambda: make_model(a_shape=3),
        r"'a': shape is '\[\]' in the file, '\[3\]' in the model",
    ),
    "a transform": (
        lambda: make_model(b_dist=pm.Uniform),
        "'b': transform is 'LogTransform' in the file, 'Interval' in the model",
    ),
    "no transform": (
        lambda: make_model(b_dist=pm.Normal),
        "'b': transform is 'LogTransform' in the file, 'none' in the model",
    ),
    "several transforms": (
        lambda: make_model(b_dist=pm.Normal, transform=chained(), shape=2, initval=[0.1, 0.2]),
        "Interval ∘ Ordered",
    ),
    "an order": (lambda: renamed("c", first=True), "another order: a, b, c"),
    "very much": (lambda: many(30), "and 23 further differences"),
}


def renamed(name, *, first=False):
    with pm.Model() as model:
        if first:
            pm.Normal(name, shape=2)
        pm.Normal("a")
        pm.HalfNormal("b")
        if not first:
            pm.Normal(name, shape=2)
    return model


def many(n):
    with pm.Model() as model:
        for i in range(n):
            pm.Normal(f"x{i}")
    return model


def chained():
    return pm.distributions.transforms.Chain([ordered, Interval(0, 1)])


@pytest.mark.parametrize("case", OTHER_MODELS)
def test_another_model_is_named(case, file):
    make, message = OTHER_MODELS[case]
    with pytest.raises(StorageError, match=f"another model\n(.|\n)*{message}"):
        pmf.load(file, make())


def test_the_ladder_comes_back(approx, tmp_path):
    quality = Quality(4_000, -3.5, 0.1, -np.inf, 3_999.0, -3.4, 0.0)
    rungs = Rung(pmf.Formula("loc"), None, 1.5, 0), Rung(approx.formula, quality, 2.5, 7)
    approx.ladder = Ladder(rungs, 1)
    try:
        approx.save(tmp_path / "a.nc")
    finally:
        approx.ladder = None
    loaded = pmf.load(tmp_path / "a.nc", make_model())
    assert loaded.ladder == Ladder(rungs, 1)


def test_another_precision(file):
    model = make_model()
    with (
        pytensor.config.change_flags(floatX="float32"),
        pytest.raises(StorageError, match=r"'float64', pytensor\.config\.floatX is 'float32'"),
    ):
        pmf.load(file, model)


def test_a_formula_that_is_not_known(file, tmp_path):
    content = _files.read(file)
    forged = Content("scale-panar", content.arrays, content.record)
    _files.write(tmp_path / "a.nc", forged)
    with pytest.raises(pmf.FormulaError, match="panar"):
        pmf.load(tmp_path / "a.nc", make_model())


@pytest.mark.parametrize("module", ["h5netcdf", "h5py"])
def test_a_missing_library_is_named(module, approx, file, tmp_path, monkeypatch):
    import_ = builtins.__import__

    def lacking(name, *args, **kwargs):
        if name.partition(".")[0] == module:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return import_(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", lacking)
    for act in (lambda: approx.save(tmp_path / "a.nc"), lambda: pmf.load(file, approx.model)):
        with pytest.raises(ModuleNotFoundError, match=rf"{module}.*\n.*pip install.*\[files\]"):
            act()
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError):
        pmf.load(tmp_path / "a.nc", make_model())
    with pytest.raises(IsADirectoryError):
        pmf.load(tmp_path, make_model())


def test_saving_where_nothing_can_be_saved(approx, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"folder of .*a\.nc' does not exist: .*no'\nMake it"
    ):
        approx.save(tmp_path / "no" / "a.nc")
    with pytest.raises(IsADirectoryError, match=r"is a folder\nGive the path of a file in it"):
        approx.save(tmp_path)
    assert list(tmp_path.iterdir()) == []


def mutations(data, rng, n):
    """Damaged copies: bits flipped, ends cut, pieces lost, doubled or overwritten, bytes added."""
    for k in range(n):
        bytes_ = bytearray(data)
        i, j = sorted(rng.integers(0, len(data), 2))
        match k % 6:
            case 0:
                bytes_[i] ^= 1 << int(rng.integers(8))
            case 1:
                del bytes_[i:]
            case 2:
                del bytes_[i : j + 1]
            case 3:
                bytes_[i:i] = bytes_[i : j + 1]
            case 4:
                new = rng.bytes(j + 1 - i)
                bytes_[i : j + 1] = bytes(new) if bytes(new) != data[i : j + 1] else b""
            case 5:
                bytes_ += rng.bytes(1 + i % 300)
        yield bytes(bytes_)


def test_every_damage_is_seen(file, rng, tmp_path, monkeypatch):
    """And before HDF5 sees it."""
    monkeypatch.setattr(_files, "_content", None)
    path, data = tmp_path / "a.nc", file.read_bytes()
    seen = set()
    for damaged in mutations(data, rng, 600):
        path.write_bytes(damaged)
        with pytest.raises(StorageError) as error:
            pmf.load(path, make_model)
        seen.add(str(error.value).partition(" ")[2])
    assert len(seen) == 2


@pytest.mark.parametrize("data", [b"", b"x" * 500, b"\x89HDF\r\n\x1a\n"])
def test_files_that_are_something_else(data, tmp_path):
    path = tmp_path / "a.nc"
    path.write_bytes(data)
    with pytest.raises(StorageError, match="not written by pymc-flows"):
        pmf.load(path, make_model())


def test_netcdf_files_of_others(tmp_path):
    path = tmp_path / "a.nc"
    xr.Dataset({"x": ("i", [1.0])}).to_netcdf(path, engine="h5netcdf")
    with pytest.raises(StorageError, match="not written by pymc-flows"):
        pmf.load(path, make_model())


# Content that has the right digest, but was not made by `save`.


def test_a_digest_below_something_else(tmp_path):
    path = tmp_path / "a.nc"
    for data in (b"", b"x" * 500):
        digest = hashlib.sha256(data).hexdigest().encode()
        path.write_bytes(data + _files.MARK + digest + b"\n")
        with pytest.raises(StorageError, match="malformed"):
            pmf.load(path, make_model())


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
        pmf.load(tmp_path / "a.nc", make_model())


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
        pmf.load(tmp_path / "a.nc", make_model())


def test_a_file_that_declares_more_than_it_holds(tmp_path):
    path = tmp_path / "a.nc"
    with h5netcdf.File(path, "w") as file:
        file.attrs["pymc_flows_format"] = 1
        file.attrs["formula"] = "loc"
        file.dimensions = {"n": 10**12}
        file.create_variable("center", ("n",), float, chunks=(1000,))
    sign(path)
    with pytest.raises(StorageError, match="more data than it holds"):
        pmf.load(path, make_model())


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
        pmf.load(path, make_model())


def sign(path):
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest().encode()
    path.write_bytes(data + _files.MARK + digest + b"\n")
