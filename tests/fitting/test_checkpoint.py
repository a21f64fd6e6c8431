"""Fits that are kept in a file: killed, interrupted or stopped, and resumed to the same bits."""

import copy
import os
import signal
import subprocess
import sys
import time
from subprocess import PIPE

import numpy as np
import pymc as pm
import pytensor
import pytest
from numpy.testing import assert_array_equal

import killed_fit
import pymc_flows as pmf
from fits import (
    JAX,
    QUIET,
    all_state,
    assert_identical,
    begin,
    everything,
    inference,
    normal_mean,
    parameters,
)
from pymc_flows.errors import ArgumentError, StorageError
from pymc_flows.fitting import checkpoint as _checkpoint
from pymc_flows.io import files as _files
from pymc_flows.io.files import Content


def stop_at(step, error=StopIteration):
    def callback(approx, losses, i):
        if i == step:
            raise error

    return callback


@pytest.fixture(scope="module")
def whole():
    return begin()


# ------------------------------------------------------------------------- killed


@pytest.fixture(scope="module")
def whole_minibatches():
    return killed_fit.start()


def kill(fits, command, path, seconds):
    """Begin a fit in a process of its own; kill it that long after its second checkpoint."""
    fits.stdin.write(f"{command}\n")
    fits.stdin.flush()
    seen, process = {version(path)}, int(fits.stdout.readline())
    try:
        deadline = time.monotonic() + 120
        while len(seen) < 3:
            os.kill(process, 0)  # it is there
            assert time.monotonic() < deadline
            time.sleep(0.005)
            seen.add(version(path))
        time.sleep(seconds)
    finally:
        os.kill(process, signal.SIGKILL)
        assert fits.stdout.readline() == "ended\n"


def version(path):
    # The inode alone does not do: a new file may get that of the one before the last.
    return (path.stat().st_ino, path.stat().st_mtime_ns) if path.exists() else None


def test_a_fit_that_was_killed_ends_with_the_same_bits(whole_minibatches, rng, tmp_path):
    path = tmp_path / "fit.nc"
    done = []
    program = [sys.executable, killed_fit.__file__, str(path)]
    with subprocess.Popen(program, stdin=PIPE, stdout=PIPE, text=True) as fits:
        for command in ("fit", "resume"):
            kill(fits, command, path, rng.uniform(0, 0.3))
            done.append(_files.read(path).record["fit"]["done"])
    assert 0 < done[0] < done[1] < killed_fit.STEPS
    inf = killed_fit.resume(path)
    assert_identical(everything(inf), everything(whole_minibatches))
    again = killed_fit.resume(path)
    assert_identical(everything(again), everything(whole_minibatches))
    for x in (inf, whole_minibatches):
        x.refine(20, **QUIET)
    assert_identical(everything(inf), everything(whole_minibatches))


# ------------------------------------------------------------------------- interrupted, stopped


def test_an_interrupted_fit_leaves_a_checkpoint(whole, tmp_path):
    path = tmp_path / "fit.nc"

    def interrupt(approx, losses, i):
        if i == 17:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)

    inf = begin(checkpoint=path, callbacks=[interrupt])
    assert len(inf.hist) == 17
    other = pmf.resume(path, normal_mean(), **QUIET)
    assert_identical(all_state(other), all_state(whole))
    # The one that is still there can go on, too.
    inf.refine(13, **QUIET)
    assert_identical(everything(inf), everything(whole))


def test_an_exception_leaves_a_checkpoint(whole, tmp_path):
    path = tmp_path / "fit.nc"
    with pytest.raises(ZeroDivisionError):
        begin(checkpoint=path, callbacks=[stop_at(9, ZeroDivisionError)])
    assert_identical(all_state(pmf.resume(path, normal_mean(), **QUIET)), all_state(whole))


def test_a_fit_that_a_callback_stopped_has_nothing_left(tmp_path):
    path = tmp_path / "fit.nc"
    inf = begin(checkpoint=path, callbacks=[stop_at(9)])
    other = pmf.resume(path, normal_mean(), **QUIET)
    assert other.state.i == len(other.hist) == 9
    for x in (inf, other):
        x.refine(3, **QUIET)  # of the rest of the schedule
    assert_identical(all_state(other), all_state(inf))


def test_an_interrupt_waits_for_a_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "fit.nc"

    def write(path, content, *_):
        if content.record["fit"]["done"] == 10:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)
        _files.write(path, content)

    monkeypatch.setattr(_checkpoint, "write", write)
    with pytest.raises(KeyboardInterrupt):  # at 10, and again at the end of the fit
        begin(checkpoint=path, every=10)
    assert _files.read(path).record["fit"]["done"] == 10


# ------------------------------------------------------------------------- when, and what


def test_checkpoints_are_written_before_the_first_step_and_at_multiples(
    whole, tmp_path, monkeypatch
):
    written = []

    def write(path, content, *_):
        _files.write(tmp_path / f"{len(written)}.nc", content)
        fit = content.record["fit"]
        written.append((fit["i"], fit["n"], len(content.arrays["hist"])))

    monkeypatch.setattr(_checkpoint, "write", write)
    inf = begin(checkpoint=tmp_path / "fit.nc", every=8)
    inf.refine(5, **QUIET)
    steps = [(i, 30, i) for i in (0, 8, 16, 24, 30)] + [(i, 5, i) for i in (32, 35)]
    assert written == steps
    monkeypatch.undo()
    for k in (0, 2):
        other = pmf.resume(tmp_path / f"{k}.nc", normal_mean(), **QUIET)
        assert_identical(all_state(other), all_state(whole))
    assert_identical(
        all_state(pmf.resume(tmp_path / "5.nc", normal_mean(), **QUIET)), all_state(inf)
    )


def test_callbacks_get_their_index_and_all_losses_of_the_fit(tmp_path):
    path = tmp_path / "fit.nc"
    inf = begin(n=4)
    seen, seen_again = [], []
    inf.fit(
        8,
        random_seed=6,
        obj_n_mc=4,
        checkpoint=path,
        callbacks=[lambda _, losses, i: seen.append((i, *losses))],
        **JAX,
    )
    inf.fit(8, random_seed=6, obj_n_mc=4, **JAX)
    short = begin(n=4)
    with pytest.raises(ZeroDivisionError):
        short.fit(
            8,
            random_seed=6,
            obj_n_mc=4,
            checkpoint=path,
            callbacks=[stop_at(5, ZeroDivisionError)],
            **JAX,
        )
    other = pmf.resume(
        path,
        normal_mean(),
        callbacks=[lambda _, losses, i: seen_again.append((i, *losses))],
        **QUIET,
    )
    assert seen_again == seen[5:]
    assert len(other.hist) == 12


def test_a_fit_without_losses(tmp_path):
    path = tmp_path / "fit.nc"
    with pytest.raises(ZeroDivisionError):
        begin(score=False, checkpoint=path, callbacks=[stop_at(9, ZeroDivisionError)])
    other = pmf.resume(path, normal_mean(), **QUIET)
    assert len(other.hist) == 0
    assert_identical(parameters(other), parameters(begin()))


@pytest.mark.parametrize(
    "optimizer",
    [
        pm.sgd,
        pm.adagrad_window(learning_rate=0.01, n_win=3),
        pm.rmsprop(learning_rate=np.float64(0.01)),
    ],
    ids=["sgd", "adagrad_window", "rmsprop"],
)
def test_pymc_optimizers_are_in_the_file(optimizer, tmp_path):
    path = tmp_path / "fit.nc"
    options = {"obj_optimizer": optimizer, "total_grad_norm_constraint": 5.0}
    with pytest.raises(ZeroDivisionError):
        begin(checkpoint=path, callbacks=[stop_at(9, ZeroDivisionError)], **options)
    other = pmf.resume(path, normal_mean(), **QUIET)
    assert_identical(all_state(other), all_state(begin(**options)))
    with pytest.raises(ArgumentError, match="obj_optimizer= of its own, or the file holds it"):
        pmf.resume(path, normal_mean(), obj_optimizer=optimizer)


def test_what_is_code_has_to_be_given_again(tmp_path):
    path = tmp_path / "fit.nc"

    def halves(grads, params):
        return pm.sgd(grads, params, learning_rate=0.01)

    def make():
        mu = pytensor.shared(0.5, name="mu")
        count = pytensor.shared(0.0, name="count")
        options = {
            "obj_optimizer": halves,
            "more_obj_params": [mu],
            "more_updates": {count: count + 1},
        }
        return normal_mean(mu), mu, count, options

    def fit(**kwargs):
        model, *shared, options = make()
        inf = inference(model)
        inf.fit(30, random_seed=5, obj_n_mc=4, **JAX, **options, **kwargs)
        return inf, shared

    whole, expected = fit()
    with pytest.raises(ZeroDivisionError):
        fit(checkpoint=path, callbacks=[stop_at(9, ZeroDivisionError)])
    model, *shared, options = make()
    for name in options:
        given = {k: v for k, v in options.items() if k != name}
        with pytest.raises(ArgumentError, match=f"the fit had {name}="):
            pmf.resume(path, model, **QUIET, **given)
    with pytest.raises(ArgumentError, match="no more_replacements="):
        pmf.resume(path, model, more_replacements={shared[0]: shared[1]}, **options)
    with pytest.raises(StorageError, match=r"optimizer in the file does not fit(.|\n)*'mu'"):
        pmf.resume(path, model, **QUIET, **options | {"obj_optimizer": pm.adam})
    other = pmf.resume(path, model, **QUIET, **options)
    assert_identical(all_state(other), all_state(whole))
    for mine, theirs in zip(expected, shared, strict=True):
        assert_array_equal(mine.get_value(), theirs.get_value())
    assert shared[1].get_value() == 30


def test_an_inference_is_saved_between_fits(whole, tmp_path):
    inf = inference()
    inf.save(tmp_path / "a.nc")
    with pytest.raises(StorageError, match="without a fit"):
        pmf.resume(tmp_path / "a.nc", normal_mean())
    inf = begin(include_transformed=True)
    inf.save(tmp_path / "a.nc")
    before = (tmp_path / "a.nc").read_bytes()
    other = pmf.resume(tmp_path / "a.nc", normal_mean(), **QUIET)
    assert other.approx.groups[0].include_transformed
    approx = pmf.load(tmp_path / "a.nc", normal_mean())
    assert_array_equal(approx.hist, inf.hist)
    inf.refine(4, learning_rate=0.003, **QUIET)
    other.refine(4, learning_rate=0.003, **QUIET)
    assert_identical(all_state(other), all_state(inf))
    inf.fit(3, **JAX)  # the seed comes from the approximation
    other.fit(3, **JAX)
    assert_identical(all_state(other), all_state(inf))
    assert (tmp_path / "a.nc").read_bytes() == before


def test_a_fit_does_not_go_on_with_other_data_unless_that_is_meant(tmp_path):
    path = tmp_path / "fit.nc"
    with pytest.raises(ZeroDivisionError):
        begin(checkpoint=path, callbacks=[stop_at(9, ZeroDivisionError)])
    with pytest.raises(StorageError, match=r"other data or priors(.|\n)*'x': log density"):
        pmf.resume(path, normal_mean(1.0), **QUIET)
    other = pmf.resume(path, normal_mean(1.0), check_density=False, **QUIET)
    assert len(other.hist) == 30
    pmf.load(path, normal_mean(1.0))  # the checkpoint at the end is of the new model


def test_a_copy_keeps_away_from_the_file(tmp_path):
    inf = begin(checkpoint=tmp_path / "fit.nc")
    before = (tmp_path / "fit.nc").read_bytes()
    copy.deepcopy(inf).refine(2, **QUIET)
    assert (tmp_path / "fit.nc").read_bytes() == before


# ------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every": 5}, "give both"),
        ({"every": 0, "checkpoint": "a.nc"}, "every must be an integer"),
        ({"every": 2.5, "checkpoint": "a.nc"}, "every must be an integer"),
    ],
)
def test_arguments_that_cannot_be_used(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        inference().fit(3, **arguments)


def test_a_folder_that_is_not_there_is_noticed_before_the_first_step(tmp_path):
    inf = inference()
    with pytest.raises(FileNotFoundError):
        begin(checkpoint=tmp_path / "no" / "fit.nc")
    assert len(inf.hist) == 0


def test_other_versions_are_named(whole, tmp_path, caplog):
    whole.save(tmp_path / "a.nc")
    content = _files.read(tmp_path / "a.nc")
    versions = {**content.record["versions"], "pytensor": "3.0.1"}
    record = {**content.record, "versions": versions}
    _files.write(tmp_path / "a.nc", Content(content.formula, content.arrays, record))
    pmf.resume(tmp_path / "a.nc", normal_mean(), **QUIET)
    assert "pytensor 3.0.1 → " in caplog.text
    assert "numpy" not in caplog.text


FORGED = {
    "a function that is no optimizer": {"optimizer": {"name": "eval", "keywords": {}}},
    "an optimizer with code": {"optimizer": {"name": "adam", "keywords": {"beta1": "x"}}},
    "another optimizer": {"optimizer": {"name": "sgd", "keywords": {"learning_rate": 0.1}}},
    "an unknown keyword": {"optimizer": {"name": "sgd", "keywords": {"x": 1}}},
    "another backend": {"backend": "c"},
    "a step that is no number": {"i": "x"},
    "more steps than planned": {"done": 31},
    "too many steps": {"n": 2**70},
    "more steps than losses": {"done": 40, "n": 40, "i": 40},
    "no noise": {"noise_rng": None},
    "a generator too many": {"model_rngs": {"0": {}}},
    "a schedule": {"schedule": [1]},
    "no table": None,
}


@pytest.mark.parametrize("case", FORGED)
def test_a_forged_fit(case, whole, tmp_path):
    path = tmp_path / "a.nc"
    whole.save(path)
    content = _files.read(path)
    fit = FORGED[case] and {**content.record["fit"], **FORGED[case]}
    record = {**content.record, "fit": fit or 5}
    _files.write(path, Content(content.formula, content.arrays, record))
    with pytest.raises((StorageError, ArgumentError, pmf.FlowError)):
        pmf.resume(path, normal_mean(), **QUIET)


def test_state_that_does_not_fit(whole, tmp_path):
    path = tmp_path / "a.nc"
    whole.save(path)
    content = _files.read(path)
    for value in (np.zeros(5), np.zeros((), np.float32), None):
        arrays = {k: v for k, v in {**content.arrays, "state_0": value}.items() if v is not None}
        _files.write(path, Content(content.formula, arrays, content.record))
        with pytest.raises(StorageError, match="state_0"):
            pmf.resume(path, normal_mean(), **QUIET)
