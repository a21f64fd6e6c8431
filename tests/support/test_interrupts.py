"""Ctrl-C: a real SIGINT during fits, and the handler that waits for a good moment."""

import contextlib
import os
import signal
import threading
import time

import numpy as np
import pytest

import pymc_flows as pmf
from fits import (
    JAX,
    assert_identical,
    everything,
    inference,
    interrupted_and_not,
    minibatch_model,
    normal_mean,
    parameters,
)
from pymc_flows.flows.frame import Frame
from pymc_flows.support.interrupts import Interrupts
from pymc_flows.training import loop as training

# ------------------------------------------------------------------------- of a fit


def test_an_interrupted_fit_goes_on_as_if_nothing_had_happened():
    inf = inference(minibatch_model())
    inf.fit(10, obj_n_mc=3, **JAX)
    assert_identical(*interrupted_and_not(inf))


def test_an_interrupt_in_a_callback_ends_the_fit_there():
    def callback(approx, losses, i):
        if i == 3:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)
            raise AssertionError("never reached")

    inf = inference()
    assert inf.fit(10, callbacks=[callback], **JAX) is inf.approx
    assert len(inf.hist) == inf.state.i == 3


def test_an_interrupt_is_told_with_the_steps_and_how_to_go_on(caplog, tmp_path):
    def callback(approx, losses, i):
        if i == 3:
            signal.raise_signal(signal.SIGINT)

    inf, file = inference(), tmp_path / "fit.nc"
    assert repr(inf) == "NFVI('scale-loc', dim=1, steps=0)"
    inf.fit(10, callbacks=[callback], **JAX)
    inf.state.checkpoint = file
    inf.state.callbacks.append(lambda approx, losses, i: signal.raise_signal(signal.SIGINT))
    inf.refine(4, progressbar=False)
    usable = "of 'scale-loc': the approximation can be used as it is."
    refine, resume = (r.message for r in caplog.records if r.levelname == "WARNING")
    assert refine.startswith(f"Interrupted after 3 of 10 steps {usable} refine(n) of an NFVI")
    assert resume.startswith(
        f"Interrupted after 1 of 4 steps {usable} pymc_flows.resume({str(file)!r}"
    )
    assert file.exists()
    assert repr(inf) == "NFVI('scale-loc', dim=1, steps=4)"


def swallow(*_, **__):
    """What JAX does to an interrupt that hits its function for garbage collections."""
    with contextlib.suppress(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_an_interrupt_that_is_swallowed_between_two_calls_ends_the_fit(monkeypatch):
    monkeypatch.setattr("pymc_flows.training.progress.FitProgress.update", swallow)
    inf = inference()
    inf.fit(10**6, **JAX)
    assert inf.state.i == 1
    assert inf.state.is_interrupted


@pytest.mark.parametrize("name", ["start.search.find_start", "approximation.flow.start_state"])
def test_an_interrupt_that_is_swallowed_before_the_fit_comes_again(monkeypatch, name):
    monkeypatch.setattr(f"pymc_flows.{name}", swallow)
    monkeypatch.setattr("pymc_flows.start.search.search", lambda *_, **__: Frame(np.zeros(1)))
    with pytest.raises(KeyboardInterrupt):
        pmf.fit(5, formula="loc", model=normal_mean(), **JAX)


def test_an_interrupt_before_the_first_step_leaves_an_inference_that_works(monkeypatch):
    inf, other = inference(), inference()
    compile_ = training.TrainingLoop._call

    def interrupted(self, *args):
        monkeypatch.setattr(training.TrainingLoop, "_call", compile_)
        os.kill(os.getpid(), signal.SIGINT)
        return compile_(self, *args)

    monkeypatch.setattr(training.TrainingLoop, "_call", interrupted)
    before = parameters(inf)
    with pytest.raises(KeyboardInterrupt):
        inf.fit(10, random_seed=5, **JAX)
    assert len(inf.hist) == 0
    assert_identical(parameters(inf), before)
    inf.refine(10, progressbar=False)
    other.fit(10, random_seed=5, **JAX)
    assert_identical(everything(inf), everything(other))


def test_a_fit_in_another_thread_touches_no_signal_handler():
    inf = inference()
    errors = []

    def work():
        try:
            inf.fit(20, **JAX)
        except BaseException as error:  # a thread's exceptions would be lost
            errors.append(error)

    handler = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert errors == []
    assert len(inf.hist) == 20
    assert signal.getsignal(signal.SIGINT) is handler


# ------------------------------------------------------------------------- of a block of code


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

    def rename():
        try:
            interrupt()
        except KeyboardInterrupt as error:
            raise SystemError("returned a result with an exception set") from error

    for code in (swallow, rename, interrupt):
        with pytest.raises(KeyboardInterrupt), Interrupts(deferred=False):
            code()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_that_raises_nothing_is_called_once(handler):
    calls, _ = handler
    with Interrupts(deferred=False), Interrupts(deferred=True):
        interrupt()
    assert calls == [signal.SIGINT]


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
