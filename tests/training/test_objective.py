"""The loss and its gradients against closed forms of Gaussian models."""

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from numpy.testing import assert_allclose
from pymc.variational.operators import KL
from pytensor.graph.replace import graph_replace
from scipy import stats

import flow_cases
import pymc_flows as pmf
from pymc_flows.backends.modes import NUMPY
from pymc_flows.flows.state import base_log_prob
from pymc_flows.model.examine import DrawPlan
from pymc_flows.training.objectives.likelihood import loss_and_lost
from pymc_flows.training.objectives.loss import (
    Estimator,
    loss_and_gradients,
    loss_graph,
    mean_of_finite,
)

MEAN = np.array([1.0, -2.0, 0.5])
COV = np.array([[2.0, 0.6, 0.0], [0.6, 1.0, -0.3], [0.0, -0.3, 0.5]])
PRECISION = np.linalg.inv(COV)
Y = np.array([0.3, 1.2, -0.4, 2.0])
PLANS = [DrawPlan(6), DrawPlan(2), DrawPlan(None)]
plans = pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"micro-batch {plan.micro_batch}")


def exact_noise(dim):
    """Base draws (2 dim, dim) whose mean is 0 and whose covariance is I, to the last digit.

    For a Gaussian on a Gaussian the loss is quadratic in the noise, so that its average over these
    is the expectation.
    """
    return np.sqrt(dim) * np.concatenate([np.eye(dim), -np.eye(dim)])


def gaussian():
    with pm.Model() as model:
        pm.MvNormal("x", MEAN, COV)
    return model


def walled():
    """`gaussian`, but no density beyond a wall."""
    model = gaussian()
    with model:
        pm.Potential("wall", pt.switch(model["x"][0] < 5, 0.0, -np.inf))
    return model


def regression(sd=0.7):
    """x ~ N(0, 2²), y ~ N(x, sd²), each sd a variable that can be replaced or optimised."""
    sd = pytensor.shared(np.asarray(sd), name="sd")
    with pm.Model() as model:
        x = pm.Normal("x", 0, np.float64(2), shape=3)
        pm.Normal("y", x[0], sd, observed=Y)
    return model, sd


def evaluate(approx, noise, plan, *, loop="unroll", beta=1.0, extra=(), replacements=None):
    """Loss and gradients from `loss_graph`, then from `loss_and_gradients`."""
    z0 = pt.constant(noise)
    problem = approx.problem(beta)
    kwargs = {"loop": loop, "replacements": replacements}
    loss = loss_graph(problem, z0, plan, **kwargs)
    wrt = [*problem.q.params, *extra]
    by_loss = pytensor.grad(loss, wrt, disconnected_inputs="ignore")
    other, by_both, _ = loss_and_gradients(problem, z0, plan, extra=extra, **kwargs)
    values = flow_cases.evaluate(loss, *by_loss, other, *by_both)
    return values[: len(wrt) + 1], values[len(wrt) + 1 :]


def moved(formula, model, rng, **kwargs):
    approx = pmf.NormalizingFlow(formula, model=model, **kwargs)
    for value in approx.params:
        value.set_value(rng.standard_normal(value.type.shape))
    return approx


def scale_and_mean(approx):
    rho, loc = (p.get_value()[0] for p in approx.params)
    return np.log1p(np.exp(rho)), loc, 1 / (1 + np.exp(-rho))


def test_the_base_is_a_standard_normal(rng):
    z0 = rng.standard_normal((2, 5, 3))
    value = base_log_prob(pt.constant(z0)).eval(mode=NUMPY)
    assert_allclose(value, stats.norm.logpdf(z0).sum(axis=-1), rtol=1e-13)


@plans
@pytest.mark.parametrize("loop", ["unroll", "scan"])
def test_the_loss_of_a_gaussian_on_a_gaussian_is_the_divergence(rng, plan, loop):
    approx = moved("scale-loc", gaussian(), rng)
    sigma, mean, slope = scale_and_mean(approx)
    off = mean - MEAN
    divergence = 0.5 * (
        np.diag(PRECISION) @ sigma**2
        + off @ PRECISION @ off
        - 3
        + np.linalg.slogdet(COV)[1]
        - 2 * np.log(sigma).sum()
    )
    by_rho = (np.diag(PRECISION) * sigma - 1 / sigma) * slope
    by_loc = PRECISION @ off
    for loss, *grads in evaluate(approx, exact_noise(3), plan, loop=loop):
        assert_allclose(loss, divergence, rtol=1e-11)
        assert_allclose(grads, [[by_rho], [by_loc]], rtol=1e-10, atol=1e-12)


@plans
@pytest.mark.parametrize("beta", [1.0, 0.25])
def test_beta_weighs_the_divergence_from_the_prior(rng, plan, beta):
    model, sd = regression()
    approx = moved("scale-loc", model, rng)
    sigma, mean, slope = scale_and_mean(approx)
    n, s = len(Y), 0.7
    log_q = -np.log(sigma).sum() - 1.5 * (1 + np.log(2 * np.pi))
    prior = -(sigma**2 + mean**2).sum() / 8 - 3 * np.log(2 * np.sqrt(2 * np.pi))
    square = ((Y - mean[0]) ** 2).sum() + n * sigma[0] ** 2
    likelihood = -square / (2 * s**2) - n * np.log(s * np.sqrt(2 * np.pi))
    first = np.array([1, 0, 0])
    by_sigma = beta * (sigma / 4 - 1 / sigma) + first * n * sigma / s**2
    by_loc = beta * mean / 4 - first * (Y - mean[0]).sum() / s**2
    by_sd = n / s - square / s**3
    for loss, by_rho, *grads, extra in evaluate(
        approx, exact_noise(3), plan, beta=beta, extra=[sd]
    ):
        assert_allclose(loss, beta * (log_q - prior) - likelihood, rtol=1e-11)
        assert_allclose(by_rho, [by_sigma * slope], rtol=1e-10, atol=1e-12)
        assert_allclose(grads, [[by_loc]], rtol=1e-10, atol=1e-12)
        assert_allclose(extra, by_sd, rtol=1e-10)


def test_one_draw(rng):
    approx = moved("scale-loc", gaussian(), rng)
    sigma, mean, slope = scale_and_mean(approx)
    z0 = rng.standard_normal(3)
    z = mean + sigma * z0
    pull = PRECISION @ (z - MEAN)
    expected = stats.norm(mean, sigma).logpdf(z).sum() - stats.multivariate_normal(
        MEAN, COV
    ).logpdf(z)
    for loss, by_rho, by_loc in evaluate(approx, z0[None], DrawPlan(None)):
        assert_allclose(loss, expected, rtol=1e-11)
        assert_allclose(by_loc, [pull], rtol=1e-10)
        assert_allclose(by_rho, [(pull * z0 - 1 / sigma) * slope], rtol=1e-10)


def test_when_q_is_the_target_every_draw_has_the_loss_minus_log_z(rng):
    """Also a flow without a log-determinant of its own has the right gradient."""
    log_z = -1.3
    with pm.Model() as model:
        x = pm.Normal("x", 0, 1, shape=3)
        pm.Potential("constant", pt.constant(log_z) + 0 * x.sum())
    approx = moved("hh*2", model, rng)
    for z0 in rng.standard_normal((2, 1, 3)):
        for loss, by_v in evaluate(approx, z0, DrawPlan(None)):
            assert loss == pytest.approx(-log_z, rel=1e-13)
            assert_allclose(by_v, np.zeros((2, 3)), atol=1e-13)


@plans
def test_a_flow_without_log_determinant(rng, plan):
    """z = H z0 + m: the entropy is constant, the divergence is not."""
    approx = moved("hh-loc", gaussian(), rng)
    v, mean = (p.get_value()[0] for p in approx.params)
    noise = exact_noise(3)

    def divergence(v):
        reflection = np.eye(3) - 2 * np.outer(v, v) / (v @ v)
        off = mean - MEAN
        trace = np.trace(reflection @ PRECISION @ reflection)
        return 0.5 * (trace + off @ PRECISION @ off - 3 + np.linalg.slogdet(COV)[1])

    step = 1e-6 * np.eye(3)
    by_v = [(divergence(v + h) - divergence(v - h)) / 2e-6 for h in step]
    for loss, *grads in evaluate(approx, noise, plan):
        assert_allclose(loss, divergence(v), rtol=1e-11)
        assert_allclose(grads[0], [by_v], rtol=1e-6, atol=1e-8)
        assert_allclose(grads[1], [PRECISION @ (mean - MEAN)], rtol=1e-10)


@plans
def test_replacements_reach_the_log_density(rng, plan):
    model, sd = regression()
    approx = moved("scale-loc", model, rng)
    wide, _ = regression(sd=1.4)
    other = moved("scale-loc", wide, rng)
    for p, q in zip(approx.params, other.params, strict=True):
        q.set_value(p.get_value())
    replaced = evaluate(approx, exact_noise(3), plan, replacements={sd: sd * 2})
    for values, expected in zip(replaced, evaluate(other, exact_noise(3), plan), strict=True):
        for x, y in zip(values, expected, strict=True):
            assert_allclose(x, y, rtol=1e-12)


@plans
def test_a_minibatch_is_scaled_and_the_same_for_all_draws(rng, plan):
    """With the cost scaled to the minibatch everything is divided by total over batch size."""
    data = np.full(40, 0.8)
    with pm.Model() as model:
        x = pm.Normal("x", 0, np.float64(2), shape=3)
        pm.Normal("y", x[0], 1, observed=pm.Minibatch(data, batch_size=10), total_size=40)
    approx = moved("scale-loc", model, rng)
    sigma, mean, _ = scale_and_mean(approx)
    log_q = -np.log(sigma).sum() - 1.5 * (1 + np.log(2 * np.pi))
    prior = -(sigma**2 + mean**2).sum() / 8 - 3 * np.log(2 * np.sqrt(2 * np.pi))
    likelihood = -20 * ((0.8 - mean[0]) ** 2 + sigma[0] ** 2) - 20 * np.log(2 * np.pi)
    by_loc = mean / 4 - np.array([40 * (0.8 - mean[0]), 0, 0])
    for scaled, c in [(True, 4), (False, 1)]:
        approx.scale_cost_to_minibatch = scaled
        for loss, _, found in evaluate(approx, exact_noise(3), plan):
            assert_allclose(loss, (log_q - prior - likelihood) / c, rtol=1e-11)
            assert_allclose(found, [by_loc / c], rtol=1e-10, atol=1e-12)


@plans
def test_the_loss_is_the_objective_of_pymc(rng, plan):
    """PyMC's own operator on the approximation, value and gradients, with the same noise."""
    with pm.Model() as model:
        x = pm.Normal("x", 0, np.float64(2), shape=3)
        sd = pm.HalfNormal("sd")
        batch = pm.Minibatch(np.full(40, 0.8), batch_size=10)
        pm.Normal("y", x[0], sd, observed=batch, total_size=40)
    approx = moved("planar-hh*2-loc", model, rng)
    noise = rng.standard_normal((6, 4))
    loss = KL(approx, 0.25).apply(None)
    grads = pytensor.grad(loss, approx.params)
    given = {approx.groups[0].symbolic_initial: pt.constant(noise)}
    graphs = graph_replace([loss, *grads], given)
    expected = flow_cases.evaluate(*graphs)
    for values in evaluate(approx, noise, plan, beta=0.25):
        for x, y in zip(values, expected, strict=True):
            assert_allclose(x, y, rtol=1e-9, atol=1e-11)


def test_the_constant_start_shifts_the_draws(rng):
    approx = moved("scale", gaussian(), rng, start={"x": [3.0, 2.0, 1.0]})
    sigma = np.log1p(np.exp(approx.params[0].get_value()[0]))
    off = np.array([3.0, 2.0, 1.0]) - MEAN
    expected = 0.5 * (
        np.diag(PRECISION) @ sigma**2
        + off @ PRECISION @ off
        - 3
        + np.linalg.slogdet(COV)[1]
        - 2 * np.log(sigma).sum()
    )
    for loss, _ in evaluate(approx, exact_noise(3), DrawPlan(6)):
        assert_allclose(loss, expected, rtol=1e-11)


def test_parameters_are_listed_block_by_block():
    approx = pmf.NormalizingFlow("planar-loc-planar*2", model=gaussian())
    names = [p.name for p in approx.problem().q.params]
    assert names == ["b", "u", "w", "loc", "b", "u", "w"]
    assert approx.problem().q.params == approx.params


# ----------------------------------------------------------------------- draws without a density


@pytest.mark.parametrize("use_path", [False, True])
@plans
def test_draws_that_are_not_finite_are_left_out_of_loss_and_gradients(plan, use_path):
    noise = np.random.default_rng(3).standard_normal((6, 3))
    noise[[1, 4], 0] = 5.0
    estimator = Estimator(path=pt.constant(1)) if use_path else None
    found = []
    for model, rows in ((walled(), noise), (gaussian(), noise[[0, 2, 3, 5]])):
        approx = pmf.NormalizingFlow("scale-loc", model=model, jitter=0)
        plan_ = plan if len(rows) == 6 else DrawPlan(4)
        loss = loss_and_gradients(
            approx.problem(), pt.constant(rows), plan_, loop="unroll", estimator=estimator
        )
        found.append(pytensor.function([], [loss.lost, loss.value, *loss.grads], mode=NUMPY)())
    (lost, *walls), (none, *expected) = found
    assert (int(lost), int(none)) == (2, 0)
    for a, b in zip(walls, expected, strict=True):
        assert_allclose(a, b, rtol=1e-12)


@plans
def test_draws_that_are_not_finite_are_left_out_of_gradients_of_the_model(plan):
    """Each stands for itself in the mean, but for the first, which stands for those left out."""
    noise = np.random.default_rng(3).standard_normal((6, 3))
    noise[[1, 4], 0] = 5.0
    found = []
    for rows in (noise, noise[[0, 0, 0, 2, 3, 5]]):
        model, sd = regression()
        with model:
            pm.Potential("wall", pt.switch(model["x"][0] < 4, 0.0, -np.inf))
        approx = pmf.NormalizingFlow("scale-loc", model=model, jitter=0)
        loss = loss_and_gradients(
            approx.problem(), pt.constant(rows), plan, loop="unroll", extra=[sd]
        )
        found.append(pytensor.function([], loss.grads[-1], mode=NUMPY)())
    assert np.isfinite(found[0])
    assert_allclose(*found, rtol=1e-12)


def test_a_mean_over_fewer_than_half_of_the_draws_is_no_number():
    values = pt.constant([1.0, np.nan, 3.0, np.inf])
    for bad, expected in ((0, 2.0), (1, np.nan)):
        finite = pt.isfinite(values) & pt.constant(np.arange(4) >= bad)
        mean, lost = mean_of_finite(values, finite)
        assert_allclose(mean.eval(mode=NUMPY), expected)
        assert int(lost.eval(mode=NUMPY)) == 2 + bad


def test_a_draw_that_overflows_is_left_out_of_a_likelihood():
    approx = pmf.NormalizingFlow("scale-loc", model=gaussian(), jitter=0)
    points = np.random.default_rng(1).standard_normal((3, 3))
    found = []
    for rows in (np.vstack([points, np.full((1, 3), 1e200)]), points):
        loss, lost = loss_and_lost(approx.flow, pt.constant(rows), "unroll")
        grads = pytensor.grad(loss, list(approx.params))
        with np.errstate(over="ignore"):
            found.append(pytensor.function([], [lost, loss, *grads], mode=NUMPY)())
    (lost, *overflowing), (none, *expected) = found
    assert (int(lost), int(none)) == (1, 0)
    for a, b in zip(overflowing, expected, strict=True):
        assert_allclose(a, b, rtol=1e-12)
