"""Fits that go wrong: what is skipped, when they end, and what they say."""

import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest

from fits import JAX, assert_identical, inference, parameters
from pymc_flows.backends.modes import NUMPY
from pymc_flows.errors import FitError, ModelError


def walled(width):
    """A standard normal with a wall: −inf beyond it."""
    with pm.Model() as model:
        x = pm.Normal("x", 0, 1)
        pm.Potential("wall", pt.switch(pt.abs(x) < width, 0.0, -np.inf))
    return model


def test_a_draw_that_is_not_finite_costs_a_draw_not_a_step(caplog):
    inf = inference(walled(1.8))
    inf.fit(200, obj_n_mc=8, random_seed=5, **JAX)
    assert np.isfinite(inf.hist).all()
    assert 20 < inf.state.lost < 200
    total = f"{inf.state.lost} of 1,600 draws were left out of the steps of 'scale-loc'"
    assert total in caplog.text
    [sd] = inf.approx.std.eval(mode=NUMPY)
    assert 0.3 < sd < 1.1


def test_a_step_fails_where_more_than_half_of_its_draws_do():
    inf = inference(walled(0.6))
    with pytest.warns(UserWarning, match="of 200 steps were skipped") as record:
        inf.fit(200, obj_n_mc=3, random_seed=5, **JAX)
    skipped = int(np.isnan(inf.hist).sum())
    assert [str(w.message).split()[0] for w in record] == [str(skipped)]
    assert 0 < skipped < 150
    assert np.isfinite(np.concatenate([p.ravel() for p in parameters(inf)])).all()


def test_a_hundred_failures_in_a_row_end_it_and_name_the_term():
    inf = inference(walled(1e-6), jitter=0.0)
    before = parameters(inf)
    with pytest.raises(FitError, match="100 steps in a row failed") as info:
        inf.fit(500, obj_n_mc=4, **JAX)
    assert isinstance(info.value, FloatingPointError)
    assert "wall" in str(info.value)
    assert "step 100" in str(info.value)
    assert_identical(parameters(inf), before)
    np.testing.assert_array_equal(inf.hist, [np.nan] * 100)
    np.testing.assert_array_equal(inf.approx.hist, inf.hist)
    with pytest.raises(FitError, match="step 200"):
        inf.refine(300, progressbar=False)
    assert len(inf.hist) == 200
    inf.approx.sample(5)


def test_a_flow_that_overflows_is_named():
    inf = inference(params={0: {"rho": [1e308]}})
    with pytest.raises(FitError, match=r"coordinate 0 of 'x' is -?inf at draw"):
        inf.fit(200, obj_n_mc=50, **JAX)


def test_a_gradient_that_is_not_finite_is_named():
    with pm.Model() as model:
        x = pm.Normal("x", 0, 1, shape=2)
        pm.Potential("root", pt.sqrt(pt.maximum(x[1] - 100, 0.0)))
    inf = inference(model, "loc-scale-planar*2")
    with pytest.raises(FitError, match=r"with respect to 'x' is not finite at 4 of 4 draws"):
        inf.fit(200, obj_n_mc=4, **JAX)


def test_an_update_that_is_not_finite_is_named():
    def broken(grads, params):
        return {p: p * np.nan for p in params}

    inf = inference()
    before = parameters(inf)
    with pytest.raises(FitError, match="the optimizer's update is not") as info:
        inf.fit(200, obj_n_mc=4, obj_optimizer=broken, **JAX)
    assert isinstance(info.value.__cause__, ArithmeticError)
    assert_identical(parameters(inf), before)


def test_a_start_without_density_is_refused_before_anything_is_compiled():
    with pytest.raises(ModelError, match="wall"):
        inference(walled(1.5), start={"x": 3.0}).fit(10, **JAX)
