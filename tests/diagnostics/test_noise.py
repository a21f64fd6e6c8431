"""What is noise and what is an error: autocorrelated references, pairs of draws, rounding."""

import math
from dataclasses import replace

import numpy as np
import pymc as pm
import pytensor
import pytest

import pymc_flows as pmf
from pymc_flows.diagnostics import reliability as _reliability
from pymc_flows.diagnostics.quality import quality
from pymc_flows.fitting.ladder import Ladder, Rung
from pymc_flows.flows.frame import Frame
from pymc_flows.importance import weigh


def gaussian(model, mean, sd):
    frame = Frame(np.atleast_1d(mean).astype(float), np.atleast_1d(sd).astype(float))
    return pmf.NormalizingFlow("scale-loc", model=model, jitter=0, start=frame, random_seed=1)


def autocorrelated(rng, n, dim, correlation):
    """A stationary AR(1) series (n, dim) whose values are N(0, 1)."""
    series = rng.normal(size=(n, dim))
    for i in range(1, n):
        series[i] = correlation * series[i - 1] + math.sqrt(1 - correlation**2) * series[i]
    return series


def standard_normal(dim):
    with pm.Model() as model:
        pm.Normal("x", shape=dim)
    return model


def test_an_exact_fit_is_good_whatever_the_autocorrelation_of_the_reference(rng):
    """1,000 draws that are worth 10: their means are off by a third of a standard deviation."""
    approx = gaussian(standard_normal(10), np.zeros(10), np.ones(10))
    worst = []
    for _ in range(4):
        draws = autocorrelated(rng, 1_000, 10, 0.98)
        found = pmf.report(approx, 1_000, reference={"x": draws[None]}, random_seed=1)
        worst.append(max(abs(c.reference_mean) for c in found.coordinates))
        assert found.status == "good"
    assert max(worst) > 0.4


def test_errors_that_the_weights_do_not_see_are_seen_by_a_long_reference(rng):
    """Means off by 0.22 and standard deviations by a quarter, in a place that has no draws."""
    approx = gaussian(standard_normal(18), np.zeros(18), np.ones(18))
    draws = 0.22 + 1.25 * rng.normal(size=(4, 1_000, 18))
    found = pmf.report(approx, 4_000, reference={"x": draws}, random_seed=1)
    assert found.status == "incomplete"
    few = pmf.report(approx, 4_000, reference={"x": draws[:1, :60]}, random_seed=1)
    assert not few._contradicts


def test_a_noisy_coordinate_does_not_hide_another_that_contradicts():
    """An error below its noise by more than the other one's excess is no excess."""
    truth = _reliability.Moments(np.zeros(2), np.ones(2), np.array([25.0, 10_000.0]))
    errors = [np.array([0.0, 0.5]), np.zeros(2)]
    error, noise = _reliability.contradiction(errors, truth, ess=10_000)
    assert error == 0.5
    assert noise == pytest.approx(4 * math.sqrt(2e-4))


def test_noise_of_a_heavy_tailed_standard_deviation(rng):
    """That of the squares of Student's t draws is many times that of normal ones."""
    effective = _reliability.effective_sizes(rng.standard_t(5, size=(4_000, 50)))
    light = _reliability.effective_sizes(rng.normal(size=(4_000, 50)))
    assert np.median(effective) < 0.9 * np.median(light)
    assert np.median(light) == pytest.approx(4_000, rel=0.15)
    assert _reliability.effective_sizes(np.ones((100, 1))) == 100


# --------------------------------------------------------------------------------- pairs


def test_draws_with_their_negatives_are_half_as_many(rng):
    """Of a symmetric density both have the same weight: the error of log Z says so."""
    sd, n, log_z = 1.6, 400, []
    for _ in range(300):
        half = sd * rng.normal(size=n // 2)
        z = np.concatenate([half, -half])
        found, smoothed = weigh(0.5 * z**2 * (1 / sd**2 - 1) + math.log(sd), pairs=True)
        log_z.append(found.log_evidence)
    errors = np.std(log_z)
    assert found.log_evidence_error == pytest.approx(errors, rel=0.2)
    alone, of_half = weigh(0.5 * half**2 * (1 / sd**2 - 1) + math.log(sd))
    assert (found.n_draws, found.khat, found.ess) == pytest.approx(
        (alone.n_draws, alone.khat, alone.ess), rel=1e-6
    )
    np.testing.assert_allclose(smoothed, np.tile(of_half - math.log(2), 2), rtol=1e-6)


def test_pairs_of_which_one_has_no_density(rng):
    z = rng.normal(size=1_000)
    log_weights = np.where(np.concatenate([z, -z]) > 0, 0.1 * np.tile(abs(z), 2), -np.inf)
    found, smoothed = weigh(log_weights, pairs=True)
    assert found.n_draws == 1_000
    assert found.elbo == -math.inf
    assert np.exp(smoothed).sum() == pytest.approx(1)
    assert (smoothed[~np.isfinite(log_weights)] == -np.inf).all()
    assert weigh(np.full(100, -np.inf), pairs=True)[0].ess == 0


# --------------------------------------------------------------------------------- large densities


@pytest.mark.parametrize("level", [-2e6, 2e6])
def test_log_densities_of_millions(level):
    """Only differences matter, down to rounding, for what is said and for what others know."""
    with pm.Model() as model:
        x = pm.Normal("x")
        pm.Potential("level", level + 0 * x)
    exact, narrow = gaussian(model, 0.0, 1.0), gaussian(model, 3.0, 0.2)
    found = pmf.report(exact, 1_000, random_seed=1)
    assert found.status == "good"
    assert found.quality.log_evidence == pytest.approx(level, abs=1e-2)
    other = pmf.report(narrow, 1_000, random_seed=1)
    assert other.status == "unreliable"
    assert f"{level:,.0f}" in str(found) or f"{level:,.3f}"[:6] in str(found)
    rungs = (Rung(exact.formula, found.quality, 0.1, 0), Rung(exact.formula, other.quality, 0.1, 0))
    assert 0.5 < Ladder(rungs, 1).lacking(other.quality) <= 1
    far = replace(other.quality, log_evidence=level + 2_000)
    assert Ladder(rungs, 1).lacking(far) == 0


def test_a_bad_fit_in_single_precision_is_not_taken_for_rounding():
    """Weights that range over 40 nats around a log density of a million."""
    spread = np.random.default_rng(0).normal(size=2_000) * 6
    with pytensor.config.change_flags(floatX="float32"):
        found = quality((1e6 + spread).astype("float32"))
        assert found.khat > 0.7
        assert not found.is_trusted
        exact = quality((1e6 + 0.1 * np.sign(spread)).astype("float32"))
        assert exact.khat == -math.inf
