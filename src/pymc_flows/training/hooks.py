"""Hooks between calls of the compiled loop: callbacks, the stopping rule, checkpoints."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pymc_flows.callbacks import Tracker
from pymc_flows.flows import Chain
from pymc_flows.support.deadline import Deadline
from pymc_flows.training.config import Callback, call_interval, interval_of
from pymc_flows.training.loop import Chunk
from pymc_flows.training.optimizers import Schedule
from pymc_flows.training.state import FitState

_log = logging.getLogger(__name__)


class Hook:
    """Acts after each step that is a multiple of ``every``; 0 for never."""

    every = 0

    @property
    def learns(self) -> bool:
        """Whether, as far as this hook knows, the flow still gets better while its loss falls."""
        return True

    def limit(self, i: int) -> int:
        """Most steps that may be taken after step ``i`` before the hook has to act."""
        return self.every - i % self.every if self.every else sys.maxsize

    def is_due(self, i: int) -> bool:
        """Whether the hook acts after step ``i``."""
        return bool(self.every) and i % self.every == 0

    def record(self, chunk: Chunk) -> None:
        """Keep what is needed of steps that were taken; a Ctrl-C waits for the end."""

    def act(self, state: FitState, losses: np.ndarray) -> None:
        """Act; ``losses`` are those of this run so far, none if they are not kept."""

    def end(self, state: FitState) -> None:
        """Act after the last step of a run."""


class Callbacks(Hook):
    """Calls callbacks with the approximation, and lets trackers record parameters of its chain."""

    def __init__(self, approx: Any, callbacks: Sequence[Callback], chain: Chain):
        self._approx = approx
        self._trackers = [c for c in callbacks if isinstance(c, Tracker)]
        self._callbacks = [c for c in callbacks if not isinstance(c, Tracker)]
        self.every = call_interval(self._callbacks)
        for tracker in self._trackers:
            tracker.prepare(chain)

    def limit(self, i: int) -> int:
        """Stop after the first step, which all callbacks see."""
        return 1 if self.every and i == 0 else super().limit(i)

    def is_due(self, i: int) -> bool:
        """Act after the first step, too."""
        return bool(self.every) and (i == 1 or super().is_due(i))

    def record(self, chunk: Chunk) -> None:
        """Let trackers record."""
        for tracker in self._trackers:
            tracker.record(chunk.tracked)

    def act(self, state: FitState, losses: np.ndarray) -> None:
        """Call the callbacks that are due."""
        i = state.i
        for callback in self._callbacks:
            if i == 1 or i % interval_of(callback) == 0:
                callback(self._approx, losses if state.config.score else None, i)


class Settling(Hook):
    """Lets the step size decay, as the end of the fit, once the loss has settled."""

    def __init__(self, state: FitState):
        self.every = 0 if state.plateau is None else state.plateau.every

    def act(self, state: FitState, losses: np.ndarray) -> None:
        """Look at the losses."""
        rule = state.plateau
        if rule is None:
            return
        ramp = 0 if state.ramp is None else max(0, state.ramp.steps - (state.i - state.done))
        decay = rule.decay if state.has_rate else 0
        if state.done + decay < state.n and rule.has_settled(losses[ramp:]):
            _log.info("The loss has settled after %d steps.", state.i)
            state.settle(decay)
            self.every = 0


class TimeLimit(Hook):
    """Ends a fit at a deadline; the step size decays in the last fifth of the time."""

    def __init__(self, deadline: Deadline):
        self._deadline, self._begin = deadline, time.perf_counter()
        self._done, self._is_settling = 0, False

    def is_due(self, i: int) -> bool:
        """After each call of the loop, if there is a deadline."""
        return math.isfinite(self._deadline.at)

    def act(self, state: FitState, losses: np.ndarray) -> None:
        """Look at the clock."""
        if self._deadline.has_passed:
            raise StopIteration("The time is up.")
        if self._done == 0:  # the first call has compiled
            self._begin, self._done = time.perf_counter(), state.done
            return
        seconds = time.perf_counter() - self._begin
        speed = (state.done - self._done) / seconds
        decay = int(self._deadline.left * speed)
        if self._is_settling or 4 * decay > state.done or state.done + decay >= state.n:
            return
        self._is_settling = True
        if state.has_rate and decay:
            [rate] = state.schedule.rates(state.i, 1)
            state.schedule = Schedule(float(rate), decay, "cosine", state.i)
            state.n, state.plateau = state.done + decay, None


class Checkpoint(Hook):
    """Calls ``write`` with the losses of this run so far, to write the fit to its file."""

    def __init__(self, every: int, write: Callable[[np.ndarray], object]):
        self.every, self._write = every, write

    def act(self, state: FitState, losses: np.ndarray) -> None:
        """Write."""
        self._write(losses)
