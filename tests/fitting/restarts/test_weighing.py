"""Weights, modes and evidence of several approximations: what is known of Gaussians."""

import numpy as np
import pymc as pm
import pytest
from scipy import integrate, stats

import pymc_flows as pmf
from pymc_flows.fitting.restarts.weighing import Weighing
from pymc_flows.flows.frame import Frame

SHARES = np.array([0.6, 0.3, 0.1])
CENTERS = np.array([-8.0, 0.0, 12.0])
LOG_Z = 3.0


@pytest.fixture(scope="module")
def model():
    with pm.Model() as model:
        pm.Normal("x", 0, 1)
    return model


def part(model, center, scale):
    frame = Frame(np.array([center]), np.array([scale]))
    return pmf.NormalizingFlow("scale-loc", model=model, jitter=0, start=frame).flow


def log_density(points):
    """Three Gaussians of standard deviation 1, with an evidence of 3 nats."""
    parts = stats.norm(CENTERS, 1).logpdf(points) + np.log(SHARES)
    return np.logaddexp.reduce(parts, axis=1) + LOG_Z


def weighed(model, places, n=4_000, density=log_density):
    rngs = [np.random.default_rng(seed) for seed in range(len(places))]
    return Weighing.of([part(model, *place) for place in places], density, n, rngs)


def test_of_parts_apart_the_weights_are_the_shares_of_the_evidence(model):
    found = weighed(model, [(12, 1), (0, 1), (-8, 1)])
    np.testing.assert_allclose(found.mixture_weights(), SHARES[::-1], atol=1e-3)
    assert found.modes() == [[0], [1], [2]]
    masses = found.masses(found.modes())
    np.testing.assert_allclose([m for m, _ in masses], LOG_Z + np.log(SHARES[::-1]), atol=1e-3)
    quality, _ = found.together()
    assert quality.log_evidence == pytest.approx(LOG_Z, abs=1e-6)


def test_the_error_of_an_evidence_is_that_of_repeats(model):
    places = [(-8, 1.5), (0.5, 1.3), (12, 1.4)]
    logs, errors = [], []
    for seed in range(60):
        rngs = [np.random.default_rng((seed, k)) for k in range(3)]
        found = Weighing.of([part(model, *p) for p in places], log_density, 200, rngs)
        log_mass, error = found.masses([[0], [1], [2]])[0]
        logs.append(log_mass)
        errors.append(error)
    assert np.mean(logs) == pytest.approx(LOG_Z + np.log(0.6), abs=4 * np.std(logs) / 60**0.5)
    assert np.mean(errors) == pytest.approx(np.std(logs), rel=0.35)


def test_what_found_the_same_mode_twice_does_not_count_twice(model):
    found = weighed(model, [(-8, 1), (-8, 1.05), (-8, 0.95), (0, 1), (12, 1)])
    weights = found.mixture_weights()
    assert found.modes() == [[0, 1, 2], [3], [4]]
    assert weights[:3].sum() == pytest.approx(0.6, abs=2e-3)
    assert (weights > 0).sum() == 3  # two of the three can be spared
    [mass, *_] = found.masses(found.modes())
    assert mass[0] == pytest.approx(LOG_Z + np.log(0.6), abs=5e-3)


def test_a_part_where_the_posterior_is_not_gets_no_weight(model):
    weights = weighed(model, [(-8, 1), (0, 1), (12, 1), (300, 1)]).mixture_weights()
    assert weights[3] == 0
    np.testing.assert_allclose(weights[:3], SHARES, atol=2e-3)


def test_a_wide_part_links_the_modes_that_it_covers(model):
    found = weighed(model, [(-8, 1), (0, 1), (-4, 6)])
    assert found.modes() == [[0, 1, 2]]


def test_the_overlap_is_the_integral_that_it_estimates(model):
    overlaps = weighed(model, [(0, 1), (1, 1.5)], n=20_000).overlaps()

    def harmonic(x):
        a, b = stats.norm(0, 1).pdf(x), stats.norm(1, 1.5).pdf(x)
        return 2 * a * b / (a + b)

    exact, _ = integrate.quad(harmonic, -10, 12)
    assert overlaps[0, 1] == pytest.approx(exact, abs=0.01)
    np.testing.assert_allclose(np.diag(overlaps), 1)
    np.testing.assert_allclose(overlaps, overlaps.T)


def test_without_any_density_nothing_is_known(model):
    found = weighed(model, [(0, 1), (1, 1)], 100, lambda points: np.full(len(points), -np.inf))
    assert found.masses([[0, 1]])[0][0] == -np.inf
    assert not found.mixture_weights().any()
