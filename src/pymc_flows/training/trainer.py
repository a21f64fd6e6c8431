"""`Trainer`: takes the steps of a fit, whatever its objective is."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pymc_flows.backends.ops import brief
from pymc_flows.errors import FitError
from pymc_flows.support.interrupts import Interrupts
from pymc_flows.training.convergence import convergence_warnings
from pymc_flows.training.hooks import Hook
from pymc_flows.training.loop import MAX_FAILURES, Chunk, StepError
from pymc_flows.training.progress import WINDOW, FitProgress
from pymc_flows.training.state import FitState

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How a run of a fit ended, and what there is to say of it.

    Attributes
    ----------
    steps : int
        Steps taken.
    ended : str
        How the run ended, and the average loss.
    interrupted : str
        After how many steps a Ctrl-C ended the run; empty without one.
    skipped : str
        Warning of steps that failed; empty without any.
    warnings : tuple of str
        Warnings of draws that were left out, and of convergence.
    go_on : str
        How to take the remaining steps after a Ctrl-C.
    """

    steps: int
    ended: str
    interrupted: str = ""
    skipped: str = ""
    warnings: tuple[str, ...] = ()
    go_on: str = ""

    def tell(self, *, stacklevel: int) -> None:
        """Warn of failed steps, and log the rest; ``stacklevel`` as for `warnings.warn`."""
        if self.interrupted:
            usable = "the approximation can be used as it is."
            _log.warning("%s", f"{self.interrupted}: {usable} {self.go_on}".rstrip())
        if self.skipped:
            warnings.warn(self.skipped, UserWarning, stacklevel=stacklevel + 1)
        for text in self.warnings:
            _log.warning("%s", text)
        _log.info("%s", self.ended)


class Trainer:
    """One run of a fit: the steps that its state plans.

    Whenever a hook, an exception or an interrupt can act, the parameters, the optimizer's state,
    the losses and the state of the fit are those of one step.

    Parameters
    ----------
    state : FitState
        With the objective and the compiled loop.
    hooks : sequence of Hook
        They act in this order.
    earlier : ndarray, optional
        Losses of the first ``state.done`` steps, which another process has taken.
    """

    def __init__(
        self, state: FitState, hooks: Sequence[Hook] = (), earlier: np.ndarray | None = None
    ):
        self._state, self._hooks = state, hooks
        self._losses = np.empty(state.n if state.config.score else 0)
        if earlier is not None:
            self._losses[: len(earlier)] = earlier
        self._error: BaseException | None = None  # the last one that compiled code raised

    @property
    def losses(self) -> np.ndarray:
        """Losses of this run so far, in nats; none if they are not kept."""
        return self._losses[: self._state.done]

    def run(self, theme: Any, *, show: bool) -> Outcome:
        """Take the steps, unless a callback or a Ctrl-C ends the run before.

        ``theme`` and ``show`` are those of the progress bar.

        Raises
        ------
        FitError
            If too many steps in a row failed.
        KeyboardInterrupt
            From the user, before there is a compiled loop.
        """
        state, formula = self._state, str(self._state.objective.q.formula)
        state.go_on()
        stops = False
        try:
            with FitProgress(state.n, theme, show=show, label=formula) as bar:
                self.advance(bar)
        except StopIteration as stop:
            stops = True
            _log.info("%s", stop)
        except KeyboardInterrupt:
            if not state.loop.is_compiled:
                raise
            state.interrupt()
        for hook in self._hooks:
            hook.end(state)
        outcome = self.outcome()
        if stops:
            state.stop()
        return outcome

    def advance(self, bar: FitProgress) -> None:
        """Take the steps, unless a hook or the user raises an exception, which is passed on.

        Raises
        ------
        FitError
            If too many steps in a row failed.
        """
        state, hooks = self._state, self._hooks
        if state.done < state.n:
            state.compile()
        bar.begin()
        with Interrupts(deferred=False) as interrupts:
            while state.done < state.n:
                interrupts.let_through()
                limits = (hook.limit(state.i) for hook in hooks)
                if not self._call(min(state.chunk, state.n - state.done, *limits)):
                    continue
                bar.update(state.done, self.losses)
                for hook in hooks:
                    if hook.is_due(state.i):
                        hook.act(state, self.losses)
                self.check_stuck()

    def _call(self, steps: int) -> bool:
        """Call the loop once; return whether steps were taken."""
        state, begin = self._state, time.perf_counter()
        with Interrupts(deferred=True):
            try:
                chunk = state.loop.run(state.settings(steps))
            except StepError as error:
                if steps > 1:  # find out which one
                    state.search_failure(steps)
                    return False
                self._error = error.__cause__
                chunk = state.loop.fail()
            self.take(chunk)
        if steps == state.chunk:
            state.pace(steps, time.perf_counter() - begin)
        return True

    def take(self, chunk: Chunk) -> None:
        """Count and keep steps that were taken."""
        state = self._state
        if state.config.score:
            self._losses[state.done : state.done + len(chunk.losses)] = chunk.losses
        for hook in self._hooks:
            hook.record(chunk)
        state.take(chunk)

    def check_stuck(self) -> None:
        """Raise `FitError` if too many steps in a row failed."""
        state = self._state
        if state.loop.failures >= MAX_FAILURES:
            raise FitError(
                f"{state.loop.failures} steps in a row failed, the last of them step "
                f"{state.i}\n{state.objective.why_stuck(state.loop, state.config)}"
            ) from self._error

    def outcome(self) -> Outcome:
        """Summarise the run so far."""
        state, q = self._state, self._state.objective.q
        formula, interrupted, skipped = str(q.formula), "", ""
        if state.is_interrupted:
            interrupted = f"Interrupted after {state.done:,} of {state.n:,} steps of {formula!r}"
        if state.failed:
            raised = f"; the last exception was {brief(self._error)}" if self._error else ""
            skipped = (
                f"{state.failed} of {state.done} steps were skipped: they raised, or their loss or "
                f"update was not finite{raised}"
            )
        told = [self._lost()] if state.lost else []
        learns = all(hook.learns for hook in self._hooks)
        found = convergence_warnings(self.losses, formula, is_framed=q.is_framed, learns=learns)
        return Outcome(state.done, self._how_it_ended(), interrupted, skipped, (*told, *found))

    def _lost(self) -> str:
        state = self._state
        total = (state.done - state.failed) * state.config.obj_n_mc
        return (
            f"{state.lost:,} of {total:,} draws were left out of the steps of "
            f"{str(state.objective.q.formula)!r}: a log density or its gradient was not finite "
            "there. Losses are means over the others."
        )

    def _how_it_ended(self) -> str:
        done, planned = self._state.done, self._state.n
        steps = "step" if done == 1 else "steps"
        if done < planned:
            text = f"Stopped after {done} of {planned} steps"
        elif done < self._state.i:
            text = f"Finished after {done} further {steps}"
        else:
            text = f"Finished after {done} {steps}"
        recent = self.losses[-WINDOW:]
        recent = recent[np.isfinite(recent)]
        return f"{text}: average loss {recent.mean():.5g}." if len(recent) else f"{text}."
