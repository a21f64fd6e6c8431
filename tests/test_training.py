"""The compiled loop on steps small enough to be followed by hand, one at a time, from Python."""

import contextlib
import os
import signal
import threading
import time
import warnings

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest

from pymc_flows import training
from pymc_flows._interrupts import Interrupts
from pymc_flows.modes import NUMPY
from pymc_flows.training import MAX_FAILURES, Step, StepError, TrainingLoop

DRAWS, DIM = 2, 3


def noise_of(n):
    """The base noise of the first n steps, as anyone can draw it with NumPy."""
    return np.random.default_rng(np.random.SeedSequence(1)).standard_normal((n, DRAWS, DIM))


def step_of(optimizer, loss_of=None, **fields):
    """A step with parameters a (3,) and b () and a loss that is not a quadratic."""
    noise = pt.matrix("z0", shape=(DRAWS, DIM))
    a = pytensor.shared(np.array([1.0, 2.0, 3.0]), "a", shape=(3,))
    b = pytensor.shared(np.array(0.5), "b", shape=())
    if loss_of is None:
        loss = pt.log1p(pt.sqr(noise * pt.exp(b) + a).sum(axis=-1)).mean()
    else:
        loss = loss_of(noise, a, b)
    grads = pytensor.grad(loss, [a, b], disconnected_inputs="ignore")
    updates = optimizer(grads, [a, b])
    return Step(noise, loss, dict(zip("ab", grads, strict=True)), updates, **fields)


def loop_of(step, backend="jax", *, model_seed=2, **kwargs):
    return TrainingLoop(
        step,
        backend=backend,
        noise_seed=np.random.SeedSequence(1),
        model_seed=np.random.SeedSequence(model_seed),
        **kwargs,
    )


def by_hand(step, noise):
    """Losses, then values of all that the step updates, by one Python call per step."""
    one = pytensor.function([step.noise], step.loss, updates=list(step.updates.items()), mode=NUMPY)
    losses = [float(one(z)) for z in noise]
    return np.array(losses), [v.get_value() for v in step.updates]


def state_of(step):
    return [np.array(v.get_value()) for v in step.updates]


def param(step, name):
    return next(v for v in step.updates if v.name == name)


def assert_same(values, expected, rtol=1e-12):
    for value, other in zip(values, expected, strict=True):
        np.testing.assert_allclose(value, other, rtol=rtol, atol=1e-14)


def assert_identical(values, expected):
    for value, other in zip(values, expected, strict=True):
        np.testing.assert_array_equal(value, other)


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
    losses = np.concatenate([loop.run(np.zeros(n)).losses for n in (1, 7, 4)])
    expected, state = by_hand(same, noise_of(12))
    np.testing.assert_allclose(losses, expected, rtol=1e-12)
    assert_same(state_of(step), state)
    assert np.abs(param(step, "a").get_value() - [1, 2, 3]).min() > 1e-3
    assert abs(param(step, "b").get_value() - 0.5) > 1e-3


def test_the_loop_does_the_same_on_numba():
    step, same = step_of(pm.adam(learning_rate=0.05)), step_of(pm.adam(learning_rate=0.05))
    loop = loop_of(step, "numba")
    losses = np.concatenate([loop.run(np.zeros(n)).losses for n in (1, 7, 4)])
    expected, state = by_hand(same, noise_of(12))
    np.testing.assert_allclose(losses, expected, rtol=1e-12)
    assert_same(state_of(step), state)


def test_a_step_size_is_read_anew_at_each_call():
    rate = pytensor.shared(np.array(0.1), "rate", shape=())
    step = step_of(pm.sgd(learning_rate=rate))
    loop = loop_of(step)
    loop.run(np.zeros(3))
    before = state_of(step)
    rate.set_value(0.0)
    loop.run(np.zeros(3))
    assert_identical(state_of(step), before)
    rate.set_value(0.2)
    loop.run(np.zeros(1))
    assert not np.array_equal(state_of(step)[0], before[0])


def test_step_sizes_are_used_step_by_step():
    rate = pytensor.shared(np.array(0.0), "rate", shape=())
    step = step_of(pm.sgd(learning_rate=rate), rate=rate)
    rates = np.array([0.3, 0.0, 0.1, 0.2, 0.05])
    loop = loop_of(step)
    loop.run(rates[:2])
    loop.run(rates[2:])
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
    loop.run(np.zeros(3))
    a = param(step, "a")
    a.set_value(np.array([99.0, 99.0, 99.0]))
    chunk = loop.run(np.zeros(1))
    assert chunk.losses[0] > 4.5
    np.testing.assert_allclose(a.get_value(), 99, atol=0.2)


# ------------------------------------------------------------------------- chunks and bits


@pytest.mark.parametrize("lengths", [[12], [1] * 12, [5, 1, 6], [2, 10]])
def test_bits_do_not_depend_on_the_lengths_of_calls(lengths):
    reference = step_of(pm.adam(learning_rate=0.05))
    loop = loop_of(reference)
    whole = loop.run(np.zeros(12)).losses
    step = step_of(pm.adam(learning_rate=0.05))
    loop = loop_of(step, max_chunk=max(lengths))
    losses = np.concatenate([loop.run(np.zeros(n)).losses for n in lengths])
    np.testing.assert_array_equal(losses, whole)
    assert_identical(state_of(step), state_of(reference))


def test_jax_compiles_once_for_all_lengths():
    loop = loop_of(step_of(pm.adam(learning_rate=0.05)), max_chunk=50)
    loop.compile()
    for n in (1, 50, 3, 49, 2):
        loop.run(np.zeros(n))
    assert loop.function.vm.jit_fn._cache_size() == 1


def test_compiling_takes_no_step():
    step = step_of(pm.adam(learning_rate=0.05))
    before = state_of(step)
    loop = loop_of(step)
    assert not loop.is_compiled
    loop.compile()
    assert loop.is_compiled
    assert_identical(state_of(step), before)
    other = loop_of(step_of(pm.adam(learning_rate=0.05)))
    assert loop.run(np.zeros(2)).losses.tolist() == other.run(np.zeros(2)).losses.tolist()


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
    loop_of(step).run(np.zeros(3))
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
        losses = np.concatenate([loop.run(np.zeros(n)).losses for n in (3, 1, 2)])
    assert all(v.get_value().dtype == np.float32 for v in step.updates)
    z = np.random.default_rng(np.random.SeedSequence(1)).standard_normal((DRAWS, DIM), "float32")
    first = np.log1p(((z + np.array([1, 2, 3], "float32")) ** 2).sum(-1)).mean()
    np.testing.assert_allclose(losses[0], first, rtol=1e-6)


# ------------------------------------------------------------------------- steps that fail


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
    chunks = [loop.run(np.zeros(n)) for n in (13, 7)]
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
    assert loop_of(step).run(np.zeros(3)).failed.all()
    assert_identical(state_of(step), before)


def test_an_update_that_is_not_finite_makes_the_call_fail():
    def overflowing(grads, params):
        a, b = params
        return {a: a - 1.0, b: pt.switch(a[0] < -1.5, np.nan, b)}  # at the third step

    step = step_of(overflowing)
    loop = loop_of(step)
    before = state_of(step)
    with pytest.raises(StepError) as info:
        loop.run(np.zeros(5))
    assert str(info.value.__cause__) == "the optimizer's update was not finite"
    assert_identical(state_of(step), before)
    losses = loop.run(np.zeros(3)).losses
    assert np.isfinite(losses).all()
    np.testing.assert_array_equal(param(step, "a").get_value(), [-2, -1, 0])
    with pytest.raises(StepError):
        loop.run(np.zeros(1))


def test_what_was_infinite_before_may_stay_so():
    best = pytensor.shared(np.array(np.inf), "best", shape=())
    step = step_of(pm.sgd(learning_rate=0.01))
    step.updates[best] = best + 0
    assert not loop_of(step).run(np.zeros(3)).failed.any()
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
        chunk = loop.run(np.zeros(n))
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
        loop.run(np.zeros(1))
    np.testing.assert_array_equal(loop.failed_noise, noise_of(105)[-1])


def test_a_step_can_be_counted_as_failed_without_running():
    step = step_of(pm.adam(learning_rate=0.05))
    a = param(step, "a")
    step = Step(
        step.noise, step.loss, step.grads, step.updates, tracked={"a": a, "g": step.grads["a"]}
    )
    loop = loop_of(step)
    loop.run(np.zeros(2))
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
        exploding.run(np.zeros(n + 1))
    assert "too large" in str(info.value.__cause__)
    assert_identical(state_of(exploding.step), before)
    losses = exploding.run(np.zeros(n)).losses  # the noise of the steps before
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
        loop.run(np.zeros(3))
    assert_identical(state_of(step), before)
    monkeypatch.setattr(loop, "function", function)
    np.testing.assert_array_equal(loop.run(np.zeros(3)).losses, other.run(np.zeros(3)).losses)


# ------------------------------------------------------------------------- a model's own randomness


def random_step():
    """A step whose loss is, apart from the noise, a random integer of the model's own."""
    generator = pytensor.shared(np.random.default_rng(99), "generator")
    _, draw = pt.random.integers(0, 10**6, size=(), rng=generator, return_next_rng=True)
    step = step_of(
        pm.sgd(learning_rate=0.0), lambda noise, a, b: draw + 0 * (noise.sum() + a.sum() + b)
    )
    return step, generator


@pytest.mark.parametrize("backend", ["jax", "numba"])
def test_the_models_own_draws_do_not_depend_on_the_lengths_of_calls(backend):
    whole = loop_of(random_step()[0], backend).run(np.zeros(12)).losses
    loop = loop_of(random_step()[0], backend)
    parts = [loop.run(np.zeros(n)).losses for n in (1, 6, 5)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert len(set(whole)) == 12


def test_the_models_own_draws_follow_the_seed_and_leave_the_model_alone():
    step, generator = random_step()
    before = generator.get_value().bit_generator.state
    losses = loop_of(step).run(np.zeros(5)).losses
    assert generator.get_value().bit_generator.state == before
    np.testing.assert_array_equal(loop_of(random_step()[0]).run(np.zeros(5)).losses, losses)
    other = loop_of(random_step()[0], model_seed=3)
    assert not np.isin(other.run(np.zeros(5)).losses, losses).any()


# ------------------------------------------------------------------------- interrupts


@pytest.fixture
def handler():
    """A SIGINT handler of the test's own: (its calls, itself)."""
    calls = []

    def handle(signum, frame):
        calls.append(signum)

    previous = signal.signal(signal.SIGINT, handle)
    yield calls, handle
    signal.signal(signal.SIGINT, previous)


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.01)  # Python runs the handler between two instructions of its own


def test_a_deferred_interrupt_reaches_the_handler_when_the_block_ends(handler):
    calls, handle = handler
    with Interrupts(deferred=True):
        interrupt()
        assert calls == []
    assert calls == [signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) is handle
    with Interrupts(deferred=True):
        pass
    assert calls == [signal.SIGINT]


def test_an_interrupt_that_foreign_code_swallows_comes_again(handler):
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def swallow():
        with contextlib.suppress(KeyboardInterrupt):
            interrupt()

    def rename():
        try:
            interrupt()
        except KeyboardInterrupt as error:
            raise SystemError("returned a result with an exception set") from error

    for code in (swallow, rename, interrupt):
        with pytest.raises(KeyboardInterrupt), Interrupts(deferred=False):
            code()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_threads_and_ignored_interrupts_are_left_alone(handler):
    calls, handle = handler
    seen = []

    def work():
        with Interrupts(deferred=True):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [handle]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Interrupts(deferred=True):
        interrupt()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    assert calls == []
