"""Where a search begins: at what was given, or near a model's own point if that is impossible."""

import logging

import numpy as np
import pymc as pm
import pytest
from pymc.distributions import transforms as tr

import pymc_flows as pmf
from fits import JAX
from pymc_flows.backends.modes import NUMPY
from pymc_flows.errors import ModelError
from pymc_flows.model.log_density import LogDensity
from pymc_flows.model.logp import ModelDensity
from pymc_flows.start.point import find_start


def scale_of_zero():
    """At its own initial point, s = 0, no data have a density."""
    with pm.Model() as model:
        s = pm.Normal("s", 0, 10)
        pm.Normal("y", 0, s, observed=[1.0, -2.0])
    return model


def constraint_at_its_edge():
    with pm.Model() as model:
        x = pm.Normal("x", shape=2)
        pm.Potential("positive", pm.math.switch(x.sum() > 0, 0.0, -np.inf))
    return model


def interval_at_its_end():
    with pm.Model() as model:
        pm.Uniform("u", 0, 1, initval=0.0)
        pm.Normal("x")
    return model


def ordered_ties():
    """PyMC's initial point of an ordered vector has equal entries, which lie at −∞."""
    with pm.Model() as model:
        mu = pm.Normal("mu", 0, 5, shape=2, transform=tr.ordered)
        w = pm.Dirichlet("w", np.ones(2))
        pm.NormalMixture("y", w, mu, 1.0, observed=[-2.0, -1.0, 1.0, 2.0])
    return model


IMPOSSIBLE = [scale_of_zero, constraint_at_its_edge, interval_at_its_end, ordered_ties]


@pytest.mark.parametrize("build", IMPOSSIBLE)
def test_a_search_begins_near_an_impossible_point(build, caplog):
    density = ModelDensity(build())
    with caplog.at_level(logging.WARNING, "pymc_flows"), np.errstate(all="ignore"):
        point = find_start(density, None, np.random.default_rng(1))
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(
        "The log density is not finite at the model's initial point"
    )
    own = density.start(finite=False)
    known = np.isfinite(own)
    assert (np.abs(point - own)[known] <= 1).all()
    assert np.isfinite(point).all()
    assert np.isfinite(LogDensity(density).value(point[None])).all()


def test_the_same_generator_gives_the_same_point():
    density = ModelDensity(scale_of_zero())
    one, other = (find_start(density, None, np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal(one, other)


def test_a_possible_point_is_taken_as_it_is(caplog):
    density = ModelDensity(scale_of_zero())
    point = find_start(density, {"s": 2.0}, np.random.default_rng(1))
    np.testing.assert_array_equal(point, [2.0])
    assert not caplog.messages


def test_a_whole_start_that_is_impossible_is_refused():
    with pytest.raises(ModelError, match="y: log density -inf") as caught:
        find_start(ModelDensity(scale_of_zero()), {"s": 0.0}, np.random.default_rng(1))
    assert "points near" not in str(caught.value)


def test_only_what_was_not_given_moves():
    with pm.Model() as model:
        pm.Normal("a")
        s = pm.Normal("s", 0, 10)
        pm.Normal("y", 0, s, observed=1.0)
    point = find_start(ModelDensity(model), {"a": 0.25}, np.random.default_rng(1))
    assert point[0] == 0.25
    assert point[1] != 0


@pytest.mark.parametrize("nothing", [None, "support_point"])
def test_what_gets_no_value_may_move(nothing):
    with pm.Model() as model:
        pm.Normal("a")
        pm.Normal("b")
    assert ModelDensity(model).not_named_in({"a": nothing, "b": 0.0}).tolist() == [True, False]


def test_a_model_that_is_impossible_everywhere_is_named():
    with pm.Model() as model:
        pm.Normal("x")
        pm.HalfNormal("y", observed=-1.0)
    with pytest.raises(ModelError, match="y: log density -inf") as caught:
        find_start(ModelDensity(model), None, np.random.default_rng(1))
    assert str(caught.value).endswith("Nor is it at 10 points near that one.")


def test_an_op_that_raises_at_the_point_may_not_nearby():
    with pm.Model() as model:
        x = pm.Normal("x", shape=3)
        pm.MvNormal("y", np.zeros(2), chol=_factor(x), observed=np.ones(2))
    point = find_start(ModelDensity(model), None, np.random.default_rng(1))
    assert np.isfinite(point).all()


def _factor(x):
    zero = pm.math.stack([x[0], 0.0])
    return pm.math.stack([zero, pm.math.stack([x[1], x[2]])])


# ------------------------------------------------------------------------- fits without a search


@pytest.mark.parametrize("build", IMPOSSIBLE)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_a_fit_without_a_search_begins_near_an_impossible_point(build, caplog):
    density = ModelDensity(build())
    with caplog.at_level(logging.WARNING, "pymc_flows"):
        one, other = (pmf.NFVI("loc", model=density.model, random_seed=1) for _ in range(2))
    begins = [m for m in caplog.messages if "the fit begins near it, as pm.sample does" in m]
    assert len(begins) == 2  # once each
    point = one.approx.flow.center()
    np.testing.assert_array_equal(point, other.approx.flow.center())
    assert np.isfinite(LogDensity(density).value(point[None])).all()


@pytest.mark.filterwarnings("ignore:divide by zero")
def test_a_fit_from_an_impossible_point_goes_through():
    inference = pmf.NFVI("scale-loc", model=ordered_ties(), random_seed=1)
    inference.fit(20, obj_n_mc=4, **JAX)
    assert np.isfinite(inference.hist).all()


def test_a_fit_leaves_possible_points_and_whole_starts_alone(caplog):
    model = scale_of_zero()
    given = pmf.NFVI("loc", model=model, start={"s": 2.0}, jitter=0)
    np.testing.assert_array_equal(given.approx.flow.center(), [2.0])
    impossible = pmf.NFVI("loc", model=model, start={"s": 0.0}, jitter=0)
    with pytest.raises(ModelError, match="y: log density -inf"):
        impossible.fit(3, **JAX)
    assert not caplog.messages


# ---------------------------------------------------------------------------------- start= is used


def explodes_at_its_own_point():
    """The initial point, 0, must never be evaluated: the test's start is 32."""
    with pm.Model() as model:
        x = pm.Normal("x", 0, 100)
        pm.Potential("wall", pm.math.switch(x > 1, 0.0, -np.inf))
        pm.Normal("y", x, 1, observed=[30.0, 35.0])
    return model


def test_a_start_is_the_only_point_that_is_evaluated(monkeypatch):
    """Backend, plan and compiled density are all tried out where the user says."""
    model = explodes_at_its_own_point()
    asked = []
    original = ModelDensity.start

    def start(self, start=None, **options):
        asked.append(start)
        return original(self, start, **options)

    monkeypatch.setattr(ModelDensity, "start", start)
    approx = pmf.fit(20, formula="loc", model=model, start={"x": 32.0}, random_seed=1, **JAX)
    assert all(given == {"x": 32.0} for given in asked)
    assert np.isfinite(approx.hist).all()


@pytest.mark.filterwarnings("ignore:divide by zero")
def test_a_mixture_with_ordered_means_fits_from_a_start():
    start = {"mu": [-1.0, 1.0]}
    inference = pmf.NFVI("loc", model=ordered_ties(), start=start, random_seed=1)
    inference.fit(5, obj_n_mc=2, **JAX)
    assert np.isfinite(inference.hist).all()
    objective = inference.objective(2)
    assert np.isfinite(objective.eval(mode=NUMPY))


def test_starts_take_what_initvals_of_pymc_take():
    with pm.Model() as model:
        a = pm.Normal("a", 3, 1)
        pm.HalfNormal("b")
        pm.Normal("c", a, 1)
    density = ModelDensity(model)
    found = density.start({a: 1.5, "b_log__": -1.0, "c": "support_point"})
    np.testing.assert_allclose(found, [1.5, -1.0, 1.5])
    drawn = density.start({"a": "prior"})
    assert drawn[0] != 3
    with pytest.raises(ModelError, match="start value of 'a' is not numeric: 'posterior'"):
        density.start({"a": "posterior"})
