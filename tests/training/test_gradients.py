"""Other estimates of the gradient: path gradients, and those of a tempered density."""

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import pymc_flows as pmf
from fits import JAX, assert_identical, everything, inference
from flow_cases import compiled, evaluate
from pymc_flows.errors import ArgumentError
from pymc_flows.flows import build_chain
from pymc_flows.model.examine import DrawPlan
from pymc_flows.training.annealing import Ramp
from pymc_flows.training.objectives.loss import (
    Estimator,
    default_gradient,
    loss_and_gradients,
    loss_graph,
)

MEAN = np.array([1.0, -2.0])
FACTOR = np.array([[1.4, 0.0], [0.5, 0.7]])
# Averages of quadratic functions over these are expectations over N(0, I), to the last digit.
EXACT_NOISE = np.sqrt(2) * np.concatenate([np.eye(2), -np.eye(2)])


def gaussian():
    with pm.Model() as model:
        pm.MvNormal("x", MEAN, chol=FACTOR)
    return model


def fitted_exactly():
    """A triangular flow that is the posterior."""
    frame = pmf.Frame(MEAN, FACTOR)
    return pmf.NormalizingFlow("tril-loc", model=gaussian(), jitter=0, start=frame)


def gradients(approx, noise, estimator=None):
    problem, plan = approx.problem(1.0), DrawPlan(len(noise))
    grads = loss_and_gradients(
        problem, pt.constant(noise), plan, loop="unroll", estimator=estimator
    ).grads
    return evaluate(*grads)


def path(use=1):
    return Estimator(path=pt.constant(use))


@pytest.mark.parametrize("formula", ["scale-loc", "tril-loc", "scale-hh*2-lowrank-loc"])
def test_the_path_gradient_has_the_same_expectation(formula, rng):
    approx = pmf.NormalizingFlow(formula, model=gaussian(), start=pmf.Frame(MEAN + 1, FACTOR * 2))
    for value in approx.params:
        value.set_value(value.get_value() + 0.3 * rng.standard_normal(value.type.shape))
    total = gradients(approx, EXACT_NOISE)
    for a, b in zip(total, gradients(approx, EXACT_NOISE, path()), strict=True):
        assert_allclose(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("formula", ["planar", "nvp(hidden=4)*2", "radial-tail-loc"])
def test_it_has_the_same_expectation_for_flows_that_are_not_affine(formula, rng):
    approx = pmf.NormalizingFlow(formula, model=gaussian(), random_seed=1)
    for value in approx.params:
        value.set_value(value.get_value() + 0.3 * rng.standard_normal(value.type.shape))
    z0 = pt.matrix(shape=(500, 2))
    problem, plan = approx.problem(1.0), DrawPlan(500)
    total, other = (
        loss_and_gradients(problem, z0, plan, loop="unroll", estimator=estimator).grads
        for estimator in (None, path())
    )
    # The score of q's parameters, whose expectation is 0.
    scores = pt.concatenate([(a - b).ravel() for a, b in zip(total, other, strict=True)])
    score = compiled([z0], [scores])
    values = [score(part)[0] for part in rng.standard_normal((40, 500, 2))]
    error = np.std(values, axis=0, ddof=1) / np.sqrt(len(values))
    assert np.any(error > 0)
    assert np.all(np.abs(np.mean(values, axis=0)) <= 4.5 * error)


def test_its_noise_is_zero_where_q_is_the_posterior(rng):
    approx = fitted_exactly()
    for draw in rng.standard_normal((5, 1, 2)):
        total = gradients(approx, draw)
        assert max(np.abs(g).max() for g in total) > 0.1
        for g in gradients(approx, draw, path()):
            assert_allclose(g, 0, atol=1e-12)


def test_the_total_gradient_can_be_chosen_within_the_graph(rng):
    approx = pmf.NormalizingFlow("nvp(hidden=4)*2-loc", model=gaussian(), jitter=0.3)
    noise = rng.standard_normal((7, 2))
    for a, b in zip(gradients(approx, noise), gradients(approx, noise, path(use=0)), strict=True):
        assert_allclose(a, b, rtol=1e-12)


def test_a_tempered_gradient_is_that_of_the_tempered_density(rng):
    approx = pmf.NormalizingFlow("scale-planar-loc", model=gaussian(), jitter=0.3, random_seed=2)
    noise = rng.standard_normal((6, 2))
    found = gradients(approx, noise, Estimator(inverse_temperature=pt.constant(0.3)))
    problem, z0 = approx.problem(1.0), pt.constant(noise)
    z, log_det = problem.q.graph(z0, "unroll")
    x = z - MEAN
    log_p = -0.5 * pt.sqr(x @ np.linalg.inv(FACTOR).T).sum(axis=-1)
    expected = pytensor.grad((-log_det - 0.3 * log_p).mean(), problem.q.params)
    for a, b in zip(found, evaluate(*expected), strict=True):
        assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def test_the_loss_is_that_of_the_target_itself(rng):
    approx = pmf.NormalizingFlow("scale-planar-loc", model=gaussian(), jitter=0.3, random_seed=2)
    z0, plan = pt.constant(rng.standard_normal((6, 2))), DrawPlan(6)
    estimator = Estimator(pt.constant(0.3), pt.constant(1))
    problem = approx.problem(1.0)
    loss = loss_and_gradients(problem, z0, plan, loop="unroll", estimator=estimator).value
    same = loss_graph(problem, z0, plan, loop="unroll")
    a, b = evaluate(loss, same)
    assert a == pytest.approx(float(b), rel=1e-12)


# ------------------------------------------------------------------------- in a fit


def fit(n=40, **kwargs):
    inf = inference(formula="scale-loc")
    inf.fit(n, obj_n_mc=4, random_seed=5, **{**JAX, **kwargs})
    return inf


def test_a_switch_is_the_total_gradient_first():
    total, switch, only = (fit(gradient=g) for g in ("total", "switch", "path"))
    assert_allclose(switch.hist[:21], total.hist[:21], rtol=1e-10)
    assert not np.allclose(switch.hist[21:], total.hist[21:], rtol=1e-6)
    assert switch.hist[0] == pytest.approx(only.hist[0], rel=1e-12)
    assert not np.allclose(switch.hist[1:21], only.hist[1:21], rtol=1e-6)


@pytest.mark.parametrize(
    ("formula", "backend", "anneals", "expected"),
    [
        ("planar*2-scale-hh*3-tril-loc", "jax", False, "path"),
        ("planar*2-scale-hh*3-tril-loc", "jax", True, "total"),
        ("planar*2-scale-hh*3-tril-loc", "numba", False, "total"),
        ("radial-loc", "jax", False, "total"),
        ("scale-nvp-loc", "jax", False, "total"),
    ],
)
def test_the_default_is_the_path_gradient_where_it_costs_little(
    formula, backend, anneals, expected
):
    chain = build_chain(formula, 3)
    assert default_gradient(chain, backend, anneals=anneals) == expected


def test_without_an_inverse_it_is_the_total_gradient(monkeypatch):
    monkeypatch.setattr(pmf.flows.Planar, "has_inverse", False)
    assert default_gradient(build_chain("planar-loc", 3), "jax", anneals=False) == "total"


def test_a_fit_takes_the_default():
    assert_array_equal(fit().hist, fit(gradient="path").hist)


def test_annealed_losses_are_those_of_the_target():
    plain, annealed = fit(), fit(anneal=0.5)
    assert annealed.hist[0] == pytest.approx(plain.hist[0], rel=1e-12)
    assert not np.allclose(annealed.hist[1:], plain.hist[1:], rtol=1e-6)


def test_an_annealed_fit_goes_on_from_a_file_with_the_same_bits(tmp_path):
    def stop(approx, losses, i):
        if i == 13:
            raise KeyboardInterrupt

    arguments = {"anneal": pmf.Anneal(0.6, curve="geometric"), "gradient": "switch"}
    whole = fit(**arguments)
    part = fit(**arguments, callbacks=[stop], checkpoint=tmp_path / "fit.nc")
    assert len(part.hist) == 13
    resumed = pmf.resume(tmp_path / "fit.nc", part.approx.model, progressbar=False)
    assert_identical(everything(resumed), everything(whole))
    assert_array_equal(resumed.hist, whole.hist)


def test_annealing_keeps_both_modes():
    """At once, a narrow flow falls into the mode that it starts in."""
    with pm.Model() as model:
        pm.NormalMixture("x", [0.5, 0.5], mu=[-3.0, 3.0], sigma=[0.5, 0.5])
    shares = []
    for anneal in (None, 0.7):
        start = pmf.Frame(np.array([3.0]), np.array([0.5]))
        inf = pmf.NFVI("spline(bins=16)-scale-loc", model=model, start=start, random_seed=1)
        inf.fit(1_500, obj_n_mc=200, anneal=anneal, random_seed=1, **JAX)
        x = inf.approx.sample(4_000, random_seed=1)["posterior"]["x"].values
        shares.append((x > 0).mean())
    assert shares[0] > 0.99
    assert 0.1 < shares[1] < 0.9


def test_inverse_temperatures():
    linear = pmf.Anneal(0.5).over(20_000).values(0, 20_000)
    t = np.arange(20_000)
    assert_allclose(linear, np.minimum(1, 0.01 + 0.99 * t / 10_000), rtol=1e-12)
    for curve in ("linear", "geometric", "cosine"):
        beta = pmf.Anneal(0.5, 0.1, curve).over(100).values(0, 100)
        assert beta[0] == pytest.approx(0.1)
        assert np.all(np.diff(beta[:51]) > 0)
        assert np.all(beta[50:] == 1)
        assert_array_equal(Ramp(50, 0.1, curve).values(30, 5), beta[30:35])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"anneal": 0}, "share of the steps"),
        ({"anneal": 1.5}, "share of the steps"),
        ({"anneal": True}, "share of the steps"),
        ({"gradient": "stl"}, "one of total, path, switch"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ArgumentError, match=message):
        fit(**kwargs)


@pytest.mark.parametrize(
    "kwargs", [{"share": 0}, {"start": 2}, {"curve": "wave"}, {"share": "half"}]
)
def test_bad_annealing(kwargs):
    with pytest.raises(ArgumentError, match="of Anneal must be"):
        pmf.Anneal(**kwargs)


def test_a_flow_without_an_inverse_has_no_path_gradient(monkeypatch):
    monkeypatch.setattr(pmf.flows.Planar, "has_inverse", False)
    inf = inference(formula="planar")
    with pytest.raises(pmf.FlowError, match="planar"):
        inf.fit(3, gradient="path", **JAX)
