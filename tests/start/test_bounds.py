"""What a search for a start costs at most, and what it says where it finds nothing."""

import logging

import numpy as np
import pymc as pm
import pytest

import pymc_flows as pmf
from models import ZOO
from pymc_flows.errors import ArgumentError
from pymc_flows.flows.frame import Frame
from pymc_flows.model.logp import density_of
from pymc_flows.start.options import MAX_DENSE, SEARCH, SearchOptions
from pymc_flows.start.search import search, seek_frame
from pymc_flows.start.target import Target
from pymc_flows.start.weighted.moments import match_moments
from pymc_flows.support.deadline import Deadline, check_seconds
from pymc_flows.support.evaluations import Evaluations


def logistic(dim, n=200):
    rng = np.random.default_rng(5)
    x = rng.normal(size=(n, dim))
    with pm.Model() as model:
        b = pm.Normal("b", 0, 1, shape=dim)
        pm.Bernoulli("y", logit_p=x @ b, observed=(rng.random(n) < 0.5).astype(int))
    return model, x


@pytest.mark.parametrize("dim", [3, 60])
def test_a_gaussian_costs_one_hessian_whatever_the_dimension(dim):
    model, x = logistic(dim)
    counts = Evaluations()
    frame = seek_frame(model, random_seed=1, evaluations=counts)
    assert counts.gradients == counts.curvatures < 150
    assert counts.densities <= 20 * SEARCH.elbo_draws
    p = 1 / (1 + np.exp(-x @ frame.center))
    precision = x.T @ (x * (p * (1 - p))[:, None]) + np.eye(dim)
    np.testing.assert_allclose(frame.scale @ frame.scale.T @ precision, np.eye(dim), atol=1e-6)


def test_above_the_dense_dimensions_scales_are_those_given_the_other_coordinates():
    n = MAX_DENSE + 5
    with pm.Model() as model:
        x = pm.Normal("x", 0, 1, shape=n)
        pm.Normal("y", x[1:] - x[:-1], 0.5, observed=np.zeros(n - 1))
    counts = Evaluations()
    frame = seek_frame(model, random_seed=1, evaluations=counts)
    expected = np.full(n, 1 + 2 / 0.25)
    expected[[0, -1]] = 1 + 1 / 0.25
    np.testing.assert_allclose(frame.scale, expected**-0.5, rtol=1e-8)
    assert counts.gradients == counts.curvatures < 100


def test_the_number_of_hessians_is_bounded():
    with pm.Model() as model:
        v = pm.Normal("v", 0, 3)
        pm.Normal("x", 0, pm.math.exp(v / 2), shape=9)
    target = Target.of(density_of(model))
    options = SearchOptions(newton_steps=5, max_climbs=1, max_curvatures=10)
    search(target, np.zeros(10), np.random.default_rng(1), options=options)
    assert target.evaluations.curvatures < 40


def test_a_deadline_that_has_passed_leaves_a_gaussian_and_does_little():
    model, _ = logistic(3)
    counts = Evaluations()
    frame = seek_frame(model, random_seed=1, evaluations=counts, deadline=Deadline.after(1e-9))
    assert frame.scale is not None
    assert counts.curvatures < 10


def test_a_search_that_finds_nothing_says_so_and_is_no_frame(caplog):
    with pm.Model() as model:
        x = pm.Normal("x")
        pm.Potential("gap between walls", pm.math.switch((x > 5.9) & (x < 6.1), 0.0, -np.inf))
    frame = pmf.find_frame(model, start={"x": 6.0})
    assert "No start was found" in caplog.text
    assert not pmf.NormalizingFlow("scale-loc", model=model, start=frame).is_framed


def test_a_standard_normal_that_is_the_best_is_found(caplog):
    with pm.Model() as model:
        pm.Normal("x", shape=2)
    frame = pmf.find_frame(model, random_seed=1)
    assert pmf.NormalizingFlow("scale-loc", model=model, start=frame).is_framed
    assert "No start" not in caplog.text


def test_moments_are_not_drawn_where_no_draws_would_be_enough():
    def refused(points):
        raise AssertionError("points were drawn")

    frame = Frame(np.zeros(1_601), np.ones(1_601))
    assert match_moments(refused, frame, np.random.default_rng(1)) is frame


def test_a_model_with_a_loop_is_differenced_and_says_so(caplog):
    with caplog.at_level(logging.INFO, logger="pymc_flows"):
        target = Target.of(density_of(ZOO["garch"]()))
    assert not target.takes_newton_steps
    assert "curvatures are differences" in caplog.text


@pytest.mark.parametrize("seconds", [0, -1, np.inf, np.nan, "30", True])
def test_seconds_that_are_no_time(seconds):
    with pytest.raises(ArgumentError, match="seconds must be a positive number"):
        check_seconds(seconds)


def test_evaluations_add_up():
    one, other = Evaluations(1, 2, 3, 4), Evaluations(10, 20, 30, 40)
    assert one + other == Evaluations(11, 22, 33, 44)
    assert str(Evaluations(1_000, 2, 3)) == "1,000 densities, 2 gradients, 3 Hessians"
