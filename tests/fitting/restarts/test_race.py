"""A race of restarts: those that are behind end early, whoever computes them."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pymc as pm
import pytest

import pymc_flows as pmf
from fits import JAX, normal_mean
from gaussians import eight, gaussians
from pymc_flows.errors import ArgumentError
from pymc_flows.fitting.restarts.legs import Fits, Leg, fit_leg
from pymc_flows.fitting.restarts.race import behind, looks_of

pytestmark = pytest.mark.jax

STEPS, LOOK = 200, 100
FEW = {"formula": "scale-loc", "obj_n_mc": 8, **JAX}


@pytest.fixture(scope="module")
def model():
    return gaussians(*eight(2))


@pytest.fixture(scope="module")
def found(model):
    with ThreadPoolExecutor(2) as executor:
        given = {"restarts": 8, "race": True, "executor": executor, "random_seed": 3, **FEW}
        return pmf.fit(STEPS, model=model, **given)


def test_the_modes_with_less_mass_end_early(found):
    """Restarts begin at the modes with the most mass; the ELBO of each is the log of its share."""
    runs = found.restarts.runs
    assert [run.ended for run in runs] == [0] * 4 + [LOOK] * 4
    elbos = [run.quality.elbo for run in runs]
    np.testing.assert_allclose(elbos, np.log(np.arange(8, 0, -1) / 36), atol=0.02)
    table = str(found.restarts).splitlines()
    assert table[8].endswith("taken, ended after 100 steps")
    assert table[1].endswith(" taken")


def test_the_mixture_has_those_that_ended(found):
    shares = [mode.share for mode in found.restarts.modes]
    np.testing.assert_allclose(shares, np.arange(8, 0, -1) / 36, atol=0.003)


def test_those_that_arrive_have_the_bits_of_fits_without_a_race(found, model):
    whole = pmf.fit(STEPS, model=model, restarts=8, combine="best", random_seed=3, **FEW)
    pairs = list(zip(found.restarts.runs, whole.restarts.runs, strict=True))
    assert [run.quality == other.quality for run, other in pairs] == [True] * 4 + [False] * 4


def test_a_file_keeps_who_ended(found, model, tmp_path):
    found.save(tmp_path / "fit.nc")
    kept = pmf.load(tmp_path / "fit.nc", model).restarts
    assert [run.ended for run in kept.runs] == [run.ended for run in found.restarts.runs]


@pytest.mark.parametrize(("n", "looks"), [(10, []), (200, [100]), (8_000, [1_000, 2_000, 4_000])])
def test_short_fits_are_not_looked_at(n, looks):
    assert looks_of(n) == looks


def losses(mean, noise, seed, n=400):
    return mean + noise * np.random.default_rng(seed).standard_normal(n)


@pytest.mark.parametrize(
    ("means", "noise", "expected"),
    [
        ([3.0, 1.0, 2.0, 1.1], 0.01, [2, 0]),
        ([1.0, 1.0, 1.0, 1.0], 1.0, []),  # by chance alone none
        ([1.0, 1.3, 1.0, 9.0], 1.0, [3]),  # the others are within noise
        ([1.0, 5.0, 5.0], 0.01, [2]),  # at most half of them
        ([1.0], 1.0, []),
        ([np.nan, 2.0, 1.0], 0.1, [0]),
        ([np.nan, np.nan], 0.1, []),
    ],
)
def test_behind_are_those_of_the_worse_half_that_noise_does_not_explain(means, noise, expected):
    assert behind([losses(mean, noise, k) for k, mean in enumerate(means)]) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "race= compares fits step by step: give a formula"),
        ({"formula": "tril-loc | laplace"}, "race= compares fits step by step"),
        ({"formula": "loc", "stop": True}, "race= cannot be used with stop="),
        ({"formula": "loc", "batched": True}, "race= cannot be used with batched="),
        ({"formula": "loc", "restarts": None}, "race= are for restarts"),
    ],
)
def test_a_race_that_could_not_be_judged_is_refused(given, message):
    with pytest.raises(ArgumentError, match=message):
        pmf.fit(5, model=normal_mean(), **{"restarts": 2, "race": True, **given})


def test_a_leg_keeps_what_takes_the_noise_of_batches_out():
    y = np.random.default_rng(1).normal(size=400)
    with pm.Model() as model:
        x = pm.Normal("x", 0, 1)
        pm.Normal("y", x, 1, observed=pm.Minibatch(y, batch_size=20), total_size=len(y))
    arguments = {"obj_n_mc": 4, "score": True, **JAX}
    fits = Fits(6, model, pmf.Formula("scale-loc"), arguments)
    first = fit_leg(fits, Leg(1, None, None, 3)).content
    second = fit_leg(fits, Leg(1, None, first, 6)).content
    assert first.record["fit"]["anchor"] is not None
    assert second.record["fit"]["anchor"] == first.record["fit"]["anchor"]
    assert len(second.arrays["hist"]) == 6
