"""A log density that draws random numbers itself: fits follow it, and nothing weighs by it."""

import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest

import pymc_flows as pmf
from fits import JAX, minibatch_model, normal_mean
from pymc_flows.errors import ModelError
from pymc_flows.model.log_density import LogDensity
from pymc_flows.model.logp import ModelDensity, density_of

N, BATCH = 2_000, 100
DATA = np.random.default_rng(4).normal(2.0, 1.0, N)


def minibatch_in_a_potential():
    """Written by hand: neither an observed variable nor total_size says what it is."""
    with pm.Model() as model:
        mu = pm.Normal("mu", 0, 10)
        rows = pm.Minibatch(DATA, batch_size=BATCH)
        pm.Potential("lik", N / BATCH * pm.logp(pm.Normal.dist(mu, 1), rows).sum())
    return model


def noise_in_a_potential():
    with pm.Model() as model:
        x = pm.Normal("x")
        pm.Potential("noisy", -((x - pm.Normal.dist(0, 0.1)) ** 2))
    return model


def noise_in_a_deterministic():
    with pm.Model() as model:
        x = pm.Normal("x")
        pm.Deterministic("noisy", x + pm.Normal.dist())
    return model


@pytest.mark.parametrize(
    ("build", "is_random"),
    [
        (minibatch_in_a_potential, True),
        (minibatch_model, True),
        (noise_in_a_potential, True),
        (noise_in_a_deterministic, False),
        (normal_mean, False),
    ],
)
def test_a_random_density_is_known_by_its_generators(build, is_random):
    assert density_of(build()).is_random is is_random


def test_a_minibatch_that_is_replaced_by_the_data_is_not_random():
    rows = pm.Minibatch(DATA, batch_size=BATCH)
    with pm.Model() as model:
        mu = pm.Normal("mu", 0, 10)
        pm.Potential("lik", pm.logp(pm.Normal.dist(mu, 1), rows).sum())
    density = density_of(model)
    assert density.is_random
    assert not density.replaced({rows: pt.constant(DATA[:BATCH])}).is_random


def test_the_default_fit_follows_a_minibatch_that_is_written_by_hand():
    model = minibatch_in_a_potential()
    # Far steps: the search begins at one minibatch, nine standard deviations off at times.
    approx = pmf.fit(
        1_500,
        model=model,
        random_seed=1,
        obj_n_mc=8,
        obj_optimizer=pm.adam(learning_rate=0.05),
        schedule="cosine",
        **JAX,
    )
    [rung] = approx.ladder.rungs
    assert rung.quality is None
    assert "–" in str(approx.ladder)
    assert rung.steps == 1_500
    # One minibatch alone puts the mean 0.1 off, typically.
    mean = approx.sample(2_000, random_seed=2).posterior["mu"].mean()
    assert abs(float(mean) - DATA.mean()) < 0.01


@pytest.mark.parametrize("build", [minibatch_in_a_potential, noise_in_a_potential])
def test_draws_of_a_random_density_have_no_weights(build):
    with build():
        approx = pmf.NormalizingFlow("scale-loc", random_seed=1)
        with pytest.raises(ModelError, match="the model's log density is random"):
            approx.sample(5, correct="psis")
    with pytest.raises(ModelError, match="the model's log density is random"):
        pmf.report(approx)


@pytest.mark.parametrize("build", [minibatch_in_a_potential, noise_in_a_potential])
def test_what_is_found_out_about_a_random_density_repeats(build):
    """However its model has seeded the generators, by chance."""
    densities = [ModelDensity(build()) for _ in range(2)]
    point = densities[0].start()[None] + 0.3
    (value, gradient), (again, other) = (LogDensity(d).value_and_grad(point) for d in densities)
    np.testing.assert_array_equal(value, again)
    np.testing.assert_array_equal(gradient, other)
