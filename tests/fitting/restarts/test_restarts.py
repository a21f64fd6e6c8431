"""`fit(restarts=)`: the same result whoever fits, all modes, and what is said of them."""

import logging
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import dask
import distributed.utils
import loky
import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest
from distributed import Client, LocalCluster

import pymc_flows as pmf
from fits import JAX, assert_identical, minibatch_model, normal_mean
from gaussians import eight, gaussians
from pymc_flows.approximation import MixtureState
from pymc_flows.errors import ArgumentError, FitError, StorageError
from pymc_flows.fitting.restarts import record
from pymc_flows.fitting.restarts.record import Restarts
from pymc_flows.fitting.restarts.starts import begins
from pymc_flows.flows.frame import Frame

pytestmark = pytest.mark.jax

FEW = {"formula": "scale-loc", "obj_n_mc": 8, "random_seed": 1, **JAX}


# ------------------------------------------------------------------------------------------- modes


@pytest.mark.parametrize("dim", [2, 20])
def test_the_mixture_has_all_of_eight_modes_in_their_proportions(dim, caplog):
    means, shares = eight(dim)
    approx = pmf.fit(model=gaussians(means, shares), restarts=10, random_seed=3, progressbar=False)
    assert isinstance(approx.q, MixtureState)
    points, _ = approx.sample_and_log_prob(3_600, random_seed=1)
    nearest = np.square(points[:, None] - means).sum(axis=-1).argmin(axis=1)
    np.testing.assert_allclose(np.bincount(nearest) / 3_600, shares, atol=0.003)
    found = approx.restarts
    assert [mode.restarts for mode in found.modes] == [(k,) for k in range(8)]
    np.testing.assert_allclose([mode.share for mode in found.modes], shares[::-1], atol=0.002)
    assert found.quality.log_evidence == pytest.approx(0, abs=0.01)
    assert found.worst > 1.5
    assert found.disagreement["x"].dims == ("axis",)
    assert "Restarts disagree: R-hat is" in caplog.text
    assert "They found 8 modes.\nTaken is their mixture" in caplog.text
    report = pmf.report(approx, 2_000, random_seed=2)
    assert report.quality.is_trusted
    assert report.worst < 0.02


def test_a_regression_with_switched_labels_has_both(rng):
    """y = |slope| x cannot tell the sign of the slope."""
    x = np.linspace(0.5, 2, 300)
    y = 1.7 * x + 0.2 * rng.standard_normal(300)
    with pm.Model() as model:
        slope = pm.Normal("slope", 0, 3)
        sigma = pm.HalfNormal("sigma", 1)
        pm.Normal("y", pt.abs(slope) * x, sigma, observed=y)
    approx = pmf.fit(100, model=model, restarts=4, random_seed=rng, progressbar=False)
    draws = approx.sample(2_000, random_seed=1).posterior["slope"].values
    assert np.mean(draws > 0) == pytest.approx(0.5, abs=0.02)
    assert approx.restarts.taken == "mixture"
    assert [round(mode.share, 2) for mode in approx.restarts.modes] == [0.5, 0.5]


def test_the_best_is_returned_where_it_is_asked_for():
    model = gaussians([[-20.0], [20.0]], [0.3, 0.7])
    approx = pmf.fit(model=model, restarts=2, combine="best", random_seed=1, progressbar=False)
    assert str(approx) == "NormalizingFlow('scale-loc', dim=1)"
    assert approx.sample(50).posterior["x"].values.min() > 0
    assert approx.restarts.taken == "best"
    assert [round(run.weight, 2) for run in approx.restarts.runs] == [0.7, 0.3]


# -------------------------------------------------------------------------------- the same for all


@pytest.fixture(scope="module")
def here():
    return pmf.fit(20, model=normal_mean(), restarts=2, **FEW)


def everything(approx):
    runs = [(r.seed, r.start, r.formula, r.quality, r.weight) for r in approx.restarts.runs]
    arrays = approx.q.arrays()
    return (
        runs,
        list(arrays),
        list(arrays.values()),
        approx.sample_and_log_prob(5, random_seed=1)[0],
    )


def assert_same(approx, other):
    (runs, names, arrays, draws), (others, *rest) = everything(approx), everything(other)
    assert (runs, names) == (others, rest[0])
    assert_identical([*arrays, draws], [*rest[1], rest[2]])


def test_threads_give_the_same_bits(here):
    with ThreadPoolExecutor(2) as executor:
        other = pmf.fit(20, model=normal_mean(), restarts=2, executor=executor, **FEW)
    assert_same(here, other)


@pytest.fixture(scope="module")
def forks():
    """Processes begin as copies of one that has imported PyMC; those of Dask, too."""
    with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        context = distributed.utils.get_mp_context()
        context.set_forkserver_preload(["distributed", "pymc_flows"])
        yield context


def test_processes_give_the_same_bits(here, forks):
    other = pmf.fit(20, model=normal_mean(), restarts=2, cores=2, mp_ctx=forks, **FEW)
    assert_same(here, other)


def test_processes_of_loky_give_the_same_bits(here):
    with loky.ProcessPoolExecutor(1) as executor:
        other = pmf.fit(20, model=normal_mean(), restarts=2, executor=executor, **FEW)
    assert_same(here, other)


@pytest.mark.usefixtures("forks")
def test_workers_of_dask_give_the_same_bits_even_if_one_is_killed(here):
    killed = []

    def kill_one(cluster, client):
        nanny = next(iter(cluster.workers.values()))
        while not client.processing().get(nanny.worker_address):
            time.sleep(0.05)
        time.sleep(0.5)  # it has begun
        killed.append(nanny.pid)
        os.kill(nanny.pid, signal.SIGKILL)

    how = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with LocalCluster(**how) as cluster, Client(cluster) as client:
        thread = threading.Thread(target=kill_one, args=(cluster, client))
        thread.start()
        given = {**FEW, "executor": client.get_executor()}
        other = pmf.fit(20, model=normal_mean(), restarts=2, **given)
        thread.join()
    assert_same(here, other)
    assert len(killed) == 1


def test_a_restart_is_the_fit_with_its_seed(here):
    run = here.restarts.runs[here.restarts.best]
    alone = pmf.fit(20, model=normal_mean(), **{**FEW, "random_seed": run.seed})
    assert_identical(alone.q.arrays().values(), here.q.arrays().values())


# --------------------------------------------------------------------------- what is said and kept


def test_restarts_that_agree_need_no_warning(here, caplog):
    found = here.restarts
    assert len(found.runs) == 2
    assert found.worst < 1.5
    table = str(found).splitlines()
    assert table[0].split()[:2] == ["restart", "begins"]
    assert "as fit" in table[1]
    assert "Restart" in here._repr_html_()


def test_a_file_keeps_the_table(here, tmp_path):
    here.save(tmp_path / "fit.nc")
    kept = pmf.load(tmp_path / "fit.nc", normal_mean()).restarts
    assert str(kept) == str(here.restarts)
    assert kept.disagreement.equals(here.restarts.disagreement)


def test_a_malformed_table_is_refused(here):
    good = here.restarts.record()
    assert Restarts.restored(None) is None
    for name, bad in (("runs", 3), ("best", 7), ("taken", "all"), ("modes", [{}])):
        with pytest.raises(StorageError, match="restarts in the file are malformed"):
            Restarts.restored({**good, name: bad})


def test_coords_that_json_lacks_become_text():
    dates = np.array(["2026-01-01", "2026-01-02"], dtype="datetime64[ns]")
    values = record.Dataset({"x": ("day", [1.0, 2.0])}, coords={"day": dates})
    back = record.Dataset.from_dict(record._as_json(values))
    assert back["day"].values[0].startswith("2026-01-01")


def replaced(monkeypatch, act):
    """Let ``act(number of the fit)`` happen before each fit."""
    train, fits = pmf.NFVI.train, []

    def instead(self, config, **kwargs):
        fits.append(config)
        act(len(fits) - 1)
        return train(self, config, **kwargs)

    monkeypatch.setattr(pmf.NFVI, "train", instead)


def test_a_restart_that_fails_is_named_and_the_others_count(monkeypatch, caplog):
    def act(k):
        if k == 0:
            raise FitError("no luck")

    replaced(monkeypatch, act)
    approx = pmf.fit(5, model=normal_mean(), restarts=2, **FEW)
    assert [run.error for run in approx.restarts.runs] == ["FitError: no luck", ""]
    assert approx.restarts.best == 1
    assert approx.restarts.disagreement is None
    assert "Restart 0 failed: FitError: no luck" in caplog.text
    assert "Restart 0 has no result: FitError: no luck" in str(approx.restarts)


def test_if_all_fail_the_first_error_is_raised(monkeypatch):
    def act(k):
        raise FitError(f"never {k}")

    replaced(monkeypatch, act)
    with pytest.raises(FitError, match="never 0"):
        pmf.fit(5, model=normal_mean(), restarts=2, **FEW)


def test_an_interrupt_leaves_what_has_finished(monkeypatch, caplog):
    def act(k):
        if k == 1:
            os.kill(os.getpid(), signal.SIGINT)

    replaced(monkeypatch, act)
    approx = pmf.fit(5, model=normal_mean(), restarts=3, **FEW)
    assert [run.error for run in approx.restarts.runs] == ["", "not finished", "not finished"]
    assert "Interrupted: 1 of 3 restarts have a result" in caplog.text


def test_minibatches_are_judged_by_their_losses():
    approx = pmf.fit(20, model=minibatch_model(), restarts=2, **FEW)
    found = approx.restarts
    assert (found.taken, found.quality, found.modes) == ("best", None, ())
    assert "the log density is random" in str(found)
    assert len(approx.hist) == 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cores": 2}, "are for restarts: give restarts="),
        ({"combine": "best"}, "are for restarts"),
        ({"restarts": 0}, "restarts must be an integer of at least 1"),
        ({"restarts": 2, "combine": "all"}, "combine must be 'mixture', 'best' or None"),
        ({"restarts": 2, "checkpoint": "x.nc"}, "checkpoint= is for one"),
        ({"restarts": 2, "callbacks": [print]}, "callbacks= is for one"),
        ({"restarts": 2, "more_replacements": {"x": 1}}, "more_replacements= is for one"),
        ({"restarts": 2, "method": pmf.NFVI}, "method must be 'nfvi'"),
    ],
)
def test_what_has_no_meaning_is_refused(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        pmf.fit(5, model=normal_mean(), **arguments)


def test_modes_are_starts_even_if_the_structure_cannot_be_read(monkeypatch, caplog):
    def fails(*args, **kwargs):
        raise NotImplementedError("an Op")

    frames = [Frame(np.full(1, x), np.ones(1)) for x in (-3.0, 3.0)]
    monkeypatch.setattr("pymc_flows.fitting.structured.structure", fails)
    monkeypatch.setattr("pymc_flows.fitting.restarts.starts.find_modes", lambda *_, **__: frames)
    found = begins(normal_mean(), None, None, 3, 1, {})
    assert [begin.start for begin in found] == [*frames, None]
    assert "structure of the model could not be read: an Op" in caplog.text


def test_the_log_is_as_loud_as_before(here):
    assert logging.getLogger("pymc_flows").propagate
