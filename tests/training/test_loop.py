"""The compiled loop on steps small enough to be followed by hand, one at a time, from Python."""

from collections import OrderedDict

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest

from behind import function_behind
from fits import STILL
from pymc_flows.backends import functions
from pymc_flows.backends.modes import NUMPY
from pymc_flows.training.loop import Step
from pymc_flows.training.loop import compiled as training
from steps import (
    DIM,
    DRAWS,
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

# ------------------------------------------------------------------------- any optimizer, exactly


def signed(grads, params, learning_rate=0.02):
    """A user's own optimizer, with a state of its own: a sign step that halves every third time."""
    count = pytensor.shared(np.array(0), "count")
    rate = learning_rate * pt.switch(pt.eq(count % 3, 2), 0.5, 1.0)
    updates = {p: p - rate * pt.sign(g) for p, g in zip(params, grads, strict=True)}
    return {**updates, count: count + 1}


def constrained(grads, params):
    """A norm constraint inside an optimizer: the new value of a is shortened."""
    updates = pm.sgd(grads, params, learning_rate=0.3)
    a, _ = params
    updates[a] = pm.norm_constraint(updates[a], max_norm=1.5, norm_axes=(0,))
    return updates


OPTIMIZERS = {
    "sgd": pm.sgd(learning_rate=0.05),
    "momentum": pm.momentum(learning_rate=0.05),
    "nesterov_momentum": pm.nesterov_momentum(learning_rate=0.05),
    "adagrad": pm.adagrad(learning_rate=0.05),
    "adagrad_window": pm.adagrad_window(learning_rate=0.05, n_win=3),
    "rmsprop": pm.rmsprop(learning_rate=0.05),
    "adadelta": pm.adadelta(learning_rate=0.5),
    "adam": pm.adam(learning_rate=0.05),
    "adamax": pm.adamax(learning_rate=0.05),
    "own": signed,
    "constrained": constrained,
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_loop_does_what_its_steps_do_one_by_one(name):
    step, same = step_of(OPTIMIZERS[name]), step_of(OPTIMIZERS[name])
    loop = loop_of(step)
    losses = np.concatenate([run(loop, n).losses for n in (1, 7, 4)])
    expected, state = by_hand(same, noise_of(12))
    np.testing.assert_allclose(losses, expected, rtol=1e-12)
    assert_same(state_of(step), state)
    assert np.abs(param(step, "a").get_value() - [1, 2, 3]).min() > 1e-3
    assert abs(param(step, "b").get_value() - 0.5) > 1e-3


def test_the_loop_does_the_same_on_numba():
    step, same = step_of(pm.adam(learning_rate=0.05)), step_of(pm.adam(learning_rate=0.05))
    loop = loop_of(step, "numba")
    losses = np.concatenate([run(loop, n).losses for n in (1, 7, 4)])
    expected, state = by_hand(same, noise_of(12))
    np.testing.assert_allclose(losses, expected, rtol=1e-12)
    assert_same(state_of(step), state)


def test_a_step_size_is_read_anew_at_each_call():
    rate = pytensor.shared(np.array(0.1), "rate", shape=())
    step = step_of(pm.sgd(learning_rate=rate))
    loop = loop_of(step)
    run(loop, 3)
    before = state_of(step)
    rate.set_value(0.0)
    run(loop, 3)
    assert_identical(state_of(step), before)
    rate.set_value(0.2)
    run(loop, 1)
    assert not np.array_equal(state_of(step)[0], before[0])


def test_step_sizes_are_used_step_by_step():
    rate = pytensor.shared(np.array(0.0), "rate", shape=())
    step = step_of(pm.sgd(learning_rate=rate), settings=(rate,))
    rates = np.array([0.3, 0.0, 0.1, 0.2, 0.05])
    loop = loop_of(step)
    loop.run(rates[:2, None])
    loop.run(rates[2:, None])
    same = step_of(pm.sgd(learning_rate=1.0))
    a, b = param(same, "a"), param(same, "b")
    gradient = pytensor.function([same.noise], [x - y for x, y in same.updates.items()], mode=NUMPY)
    for z, r in zip(noise_of(5), rates, strict=True):
        da, db = gradient(z)
        a.set_value(a.get_value() - r * da)
        b.set_value(b.get_value() - r * db)
    assert_same(state_of(step), [a.get_value(), b.get_value()])
    assert rate.get_value() == 0.0


def test_what_is_set_from_outside_is_respected():
    step = step_of(pm.adam(learning_rate=0.05))
    loop = loop_of(step)
    run(loop, 3)
    a = param(step, "a")
    a.set_value(np.array([99.0, 99.0, 99.0]))
    chunk = run(loop, 1)
    assert chunk.losses[0] > 4.5
    np.testing.assert_allclose(a.get_value(), 99, atol=0.2)


# ------------------------------------------------------------------------- chunks and bits


@pytest.mark.parametrize("lengths", [[12], [1] * 12, [5, 1, 6], [2, 10]])
def test_bits_do_not_depend_on_the_lengths_of_calls(lengths):
    reference = step_of(pm.adam(learning_rate=0.05))
    loop = loop_of(reference)
    whole = run(loop, 12).losses
    step = step_of(pm.adam(learning_rate=0.05))
    loop = loop_of(step, max_chunk=max(lengths))
    losses = np.concatenate([run(loop, n).losses for n in lengths])
    np.testing.assert_array_equal(losses, whole)
    assert_identical(state_of(step), state_of(reference))


def test_jax_compiles_once_for_all_lengths(monkeypatch):
    monkeypatch.setattr(functions, "_KEPT", OrderedDict())
    loop = loop_of(step_of(pm.adam(learning_rate=0.05)), max_chunk=50)
    loop.compile()
    for n in (1, 50, 3, 49, 2):
        run(loop, n)
    assert function_behind(loop.function).vm.jit_fn._cache_size() == 1


def test_compiling_takes_no_step():
    step = step_of(pm.adam(learning_rate=0.05))
    before = state_of(step)
    loop = loop_of(step)
    assert not loop.is_compiled
    loop.compile()
    assert loop.is_compiled
    assert_identical(state_of(step), before)
    other = loop_of(step_of(pm.adam(learning_rate=0.05)))
    assert run(loop, 2).losses.tolist() == run(other, 2).losses.tolist()


def test_a_call_is_bounded_in_bytes(monkeypatch):
    tracked = {"x": pt.zeros((100,))}
    step = step_of(pm.adam(learning_rate=0.05))
    numbers = DRAWS * DIM + 3 * (3 + 1) + 1  # noise; a, b and two moments of each; adam's t
    monkeypatch.setattr(training, "CHUNK_BYTES", 7 * 8 * numbers)
    assert loop_of(step).max_chunk == 7
    assert loop_of(step, max_chunk=5).max_chunk == 5
    step = step_of(pm.adam(learning_rate=0.05), tracked=tracked)
    assert loop_of(step).max_chunk == 7 * numbers // (numbers + 100)
    monkeypatch.setattr(training, "CHUNK_BYTES", 1)
    assert loop_of(step).max_chunk == 1


def test_after_a_call_everything_is_numpy():
    step = step_of(signed)
    run(loop_of(step), 3)
    for variable in step.updates:
        value = variable.get_value(borrow=True)
        assert isinstance(value, np.ndarray)
        assert value.flags.writeable
        assert value.dtype == variable.dtype


def test_single_precision():
    with pytensor.config.change_flags(floatX="float32"):
        noise = pt.matrix("z0", shape=(DRAWS, DIM))
        a = pytensor.shared(np.array([1, 2, 3], "float32"), "a", shape=(3,))
        loss = pt.log1p(pt.sqr(noise + a).sum(axis=-1)).mean()
        grads = pytensor.grad(loss, [a])
        step = Step(noise, loss, {"a": grads[0]}, pm.adam(grads, [a], learning_rate=0.1))
        loop = loop_of(step)
        losses = np.concatenate([run(loop, n).losses for n in (3, 1, 2)])
    assert all(v.get_value().dtype == np.float32 for v in step.updates)
    z = np.random.default_rng(np.random.SeedSequence(1)).standard_normal((DRAWS, DIM), "float32")
    first = np.log1p(((z + np.array([1, 2, 3], "float32")) ** 2).sum(-1)).mean()
    np.testing.assert_allclose(losses[0], first, rtol=1e-6)


# ------------------------------------------------------------------------- a model's own randomness


def random_step():
    """A step whose loss is, apart from the noise, a random integer of the model's own."""
    generator = pytensor.shared(np.random.default_rng(99), "generator")
    _, draw = pt.random.integers(0, 10**6, size=(), rng=generator, return_next_rng=True)
    step = step_of(STILL, lambda noise, a, b: draw + 0 * (noise.sum() + a.sum() + b))
    return step, generator


@pytest.mark.parametrize("backend", ["jax", "numba"])
def test_the_models_own_draws_do_not_depend_on_the_lengths_of_calls(backend):
    whole = run(loop_of(random_step()[0], backend), 12).losses
    loop = loop_of(random_step()[0], backend)
    parts = [run(loop, n).losses for n in (1, 6, 5)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert len(set(whole)) == 12


def test_the_models_own_draws_follow_the_seed_and_leave_the_model_alone():
    step, generator = random_step()
    before = generator.get_value().bit_generator.state
    losses = run(loop_of(step), 5).losses
    assert generator.get_value().bit_generator.state == before
    np.testing.assert_array_equal(run(loop_of(random_step()[0]), 5).losses, losses)
    other = loop_of(random_step()[0], model_seed=3)
    assert not np.isin(run(other, 5).losses, losses).any()
