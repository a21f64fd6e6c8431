"""The compiled loop on steps that fail: not finite, or raising."""

import warnings

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest

from pymc_flows.training.loop import MAX_FAILURES, Step, StepError
from steps import (
    assert_identical,
    assert_same,
    by_hand,
    loop_of,
    noise_of,
    param,
    run,
    state_of,
    step_of,
)


def by_first(fails):
    """A loss that is −inf, NaN or finite according to a function of the first base draw."""

    def loss_of(noise, a, b):
        return pt.log1p(pt.sqr(noise + a).sum(axis=-1)).mean() * pt.exp(b) + fails(noise[0, 0])

    return loss_of


def test_a_step_with_a_loss_that_is_not_finite_changes_nothing():
    bad = by_first(lambda x: pt.switch(x > 0, np.inf, 0.0))
    step, same = (step_of(pm.adam(learning_rate=0.05), bad) for _ in range(2))
    noise = noise_of(20)
    good = noise[:, 0, 0] <= 0
    loop = loop_of(step)
    chunks = [run(loop, n) for n in (13, 7)]
    losses = np.concatenate([c.losses for c in chunks])
    np.testing.assert_array_equal(np.concatenate([c.failed for c in chunks]), ~good)
    np.testing.assert_array_equal(np.isnan(losses), ~good)
    expected, state = by_hand(same, noise[good])
    np.testing.assert_allclose(losses[good], expected, rtol=1e-12)
    assert_same(state_of(step), state)
    np.testing.assert_array_equal(loop.failed_noise, noise[~good][-1])


def test_a_step_whose_squared_gradient_overflows_fails():
    """Adam would carry the infinite moment on, and never move again."""
    step = step_of(pm.adam(learning_rate=0.05), lambda noise, a, b: a.sum() * np.float64(1e200) + b)
    before = state_of(step)
    assert run(loop_of(step), 3).failed.all()
    assert_identical(state_of(step), before)


def test_an_update_that_is_not_finite_makes_the_call_fail():
    def overflowing(grads, params):
        a, b = params
        return {a: a - 1.0, b: pt.switch(a[0] < -1.5, np.nan, b)}  # at the third step

    step = step_of(overflowing)
    loop = loop_of(step)
    before = state_of(step)
    with pytest.raises(StepError) as info:
        run(loop, 5)
    assert str(info.value.__cause__) == "the optimizer's update was not finite"
    assert_identical(state_of(step), before)
    losses = run(loop, 3).losses
    assert np.isfinite(losses).all()
    np.testing.assert_array_equal(param(step, "a").get_value(), [-2, -1, 0])
    with pytest.raises(StepError):
        run(loop, 1)


def test_what_was_infinite_before_may_stay_so():
    best = pytensor.shared(np.array(np.inf), "best", shape=())
    step = step_of(pm.sgd(learning_rate=0.01))
    step.updates[best] = best + 0
    assert not run(loop_of(step), 3).failed.any()
    assert best.get_value() == np.inf


@pytest.mark.parametrize("lengths", [[150], [1] * 150, [60, 60], [99, 51]])
def test_the_loop_stops_at_the_hundredth_failure_in_a_row(lengths):
    count = pytensor.shared(np.array(0), "count")

    def loss_of(noise, a, b):  # fails at steps 3 to 122, would succeed again afterwards
        return pt.sqr(a).sum() + b + noise.sum() * 0 + pt.switch(count < 2, 0.0, np.nan)

    step = step_of(pm.sgd(learning_rate=0.01), loss_of)
    step.updates[count] = count + 1
    loop = loop_of(step, max_chunk=max(lengths))
    taken = 0
    for n in lengths:
        chunk = run(loop, n)
        taken += len(chunk.losses)
        if loop.failures >= MAX_FAILURES:
            break
    assert taken == 102
    assert loop.failures == 100
    assert count.get_value() == 2
    np.testing.assert_array_equal(loop.failed_noise, noise_of(102)[-1])
    loop.failures = 0
    count.set_value(0)  # the loop goes on with the noise of step 103
    for _ in range(3):
        run(loop, 1)
    np.testing.assert_array_equal(loop.failed_noise, noise_of(105)[-1])


def test_a_step_can_be_counted_as_failed_without_running():
    step = step_of(pm.adam(learning_rate=0.05))
    a = param(step, "a")
    step = Step(
        step.noise, step.loss, step.grads, step.updates, tracked={"a": a, "g": step.grads["a"]}
    )
    loop = loop_of(step)
    run(loop, 2)
    before = state_of(step)
    chunk = loop.fail()
    assert np.isnan(chunk.losses).all()
    assert chunk.failed.tolist() == [True]
    assert loop.failures == 1
    np.testing.assert_array_equal(chunk.tracked["a"], [a.get_value()])
    np.testing.assert_array_equal(chunk.tracked["g"], [[np.nan] * 3])
    np.testing.assert_array_equal(loop.failed_noise, noise_of(3)[-1])
    assert_identical(state_of(step), before)


class Explode(pytensor.graph.op.Op):
    """The identity, but for values above a limit it raises."""

    __props__ = ("limit",)

    def __init__(self, limit):
        self.limit = limit

    def make_node(self, x):
        return pytensor.graph.basic.Apply(self, [x], [x.type()])

    def perform(self, node, inputs, outputs):
        if inputs[0] > self.limit:
            raise ValueError("too large")
        outputs[0][0] = inputs[0].copy()

    def pullback(self, inputs, outputs, cotangents):
        return cotangents


@pytest.fixture(scope="module")
def exploding():
    """A loop on numba whose step raises when the first base draw exceeds 1."""

    def loss_of(noise, a, b):
        return pt.log1p(pt.sqr(noise + a).sum(axis=-1)).mean() * pt.exp(b) + Explode(1.0)(
            noise[0, 0]
        )

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Numba will use object mode")
        loop = loop_of(step_of(pm.adam(learning_rate=0.05), loss_of), "numba")
        loop.compile()
    return loop


def test_compiled_code_that_raises_changes_nothing(exploding):
    first = noise_of(40)[:, 0, 0] > 1
    n = int(np.flatnonzero(first)[0])
    assert n > 2
    before = state_of(exploding.step)
    with pytest.raises(StepError) as info:
        run(exploding, n + 1)
    assert "too large" in str(info.value.__cause__)
    assert_identical(state_of(exploding.step), before)
    losses = run(exploding, n).losses  # the noise of the steps before
    assert np.isfinite(losses).all()
    assert len(losses) == n


def test_an_error_that_jax_delivers_late_changes_nothing_either(monkeypatch):
    """JAX returns before it has computed; its errors come when the result is looked at."""
    step = step_of(pm.adam(learning_rate=0.05))
    loop, other = loop_of(step), loop_of(step_of(pm.adam(learning_rate=0.05)))
    before = state_of(step)
    loop.compile()

    class Late:
        def __array__(self, *args, **kwargs):
            raise RuntimeError("late")

    function = loop.function
    monkeypatch.setattr(loop, "function", lambda *args: [0, *function(*args)[1:-1], Late()])
    with pytest.raises(StepError, match="late"):
        run(loop, 3)
    assert_identical(state_of(step), before)
    monkeypatch.setattr(loop, "function", function)
    np.testing.assert_array_equal(run(loop, 3).losses, run(other, 3).losses)
