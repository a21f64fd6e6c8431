"""The rule that ends a fit."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import pymc_flows as pmf
from fits import JAX, assert_identical, everything, inference
from pymc_flows.errors import ArgumentError

RULE = pmf.Plateau(tolerance=0.05, window=160, decay=60)


def steps_until(rule, losses):
    """How many of the losses are seen before the rule stops the fit; None if it does not."""
    for i in range(rule.every, len(losses) + 1, rule.every):
        if rule.has_settled(losses[:i]):
            return i
    return None


def test_the_bound_is_that_of_a_regression_line(rng):
    rule = pmf.Plateau(window=1_600)
    losses = 3 - 0.7 * np.arange(1_600) / 1_600
    assert rule.bound(losses) == pytest.approx(0.7, rel=1e-10)
    noisy = [rule.bound(losses + rng.standard_normal(1_600)) for _ in range(2_000)]
    assert np.mean(np.array(noisy) >= 0.7) == pytest.approx(0.95, abs=0.02)


def test_a_falling_loss_is_rarely_taken_for_settled(rng):
    """Ten times the tolerance is still to be gained when the fit may end."""
    rule = pmf.Plateau(tolerance=0.02, window=2_000)
    i = np.arange(20_000)
    early = 0
    for noise in (0.02, 0.1, 1.0):
        for _ in range(60):
            gain = 2 * np.exp(-i / 5_000)
            stop = steps_until(rule, gain + noise * rng.standard_normal(len(i)))
            early += stop is not None and gain[stop - 1] > 0.2
    assert early <= 2


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.05])
def test_a_settled_loss_ends_the_fit(noise, rng):
    losses = 5 + noise * rng.standard_normal(10_000)
    assert steps_until(pmf.Plateau(), losses) <= 4_000


def test_failed_steps_do_not_count(rng):
    losses = 5 + 0.02 * rng.standard_normal(2_000)
    losses[::3] = np.nan
    assert pmf.Plateau().has_settled(losses)
    assert not pmf.Plateau().has_settled(np.full(2_000, np.nan))


# ------------------------------------------------------------------------- in a fit


def fit(n=2_000, **kwargs):
    inf = inference(formula="scale-loc")
    inf.fit(n, random_seed=5, **{"stop": RULE, **JAX, **kwargs})
    return inf


@pytest.fixture(scope="module")
def stopped():
    return fit()


def test_a_fit_ends_after_its_step_size_has_decayed(stopped):
    n = len(stopped.hist)
    assert n < 2_000
    first = stopped.state.schedule.first
    assert n == first + RULE.decay
    assert first % RULE.every == 0
    rates = stopped.state.schedule.rates(0, n)
    assert_array_equal(rates[: first + 1], 0.01)
    assert rates[-1] == pytest.approx(0.0001)
    assert stopped.hist[-100:].mean() < stopped.hist[:100].mean()


def test_without_a_plateau_the_step_size_decays_at_the_end():
    inf = fit(300)
    assert len(inf.hist) == 300
    assert inf.state.schedule.first == 240


@pytest.mark.parametrize("at", [40, "end"])
def test_a_fit_with_a_rule_goes_on_from_a_file_with_the_same_bits(at, stopped, tmp_path):
    at = len(stopped.hist) - 20 if at == "end" else at

    def interrupt(approx, losses, i):
        if i == at:
            raise KeyboardInterrupt

    part = fit(callbacks=[interrupt], checkpoint=tmp_path / "fit.nc")
    assert len(part.hist) == at
    resumed = pmf.resume(tmp_path / "fit.nc", part.approx.model, progressbar=False)
    assert_array_equal(resumed.hist, stopped.hist)
    assert_identical(everything(resumed), everything(stopped))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"stop": 3}, "True, False or a Plateau"),
        ({"stop": True, "schedule": "cosine"}, "give no schedule"),
        ({"stop": True, "score": False}, "needs the losses"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ArgumentError, match=message):
        fit(**kwargs)


@pytest.mark.parametrize("kwargs", [{"tolerance": 0}, {"window": 100}, {"decay": 0}])
def test_bad_rules(kwargs):
    with pytest.raises(ArgumentError, match="of Plateau must be"):
        pmf.Plateau(**kwargs)
