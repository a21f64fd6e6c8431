"""Importance weights of an approximation, against what is known exactly."""

import math
import tracemalloc

import numpy as np
import pymc as pm
import pytest
from scipy import stats

import pymc_flows as pmf
from pymc_flows import report
from pymc_flows.approximation import draws as _draws
from pymc_flows.diagnostics.quality import Quality, measure, quality
from pymc_flows.flows import evaluate
from pymc_flows.flows.frame import Frame
from pymc_flows.model.log_density import MANY_ROWS, ROWS, LogDensity
from pymc_flows.model.logp import ModelDensity


def gaussian_weights(rng, q_sd, n=20_000):
    """log p/q of draws of N(0, q_sd²) for p = e³ N(0, 1)."""
    x = q_sd * rng.standard_normal(n)
    return 3 + stats.norm.logpdf(x) - stats.norm.logpdf(x, scale=q_sd)


def test_the_elbo_and_the_evidence_of_a_wider_gaussian(rng):
    found = quality(gaussian_weights(rng, 1.5))
    kl = 0.5 * (1.5**2 - 1) - math.log(1.5)
    assert abs(found.elbo - (3 - kl)) < 4 * found.elbo_error
    assert abs(found.log_evidence - 3) < 4 * found.log_evidence_error
    assert found.khat < 0.2
    second_moment = 1.5**2 / math.sqrt(2 * 1.5**2 - 1)  # ∫ p²/q
    np.testing.assert_allclose(found.ess, found.n_draws / second_moment, rtol=0.05)


def test_a_gaussian_that_is_too_narrow_has_a_heavy_tail_of_weights(rng):
    """k is 1 − q_sd²: the tail of the weights falls like a power with that shape."""
    khat = quality(gaussian_weights(rng, 0.5)).khat
    assert 0.55 < khat < 0.85
    assert quality(gaussian_weights(rng, 0.9)).khat < 0.3


def test_equal_weights_are_perfect():
    found = quality(np.full(1000, 2.5) + 1e-15 * np.arange(1000))
    assert found.khat == -math.inf
    assert found.ess == pytest.approx(1000, rel=1e-12)
    assert found.elbo == found.log_evidence == pytest.approx(2.5)
    # The value is off by rounding, so its error is not zero.
    assert abs(found.log_evidence - 2.5) < found.log_evidence_error < 1e-8
    assert found.elbo_error == pytest.approx(found.log_evidence_error, rel=1e-9)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_none_are_not_judged_good(bad, rng):
    found = quality(np.append(rng.normal(size=500), bad))
    assert found.khat == math.inf
    assert found.elbo == -math.inf
    assert found.ess == 0


def test_draws_without_density_lower_the_evidence_but_end_the_elbo(rng):
    """Half of q's draws lie where p is zero: Z = 1 needs weights of 2 on the others."""
    weights = np.where(np.arange(10_000) % 2, -np.inf, math.log(2))
    found = quality(weights + 1e-3 * rng.standard_normal(10_000))
    assert found.elbo == -math.inf
    np.testing.assert_allclose(found.log_evidence, 0, atol=0.01)
    np.testing.assert_allclose(found.ess, 5_000, rtol=0.01)


@pytest.mark.parametrize(("n", "expected"), [(100, 0.5), (1000, 2 / 3), (10**6, 0.7)])
def test_the_threshold_grows_with_the_number_of_draws(n, expected):
    found = quality(np.random.default_rng(1).normal(size=n))
    assert found.threshold == pytest.approx(expected)


def test_measuring_an_approximation():
    with pm.Model() as model:
        x = pm.Normal("x", 2, 0.5)
        pm.Potential("log_z", 1.5 + 0 * x)
    exact = pmf.NormalizingFlow(
        "scale-loc", model=model, jitter=0, start=Frame(np.array([2.0]), np.array([0.5]))
    )
    found = measure(exact, 1_000, random_seed=1)
    assert found.khat == -math.inf
    assert found.log_evidence == pytest.approx(1.5, abs=1e-8)


def test_many_draws_are_not_held_at_once(monkeypatch):
    """Neither draws nor what a layer computes of them; the same numbers in one part."""
    with pm.Model() as model:
        pm.Normal("x", shape=50)
    approx = pmf.NormalizingFlow("planar*2-scale-loc", model=model, random_seed=1)
    measure(approx, 100)  # what is made once
    report(approx, 100)
    n = 40_000
    for judge in (measure, report):
        tracemalloc.start()
        found = judge(approx, n, random_seed=1)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        with monkeypatch.context() as patch:
            patch.setattr(_draws, "PART_BYTES", 2**20)
            patch.setattr(evaluate, "ROWS", 500)
            tracemalloc.start()
            in_parts = judge(approx, n, random_seed=1)
            _, small = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert small < 12e6 < 8 * 50 * n < peak
        whole, parts = (x if isinstance(x, Quality) else x.quality for x in (found, in_parts))
        assert parts.log_evidence == pytest.approx(whole.log_evidence, abs=1e-12)


@pytest.mark.parametrize("n", [1, 2, ROWS, ROWS + 3, MANY_ROWS + 5])
def test_any_number_of_points(n, rng):
    with pm.Model() as model:
        pm.Normal("x", 1, 2, shape=3)
    density = LogDensity(ModelDensity(model))
    points = rng.normal(size=(n, 3))
    value, gradient = density.value_and_grad(points)
    # PyMC's own constant of the normal density is off by 2e-9.
    np.testing.assert_allclose(value, stats.norm.logpdf(points, 1, 2).sum(axis=1), rtol=1e-8)
    np.testing.assert_allclose(gradient, (1 - points) / 4, rtol=1e-12)
    np.testing.assert_allclose(density.value(points), value, rtol=1e-12)


def test_weights_that_are_nearly_equal_are_trusted_whatever_k_hat_says(rng):
    """A share of 0.2 % of the draws has a Pareto tail; it moves nothing by 0.02 nats."""
    log_weights = 0.05 * rng.standard_normal(4_000)
    log_weights[:80] = np.log1p(0.05 * rng.pareto(0.9, 80).clip(max=60)) + 0.12
    found = quality(log_weights)
    assert found.khat > found.threshold
    assert found.ess > 0.9 * found.n_draws
    assert found.is_trusted


def test_unequal_weights_are_trusted_by_k_hat_alone(rng):
    found = quality(gaussian_weights(rng, 3.0))
    assert not found.is_even
    assert found.is_trusted == (round(found.khat, 2) <= round(found.threshold, 2))
    assert not quality(np.zeros(10) + 1e-3 * np.arange(10)).is_trusted  # too few to say
