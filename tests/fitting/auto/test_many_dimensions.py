"""`formula='auto'` in many dimensions, where weights of a Gaussian cannot be trusted."""

import math

import numpy as np
import pymc as pm

import pymc_flows as pmf
from pymc_flows.diagnostics.quality import Quality
from pymc_flows.fitting import auto as ladder
from pymc_flows.fitting import candidates, tried
from pymc_flows.fitting.ladder import Rung
from pymc_flows.formula import Formula
from pymc_flows.support.deadline import Deadline
from pymc_flows.support.evaluations import Evaluations


def test_training_is_bounded_and_does_not_begin_at_the_mode(monkeypatch):
    monkeypatch.setattr(ladder, "MAX_DENSE", 4)
    monkeypatch.setattr(candidates, "MAX_DENSE", 4)
    monkeypatch.setattr(tried, "TRAINING", 600.0)
    monkeypatch.setattr(ladder, "COMPILING", 1e3)
    begun = []

    def noted(*args, **kwargs):
        begun.append(kwargs["start"])
        return pmf.NFVI(*args, **kwargs)

    monkeypatch.setattr(ladder, "NFVI", noted)
    with pm.Model() as model:  # of products, which mirror images leave as they are
        u, v = pm.Normal("u", shape=(3, 1)), pm.Normal("v", shape=(1, 3))
        pm.Normal("y", u * v, 0.05, observed=np.full((3, 3), 1.5))
    approx = pmf.fit(300, model=model, random_seed=1, backend="jax", progressbar=False)
    *before, last = approx.ladder.rungs
    assert not any(r.quality.is_trusted for r in before)
    assert (str(last.formula), last.steps) == ("scale-loc", 300)
    assert last.evaluations.gradients == 8 * last.steps
    [frame] = begun
    np.testing.assert_array_equal(frame.center, 0)
    np.testing.assert_array_equal(frame.scale, 1)
    *_, bounded, left_out = approx.ladder.notes
    assert bounded.startswith("Training was given 600 s")
    assert "seconds= or quality='best' gives it more" in bounded
    assert left_out.startswith("Left out, since less than 1000 s were left: nvp*4")


def test_a_good_gaussian_has_no_notes_on_training(monkeypatch):
    monkeypatch.setattr(ladder, "MAX_DENSE", 2)
    monkeypatch.setattr(candidates, "MAX_DENSE", 2)
    with pm.Model() as model:
        pm.Normal("x", shape=5)
    assert pmf.fit(50, model=model, random_seed=1, progressbar=False).ladder.notes == ()


def test_a_start_that_is_not_finite_is_moved():
    with pm.Model() as model:
        pm.HalfNormal("s", initval=0.0)
    assert pmf.fit(50, model=model, random_seed=1, progressbar=False).ladder.rungs


def test_a_trained_gaussian_is_compared_with_gaussians_alone():
    found = tried.Tried(iter([]), Deadline(), None)
    for formula, elbo in (("tril-loc | laplace", -10.0), ("scale-loc", -100.0), ("scale-loc", -20)):
        quality = Quality(4_000, elbo, 0.01, 2.0, 10.0, elbo, 0.01)
        found.rungs.append(Rung(Formula(formula), quality, 1.0, 0, Evaluations()))
    assert found.last_is_best_of_its_kind
    found.rungs.append(found.rungs[1])
    assert not found.last_is_best_of_its_kind


def test_a_time_that_was_given_stays():
    for deadline, resamples in ((Deadline(), False), (Deadline(1e9), True)):
        found = tried.Tried(iter([]), deadline, None, resamples=resamples)
        found.limit_training()
        assert found.deadline is deadline
        assert found.notes == []
    found = tried.Tried(iter([]), Deadline(), None)
    found.limit_training()
    assert math.isfinite(found.deadline.at)
