"""When callbacks are called and what ends a fit, on a loop made of Python."""

import re
import signal
from types import SimpleNamespace

import numpy as np
import pymc as pm
import pytest
from pymc.variational.callbacks import CheckParametersConvergence
from pymc.variational.callbacks import Tracker as PyMCTracker

from pymc_flows.callbacks import Tracker
from pymc_flows.errors import ArgumentError
from pymc_flows.flows import build_chain
from pymc_flows.training import trainer as _trainer
from pymc_flows.training.config import FitConfig, call_interval
from pymc_flows.training.convergence import convergence_warnings
from pymc_flows.training.hooks import Callbacks
from pymc_flows.training.loop import Chunk, StepError
from pymc_flows.training.optimizers import Schedule
from pymc_flows.training.state import FitState
from pymc_flows.training.trainer import Trainer


class Loop:
    """What a run needs of a loop; the loss of step i is i."""

    max_chunk = 64
    is_compiled = True
    idle_seconds = 0.0

    def __init__(self, *, raises=(), fails=()):
        self.raises = {*raises}  # steps at which compiled code raises
        self.fails = {*fails}  # steps whose loss is not finite
        self.calls = []
        self.rates = []
        self.i = self.failures = 0

    def compile(self):
        pass

    def run(self, settings):
        steps = range(self.i + 1, self.i + 1 + len(settings))
        if not self.raises.isdisjoint(steps):
            raise StepError from ArithmeticError("no inverse")
        self.calls.append(len(settings))
        self.rates += list(settings[:, 0])
        return self._taken(steps)

    def fail(self):
        self.fails.add(self.i + 1)
        return self._taken([self.i + 1])

    def _taken(self, steps):
        failed = np.array([i in self.fails for i in steps])
        for bad in failed:
            self.failures = self.failures + 1 if bad else 0
        self.i = steps[-1]
        losses = np.where(failed, np.nan, np.array(steps, float))
        tracked = {"0_scale_rho": losses[:, None, None] * np.ones((1, 2))}
        return Chunk(losses, failed, 0, tracked)


BAR = SimpleNamespace(begin=lambda: None, update=lambda done, losses: None)
APPROX = SimpleNamespace(params=[SimpleNamespace(get_value=lambda: np.ones(3))])
CHAIN = build_chain("scale", 2)
OBJECTIVE = SimpleNamespace(q=SimpleNamespace(formula="loc", is_framed=True))


def state_of(callbacks, loop=None, *, score=True, schedule=Schedule(0.5)):  # noqa: B008 - frozen
    optimizer = pm.sgd(learning_rate=0.5)
    config = FitConfig(callbacks=list(callbacks), score=score, obj_optimizer=optimizer)
    state = FitState(OBJECTIVE, config, loop or Loop())
    state.schedule = schedule
    return state


def run_of(state, n):
    """A run of n further steps."""
    state.begin(n)
    return Trainer(state, [Callbacks(APPROX, state.callbacks, CHAIN)])


class Seen:
    """A callback that notes what it gets."""

    def __init__(self, stop_at=None, error=StopIteration):
        self.steps, self.losses, self.approx = [], [], set()
        self.stop_at, self.error = stop_at, error

    def __call__(self, approx, losses, i):
        self.approx.add(id(approx))
        self.steps.append(i)
        self.losses.append(None if losses is None else losses.copy())
        if i == self.stop_at:
            raise self.error("as asked")


# ------------------------------------------------------------------------- when


def test_without_callbacks_calls_grow_until_they_take_a_quarter_of_a_second():
    loop = Loop()
    run_of(state_of([], loop), 300).advance(BAR)
    assert loop.calls == [1, 8, 64, 64, 64, 64, 35]


def test_slow_calls_get_shorter(monkeypatch):
    clock = iter(np.arange(0, 1000, 0.5))
    monkeypatch.setattr(_trainer.time, "perf_counter", lambda: next(clock))
    loop = Loop()
    state = state_of([], loop)
    state.chunk = 64
    run_of(state, 64 + 32 + 16).advance(BAR)
    assert loop.calls == [64, 32, 16]


def test_a_callback_sees_every_step_with_the_losses_so_far():
    seen = Seen()
    loop = Loop()
    run_of(state_of([seen], loop), 5).advance(BAR)
    assert seen.steps == [1, 2, 3, 4, 5]
    for n, losses in enumerate(seen.losses, start=1):
        np.testing.assert_array_equal(losses, np.arange(1, n + 1))
    assert seen.approx == {id(APPROX)}
    assert loop.calls == [1] * 5


def test_without_score_a_callback_gets_none():
    seen = Seen()
    run = run_of(state_of([seen], score=False), 3)
    run.advance(BAR)
    assert seen.losses == [None] * 3
    assert len(run.losses) == 0


@pytest.mark.parametrize(
    ("intervals", "expected"), [([], 0), ([20], 20), ([20, 30], 10), ([7, 3], 1), ([100, 100], 100)]
)
def test_the_interval_of_several_is_the_greatest_that_misses_none(intervals, expected):
    assert call_interval([CheckParametersConvergence(every=n) for n in intervals]) == expected


@pytest.fixture
def check_calls(monkeypatch):
    """Steps at which PyMC's checks were called, by their intervals."""
    calls = {}

    def call(self, approx, losses, i):
        calls.setdefault(self.every, []).append(i)

    monkeypatch.setattr(CheckParametersConvergence, "__call__", call)
    return calls


def test_checks_are_called_at_the_first_step_and_at_their_own_multiples(check_calls):
    loop = Loop()
    checks = [CheckParametersConvergence(every=n) for n in (20, 30)]
    run_of(state_of(checks, loop), 95).advance(BAR)
    assert check_calls == {20: [1, 20, 40, 60, 80], 30: [1, 30, 60, 90]}
    assert {1, *range(10, 95, 10)} <= set(np.cumsum(loop.calls).tolist())


def test_whatever_else_has_an_every_is_called_at_every_step():
    class Mine(CheckParametersConvergence):
        def __call__(self, approx, losses, i):
            pass

    other = Seen()
    other.every = 50
    assert call_interval([Mine(every=50)]) == 1
    assert call_interval([other]) == 1
    assert call_interval([PyMCTracker(x=float)]) == 1


@pytest.mark.parametrize("n", [0, -5, 2.5, True])
def test_an_every_that_is_no_number_of_steps(n):
    with pytest.raises(ArgumentError, match="every must be an integer of at least 1"):
        call_interval([CheckParametersConvergence(every=n)])


def test_a_further_run_goes_on_with_the_index_and_the_multiples():
    seen = Seen()
    loop = Loop()
    state = state_of([seen, CheckParametersConvergence(every=4, tolerance=0)], loop)
    run_of(state, 3).advance(BAR)
    run = run_of(state, 4)
    run.advance(BAR)
    assert seen.steps == [1, 2, 3, 4, 5, 6, 7]
    np.testing.assert_array_equal(seen.losses[-1], [4, 5, 6, 7])
    np.testing.assert_array_equal(run.losses, [4, 5, 6, 7])
    assert state.i == 7


def test_step_sizes_follow_the_number_of_the_step():
    loop = Loop()
    schedule = Schedule(0.5, 100, "cosine")
    state = state_of([], loop, schedule=schedule)
    for n in (30, 1, 90):
        run_of(state, n).advance(BAR)
    np.testing.assert_array_equal(loop.rates, schedule.rates(0, 121))


# ------------------------------------------------------------------------- what ends a fit


@pytest.mark.parametrize("error", [StopIteration, KeyboardInterrupt, ZeroDivisionError])
def test_what_a_callback_raises_comes_after_a_complete_step(error):
    seen = Seen(stop_at=4, error=error)
    state = state_of([seen])
    run = run_of(state, 10)
    with pytest.raises(error):
        run.advance(BAR)
    np.testing.assert_array_equal(run.losses, [1, 2, 3, 4])
    assert state.i == state.loop.i == 4
    run_of(state, 2).advance(BAR)
    assert seen.steps == [1, 2, 3, 4, 5, 6]


def test_the_check_of_pymc_ends_a_fit_that_stands_still():
    state = state_of([CheckParametersConvergence(every=20, tolerance=2, diff="relative")])
    with pytest.raises(StopIteration, match="Convergence achieved at 20"):
        run_of(state, 100).advance(BAR)
    assert state.i == 20


def test_an_interrupt_during_a_call_waits_for_its_end(handled):
    class Interrupted(Loop):
        def run(self, rates):
            if self.i == 9:
                signal.raise_signal(signal.SIGINT)
            chunk = super().run(rates)
            assert handled == []
            return chunk

    state = state_of([], Interrupted())
    run = run_of(state, 200)
    with pytest.raises(KeyboardInterrupt):
        run.advance(BAR)
    assert handled == [signal.SIGINT]
    assert state.i == state.loop.i == len(run.losses) == 73  # 1 + 8 + 64


def test_an_interrupt_during_a_callback_does_not_wait():
    def callback(approx, losses, i):
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("never reached")

    state = state_of([callback])
    run = run_of(state, 10)
    with pytest.raises(KeyboardInterrupt):
        run.advance(BAR)
    assert state.i == len(run.losses) == 1


@pytest.fixture
def handled():
    """Signals that reached the SIGINT handler, which raises KeyboardInterrupt."""
    seen = []

    def handle(signum, frame):
        seen.append(signum)
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGINT, handle)
    yield seen
    signal.signal(signal.SIGINT, previous)


# ------------------------------------------------------------------------- steps that fail


@pytest.mark.parametrize("raises", [{1}, {5}, {9, 10}, {64, 200}])
def test_a_step_that_raises_is_found_and_counted(raises):
    loop = Loop(raises=raises)
    state = state_of([], loop)
    run = run_of(state, 200)
    run.advance(BAR)
    expected = np.arange(1.0, 201)
    expected[[i - 1 for i in raises]] = np.nan
    np.testing.assert_array_equal(run.losses, expected)
    assert state.i == 200
    with pytest.warns(UserWarning, match=f"{len(raises)} of 200 steps .* ArithmeticError: no inv"):
        run.outcome().tell(stacklevel=1)


def test_failed_steps_are_reported_once_with_their_number(recwarn):
    run = run_of(state_of([], Loop(fails={3, 50, 51})), 100)
    run.advance(BAR)
    assert len(recwarn) == 0
    with pytest.warns(UserWarning, match="3 of 100 steps were skipped"):
        run.outcome().tell(stacklevel=1)
    assert np.flatnonzero(np.isnan(run.losses)).tolist() == [2, 49, 50]


# ------------------------------------------------------------------------- fits that diverge


def test_a_loss_that_rises_is_a_warning(rng):
    noise = rng.standard_normal(2000)
    assert convergence_warnings(noise, "loc") == ()
    assert convergence_warnings(noise - np.linspace(0, 5, 2000), "loc") == ()
    [said] = convergence_warnings(noise + np.linspace(0, 5, 2000), "loc")
    assert "The loss of 'loc' rose, from 0." in said
    assert "first and last 200 steps" in said


@pytest.mark.parametrize(
    ("fall", "noise", "is_told"), [(1, 0.1, True), (1, 1, False), (0.1, 0, False)]
)
def test_a_loss_that_still_falls_is_a_warning(rng, fall, noise, is_told):
    """A fall that lasts; one that is within the noise or next to nothing is none."""
    falling = np.linspace(2 * fall, 0, 2000) + noise * rng.standard_normal(2000)
    said = convergence_warnings(falling, "loc")
    assert len(said) == is_told
    for text in said:
        [nats] = re.findall(r"still falling, by ([\d.]+) nats", text)
        assert float(nats) == pytest.approx(0.8, abs=0.05)  # medians of the 6th and the last tenth
        assert text.startswith("The loss of 'loc' was")
        assert "find_frame" in text
    assert not any(
        "find_frame" in text for text in convergence_warnings(falling, "loc", is_framed=True)
    )
    assert convergence_warnings(falling, "loc", learns=False) == ()
    settled = np.where(np.arange(2000) < 1000, falling + 5, falling[-1])
    assert convergence_warnings(settled, "loc") == ()


def test_rare_huge_losses_are_a_warning(rng):
    losses = rng.standard_normal(2000)
    losses[1900] = 1e9
    [said] = convergence_warnings(losses, "loc")
    assert "Rare draws dominate the loss of 'loc'" in said
    assert "5e+06" in said


def test_short_or_failed_fits_are_not_judged():
    assert convergence_warnings(np.arange(199.0), "loc") == ()
    assert convergence_warnings(np.full(2000, np.nan), "loc") == ()


def test_convergence_warnings_are_logged(caplog):
    run = run_of(state_of([]), 300)  # the loss of step i is i
    run.advance(BAR)
    with caplog.at_level("INFO"):
        run.outcome().tell(stacklevel=1)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert caplog.messages[0].startswith("The loss of 'loc' rose, from 15.5 to 285.5")
    assert caplog.messages[1] == "Finished after 300 steps: average loss 150.5."


def test_a_tracker_that_is_cleared_between_runs_starts_again():
    tracker = Tracker(grads=False)
    state = state_of([tracker])
    run_of(state, 5).advance(BAR)
    tracker.clear()
    run_of(state, 3).advance(BAR)
    assert tracker.dataset["step"].values.tolist() == [1, 2, 3]
    np.testing.assert_array_equal(tracker["0_scale_rho"][:, 0, 0], [6, 7, 8])
