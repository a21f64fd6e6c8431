"""Restarts in one compiled loop: each is the fit that it would be alone."""

import os
import signal

import numpy as np
import pymc as pm
import pytest

import pymc_flows as pmf
from fits import JAX, Y, minibatch_model, normal_mean
from pymc_flows.errors import ArgumentError
from pymc_flows.fitting.restarts.batch import fit_together
from pymc_flows.fitting.restarts.legs import Fits, fit_one
from pymc_flows.formula import Formula
from pymc_flows.training.loop import BatchedLoop, StepError

pytestmark = pytest.mark.jax

STEPS = 30
FEW = {"obj_n_mc": 8, **JAX}
FORMULA = Formula("planar-scale-loc")
# Frames are data of the loop, and others for each of these.
TASKS = [(k, pmf.Frame(np.array([0.5 * k, -k]))) for k in range(3)]


@pytest.fixture(scope="module")
def model():
    with pm.Model() as built:
        x, sigma = pm.Normal("x"), pm.HalfNormal("sigma")
        pm.Normal("y", x, sigma, observed=Y)
    return built


@pytest.fixture(scope="module")
def alone(model):
    arguments = {**FEW, "model": model, "formula": FORMULA}
    return [fit_one((pmf.fit, STEPS, arguments), task).content for task in TASKS]


def rows_model():
    rows = pmf.Rows.arrays({"y": np.linspace(-1, 2, 60)}, batch_size=20)
    with pm.Model() as built:
        x = pm.Normal("x")
        pm.Normal("y", x, observed=rows["y"], total_size=rows.total)
    return built


def together(model, tasks=TASKS, formula=FORMULA, **more):
    fits = formula and Fits(STEPS, model, formula, {**FEW, **more})
    return fit_together(fits, tasks, show=False)


def test_each_is_the_fit_that_it_would_be_alone(model, alone, monkeypatch):
    """30 steps in calls of at most 13 are three of 10."""
    monkeypatch.setattr("pymc_flows.training.loop.batched.STEPS", 13)
    lengths, run = [], BatchedLoop.run

    def spy(self, settings):
        lengths.append((self.steps, len(settings)))
        return run(self, settings)

    monkeypatch.setattr(BatchedLoop, "run", spy)
    tally = together(model)
    assert lengths == [(10, 10)] * 3
    assert not tally.is_interrupted
    for result, expected in zip(tally.results, alone, strict=True):
        found = result.value.content
        assert found.formula == expected.formula
        assert found.record == expected.record
        assert found.arrays.keys() == expected.arrays.keys()
        for name, value in expected.arrays.items():
            np.testing.assert_allclose(found.arrays[name], value, rtol=1e-9, atol=1e-12)


def test_an_interrupt_leaves_all_as_far_as_they_came(model, monkeypatch, caplog):
    monkeypatch.setattr("pymc_flows.training.loop.batched.STEPS", 10)
    run = BatchedLoop.run

    def interrupted(self, settings):
        os.kill(os.getpid(), signal.SIGINT)
        return run(self, settings)

    monkeypatch.setattr(BatchedLoop, "run", interrupted)
    approx = pmf.fit(
        STEPS,
        model=model,
        formula="scale-loc",
        start=TASKS[0][1],
        restarts=2,
        batched=True,
        random_seed=1,
        **FEW,
    )
    assert len(approx.hist) == 10
    assert [run.error for run in approx.restarts.runs] == ["", ""]
    assert "Interrupted: 2 of 2 restarts have a result" in caplog.text
    assert "one by one" not in caplog.text


def test_a_call_that_fails_leaves_it_to_single_fits(model, monkeypatch, caplog):
    def fail(self, settings):
        raise StepError from MemoryError("too large")

    monkeypatch.setattr(BatchedLoop, "run", fail)
    assert together(model, TASKS[:2]) is None
    assert "one by one, not as a batch: MemoryError: too large" in caplog.text


@pytest.mark.parametrize(
    ("build", "given", "why"),
    [
        (normal_mean, {"formula": None}, "only a formula that is trained step by step can be"),
        (normal_mean, {"stop": True}, "stop was given"),
        (minibatch_model, {}, "steps see batches of the rows"),
        (rows_model, {}, "steps see batches of the rows"),
    ],
)
def test_what_cannot_be_a_batch_is_said(build, given, why, caplog):
    assert together(build(), **given) is None
    assert f"Restarts are fitted one by one, not as a batch: {why}" in caplog.text


@pytest.mark.parametrize("given", [{"cores": 2, "restarts": 2}, {}])
def test_a_batch_is_of_restarts_in_this_process(model, given):
    with pytest.raises(ArgumentError, match="batched="):
        pmf.fit(STEPS, model=model, batched=True, **given)
