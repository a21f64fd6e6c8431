"""`formula='auto'` in many dimensions, where weights of a Gaussian cannot be trusted."""

import math

import numpy as np
import pymc as pm

import pymc_flows as pmf
from pymc_flows.fitting import auto as ladder
from pymc_flows.fitting import tried
from pymc_flows.support.deadline import Deadline


def test_training_is_bounded_and_does_not_begin_at_the_mode(monkeypatch):
    monkeypatch.setattr(ladder, "MAX_DENSE", 4)
    monkeypatch.setattr(tried, "TRAINING", 8.0)
    with pm.Model() as model:  # of products, which mirror images leave as they are
        u, v = pm.Normal("u", shape=(3, 1)), pm.Normal("v", shape=(1, 3))
        pm.Normal("y", u * v, 0.05, observed=np.full((3, 3), 1.5))
    approx = pmf.fit(300, model=model, random_seed=1, backend="jax", progressbar=False)
    *before, last = approx.ladder.rungs
    assert not any(r.quality.is_trusted for r in before)
    assert (str(last.formula), last.steps) == ("scale-loc", 300)
    assert last.evaluations.gradients == 8 * last.steps
    *_, bounded, left_out = approx.ladder.notes
    assert bounded.startswith("Training was given 8 s")
    assert "seconds= or quality='best' gives it more" in bounded
    assert left_out.startswith("Left out, since the time was over: nvp*4")


def test_a_time_that_was_given_stays():
    for deadline, resamples in ((Deadline(), False), (Deadline(1e9), True)):
        found = tried.Tried(iter([]), deadline, None, resamples=resamples)
        found.limit_training()
        assert found.deadline is deadline
        assert found.notes == []
    found = tried.Tried(iter([]), Deadline(), None)
    found.limit_training()
    assert math.isfinite(found.deadline.at)
