"""Files of approximations: what comes back, and what is refused."""

import builtins
import os
import sys
from functools import partial

import numpy as np
import pymc as pm
import pytensor
import pytest
import xarray as xr
from numpy.testing import assert_array_equal
from pymc.distributions.transforms import Interval, ordered

import pymc_flows as pmf
from fits import three_variables
from pymc_flows.errors import StorageError
from pymc_flows.fitting.ladder import Ladder, Rung
from pymc_flows.importance import Quality
from pymc_flows.io import files as _files
from pymc_flows.io.files import Content

ALL_FIVE = "scale-radial*2-hh*3-planar*2-loc"


@pytest.fixture(scope="module")
def approx():
    """An approximation that has a past: other parameters, losses, draws."""
    rng = np.random.default_rng(0)
    start = pmf.Frame(np.array([1.0, -2.0, 0.5, 3.0]), np.tril(np.ones((4, 4))))
    approx = pmf.NormalizingFlow(ALL_FIVE, model=three_variables(), random_seed=1, start=start)
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
    other = pmf.load(file, three_variables())
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
    approx = pmf.NormalizingFlow("scale-loc", model=three_variables(), random_seed=1)
    approx.sample_and_log_prob(3)
    approx.rng.normal()  # the generator keeps a second one
    approx.save(tmp_path / "a.nc")
    with three_variables():
        other = pmf.load(str(tmp_path / "a.nc"))
    assert_array_equal(other.sample_and_log_prob(3)[0], approx.sample_and_log_prob(3)[0])
    assert_array_equal(other.rng.normal(size=3), approx.rng.normal(size=3))


@pytest.mark.parametrize("scale", [None, np.array([1.0, 2.0, 3.0, 4.0])])
def test_other_frames(scale, tmp_path):
    frame = pmf.Frame(np.arange(4.0), scale)
    approx = pmf.NormalizingFlow("planar", model=three_variables(), start=frame)
    approx.save(tmp_path / "a.nc")
    other = pmf.load(tmp_path / "a.nc", three_variables())
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
    assert pmf.load(target, three_variables()).formula == approx.formula
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
        lambda: three_variables(a_shape=3),
        r"'a': shape is '\[\]' in the file, '\[3\]' in the model",
    ),
    "a transform": (
        lambda: three_variables(b_dist=pm.Uniform),
        "'b': transform is 'LogTransform' in the file, 'Interval' in the model",
    ),
    "no transform": (
        lambda: three_variables(b_dist=pm.Normal),
        "'b': transform is 'LogTransform' in the file, 'none' in the model",
    ),
    "several transforms": (
        lambda: three_variables(b_dist=pm.Normal, transform=chained(), shape=2, initval=[0.1, 0.2]),
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
    loaded = pmf.load(tmp_path / "a.nc", three_variables())
    assert loaded.ladder == Ladder(rungs, 1)


def test_another_precision(file):
    model = three_variables()
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
        pmf.load(tmp_path / "a.nc", three_variables())


@pytest.mark.parametrize("module", ["h5netcdf", "h5py"])
def test_a_missing_library_is_named(module, approx, file, tmp_path, monkeypatch):
    import_ = builtins.__import__

    def lacking(name, *args, **kwargs):
        if name.partition(".")[0] == module:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return import_(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", lacking)
    for act in (lambda: approx.save(tmp_path / "a.nc"), lambda: pmf.load(file, approx.model)):
        with pytest.raises(
            ModuleNotFoundError, match=rf"need {module}.*\ninstall h5netcdf and h5py$"
        ) as caught:
            act()
        assert caught.value.__suppress_context__
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError):  # which no library would cure
        pmf.load(tmp_path / "a.nc", approx.model)


def test_a_checkpoint_that_cannot_be_written_is_refused_before_a_search(tmp_path, monkeypatch):
    def slow(*args, **kwargs):
        raise AssertionError("a search or a fit has begun")

    monkeypatch.setattr("pymc_flows.fitting.restarts.single.seek_frame", slow)
    monkeypatch.setattr("pymc_flows.fitting.nfvi.FitState.prepare", slow)
    model = three_variables()
    fits = [
        partial(pmf.fit, formula="loc", model=model),
        pmf.NFVI("loc", model=model).fit,
    ]
    for fit in fits:
        with pytest.raises(FileNotFoundError, match="does not exist"):
            fit(checkpoint=tmp_path / "no" / "a.nc")
    monkeypatch.setitem(sys.modules, "h5netcdf", None)
    for fit in fits:
        with pytest.raises(ModuleNotFoundError, match="files need h5netcdf"):
            fit(checkpoint=tmp_path / "a.nc")


def test_without_a_model(file):
    with pytest.raises(TypeError, match=r"No model on context stack.\nPass model="):
        pmf.load(file)


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError):
        pmf.load(tmp_path / "a.nc", three_variables())
    with pytest.raises(IsADirectoryError):
        pmf.load(tmp_path, three_variables())


def test_saving_where_nothing_can_be_saved(approx, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"folder of .*a\.nc' does not exist: .*no'\nMake it"
    ):
        approx.save(tmp_path / "no" / "a.nc")
    with pytest.raises(IsADirectoryError, match=r"is a folder\nGive the path of a file in it"):
        approx.save(tmp_path)
    assert list(tmp_path.iterdir()) == []
