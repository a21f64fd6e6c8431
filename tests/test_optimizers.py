"""Step sizes by step, and which optimizers they reach."""

from functools import partial

import numpy as np
import pymc as pm
import pytensor
import pytest
from pytensor.compile.sharedvalue import SharedVariable

from pymc_flows.errors import FlowError
from pymc_flows.optimizers import Schedule, rated


def test_the_cosine_goes_from_the_peak_to_a_hundredth_and_stays_there():
    schedule = Schedule(0.4, decay_steps=5)
    share = np.array([1, 0.5 + np.sqrt(0.125), 0.5, 0.5 - np.sqrt(0.125), 0])
    expected = [*(0.004 + (0.4 - 0.004) * share), 0.004, 0.004]
    np.testing.assert_allclose(schedule.rates(0, 7), expected, rtol=1e-12)
    np.testing.assert_array_equal(schedule.rates(3, 4), schedule.rates(0, 7)[3:])


@pytest.mark.parametrize(("decay_steps", "expected"), [(0, 0.4), (1, 0.4)])
def test_without_steps_to_decay_over_the_rate_is_the_peak(decay_steps, expected):
    np.testing.assert_array_equal(Schedule(0.4, decay_steps).rates(0, 3), [expected] * 3)


def updates_of(optimizer):
    x = pytensor.shared(np.zeros(2), "x")
    return optimizer([x * 2], [x])


def test_the_default_is_adam_with_a_cosine():
    default = rated(None, 300)
    assert default.schedule == Schedule(0.01, decay_steps=300)
    assert default.optimizer.func is pm.adam
    assert default.rate is default.optimizer.keywords["learning_rate"]
    assert default.rate in list(
        pytensor.graph.traversal.ancestors(list(updates_of(default.optimizer).values()))
    )


@pytest.mark.parametrize("given", [0.05, 1, np.float32(0.25), np.array(0.5)[()]])
def test_a_number_in_an_optimizer_of_pymc_becomes_a_variable(given):
    adapted = rated(pm.adam(learning_rate=given, beta1=0.7), 300)
    assert adapted.schedule == Schedule(float(given))
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
