"""Step sizes by step, and which optimizers they reach."""

from functools import partial

import numpy as np
import pymc as pm
import pytensor
import pytest
from pytensor.compile.sharedvalue import SharedVariable

from pymc_flows.errors import ArgumentError, FlowError
from pymc_flows.training.optimizers import ELEMENTWISE, Schedule, rated


def test_the_cosine_goes_from_the_peak_to_a_hundredth_and_stays_there():
    schedule = Schedule(0.4, 5, "cosine")
    share = np.array([1, 0.5 + np.sqrt(0.125), 0.5, 0.5 - np.sqrt(0.125), 0])
    expected = [*(0.004 + (0.4 - 0.004) * share), 0.004, 0.004]
    np.testing.assert_allclose(schedule.rates(0, 7), expected, rtol=1e-12)
    np.testing.assert_array_equal(schedule.rates(3, 4), schedule.rates(0, 7)[3:])


@pytest.mark.parametrize("schedule", [Schedule(0.4), Schedule(0.4, 0, "cosine"), Schedule(0.4, 1)])
def test_without_steps_to_decay_over_the_rate_is_the_peak(schedule):
    np.testing.assert_array_equal(schedule.rates(0, 3), [0.4] * 3)


def test_halving_halves_after_a_half_and_three_quarters():
    rates = Schedule(0.4, 101, "halving").rates(0, 120)
    np.testing.assert_array_equal(rates, [0.4] * 50 + [0.2] * 25 + [0.1] * 45)


def test_one_cycle_rises_to_the_peak_and_decays():
    rates = Schedule(0.4, 101, "one-cycle").rates(0, 101)
    assert rates[0] == pytest.approx(0.4 * 0.04)
    assert rates.argmax() == 30
    assert rates[30] == pytest.approx(0.4)
    assert np.all(np.diff(rates[:31]) > 0)
    assert np.all(np.diff(rates[30:]) < 0)
    assert rates[-1] == pytest.approx(0.004)


def test_a_schedule_of_another_optimizer():
    assert rated(pm.sgd(learning_rate=0.5), 70, "cosine").schedule == Schedule(0.5, 70, "cosine")
    assert rated(None, 70, "constant").schedule == Schedule(0.01, 70, "constant")


@pytest.mark.parametrize(
    ("optimizer", "curve", "message"),
    [(None, "linear", "one of constant, cosine"), (pm.adam, "cosine", "a step size of its own")],
)
def test_schedules_that_cannot_be(optimizer, curve, message):
    with pytest.raises(FlowError, match=message):
        rated(optimizer, 70, curve)


@pytest.mark.parametrize("rate", [0, 0.0, -0.1, np.float32(-1), np.nan, np.inf, True])
@pytest.mark.parametrize("optimizer", ELEMENTWISE)
def test_steps_that_are_not_positive_are_refused(optimizer, rate):
    with pytest.raises(ArgumentError, match="learning_rate of obj_optimizer must be a positive"):
        rated(optimizer(learning_rate=rate), 70)


def updates_of(optimizer):
    x = pytensor.shared(np.zeros(2), "x")
    return optimizer([x * 2], [x])


def test_the_default_is_adam_with_a_cosine():
    default = rated(None, 300)
    assert default.schedule == Schedule(0.01, 300, "cosine")
    assert default.optimizer.func is pm.adam
    assert default.rate is default.optimizer.keywords["learning_rate"]
    assert default.rate in list(
        pytensor.graph.traversal.ancestors(list(updates_of(default.optimizer).values()))
    )


@pytest.mark.parametrize("given", [0.05, 1, np.float32(0.25), np.array(0.5)[()]])
def test_a_number_in_an_optimizer_of_pymc_becomes_a_variable(given):
    adapted = rated(pm.adam(learning_rate=given, beta1=0.7), 300)
    assert adapted.schedule == Schedule(float(given), 300)
    assert isinstance(adapted.rate, SharedVariable)
    assert adapted.rate.get_value() == given
    assert adapted.rate.dtype == pytensor.config.floatX
    assert adapted.optimizer.keywords["beta1"] == 0.7


def own(grads, params, learning_rate=0.1):
    if learning_rate > 0.01:  # nothing that a variable could do
        return {p: p - learning_rate * g for p, g in zip(params, grads, strict=True)}
    return {}


@pytest.mark.parametrize(
    "optimizer",
    [
        pm.adam,
        own,
        partial(own, learning_rate=0.2),
        pm.sgd(learning_rate=pytensor.shared(0.1)),
    ],
    ids=["function", "own", "own partial", "symbolic"],
)
def test_any_other_callable_is_used_as_it_is(optimizer):
    kept = rated(optimizer, 300)
    assert kept.optimizer is optimizer
    assert kept.rate is None
    assert len(updates_of(kept.optimizer)) > 0


@pytest.mark.parametrize("optimizer", [0.01, "adam", {}])
def test_what_is_no_optimizer(optimizer):
    with pytest.raises(FlowError, match=r"must be callable, such as pm\.adam"):
        rated(optimizer, 300)
