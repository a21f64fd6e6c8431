"""A fit under way: chunks of the compiled loop, and what happens between them."""

from __future__ import annotations

import logging
import math
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytensor
from pymc.variational.callbacks import CheckParametersConvergence

from pymc_flows.approximation import NormalizingFlow
from pymc_flows.backends.modes import NUMPY
from pymc_flows.backends.ops import has_loop
from pymc_flows.callbacks import Tracker
from pymc_flows.errors import ArgumentError, FitError
from pymc_flows.flows.evaluate import forward_and_log_det
from pymc_flows.model.examine import why_not_finite
from pymc_flows.model.logp import Replacements
from pymc_flows.support.interrupts import Interrupts
from pymc_flows.training.annealing import Ramp
from pymc_flows.training.concerns import concerns
from pymc_flows.training.loop import MAX_FAILURES, Chunk, StepError, TrainingLoop
from pymc_flows.training.optimizers import Schedule
from pymc_flows.training.progress import WINDOW, FitProgress
from pymc_flows.training.stopping import Plateau

_log = logging.getLogger(__name__)

# An interrupt waits for the end of a call, so a call should take about this long.
CHUNK_SECONDS = 0.25

type Callback = Callable[[Any, Any, int], object]


@dataclass
class FitState:
    """What `NFVI.refine` continues from.

    Attributes
    ----------
    loop : TrainingLoop
    callbacks : list of callable
    schedule : Schedule
    has_rate : bool
        Whether the schedule rules the optimizer's step size.
    score : bool
        Whether losses are kept.
    ramp : Ramp, optional
        Inverse temperatures.
    path_from : int, optional
        Step after which the path gradient is used, where the loop has both.
    replacements : mapping of Variable to Variable, optional
        Those in the model's log density.
    i : int
        Steps so far.
    chunk : int
        Steps of the next call, unless something else limits them.
    n, done, failed : int
        Of the last `Run`: its steps, those taken, and those of them that failed.
    recipe : mapping
        What else it takes to build the loop again, as JSON has it.
    checkpoint : Path, optional
        Where the fit is kept.
    every : int
        Steps between checkpoints; 0 for none.
    plateau : Plateau, optional
        When the step size begins to decay, and the end of the fit is near.
    is_interrupted : bool
        Whether a Ctrl-C ended the last `Run`.
    """

    loop: TrainingLoop
    callbacks: list[Callback]
    schedule: Schedule
    has_rate: bool
    score: bool
    ramp: Ramp | None = None
    path_from: int | None = None
    replacements: Replacements = None
    i: int = 0
    chunk: int = 1
    n: int = 0
    done: int = 0
    failed: int = 0
    recipe: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: Path | None = None
    every: int = 0
    plateau: Plateau | None = None
    is_interrupted: bool = False

    def settings(self, steps: int) -> np.ndarray:
        """What the next steps need to know, as `TrainingLoop.run` takes it."""
        columns = []
        if self.has_rate:
            columns.append(self.schedule.rates(self.i, steps))
        if self.ramp is not None:
            columns.append(self.ramp.values(self.i, steps))
        if self.path_from is not None:
            columns.append(np.arange(self.i, self.i + steps) >= self.path_from)
        return np.column_stack(columns) if columns else np.zeros((steps, 0))

    def begin(self, n: int) -> None:
        """Plan ``n`` further steps."""
        self.n, self.done, self.failed = n, 0, 0

    def __getstate__(self) -> dict[str, object]:
        """Let a copy keep away from the file."""
        return {**self.__dict__, "checkpoint": None, "every": 0}


class Run:
    """One call of `NFVI.fit` or `NFVI.refine`: ``n`` further steps.

    Whenever something other than this class can act (a callback, an exception, an interrupt), the
    parameters, the optimizer's state, the losses and the state of the fit belong to one step.

    Parameters
    ----------
    approx : NormalizingFlow
    state : FitState
    n : int
    earlier : ndarray, optional
        Losses of those ``state.done`` of the steps that another process has taken; None, if the
        run begins now.
    """

    def __init__(
        self,
        approx: NormalizingFlow,
        state: FitState,
        n: int,
        earlier: np.ndarray | None = None,
    ):
        if earlier is None:
            state.begin(n)
            earlier = np.empty(0)
        self._approx = approx
        self._state = state
        self._n = n
        self._losses = np.empty(n if state.score else 0)
        self._losses[: len(earlier)] = earlier
        self._error: BaseException | None = None  # the last one that compiled code raised
        self._trackers = [c for c in state.callbacks if isinstance(c, Tracker)]
        for tracker in self._trackers:
            tracker.prepare(approx.chain)
        self._callbacks = [c for c in state.callbacks if not isinstance(c, Tracker)]

    @property
    def losses(self) -> np.ndarray:
        """Losses of this run so far, in nats; none if they are not kept."""
        return self._losses[: self._state.done]

    def advance(self, bar: FitProgress, save: Callable[[], None] | None = None) -> None:
        """Take the steps; call ``save`` after each multiple of ``state.every``.

        Raises
        ------
        StopIteration, KeyboardInterrupt
            From a callback or the user.
        FitError
            If too many steps in a row failed.
        """
        state = self._state
        if state.loop.failures >= MAX_FAILURES:  # a fit that had given up gets another chance
            state.loop.failures = 0
        every = call_interval(self._callbacks)
        if state.done < self._n:
            state.loop.compile()
        bar.begin()
        with Interrupts(deferred=False) as interrupts:
            while state.done < self._n:
                interrupts.let_through()
                steps = min(state.chunk, self._n - state.done)
                if every:
                    steps = min(steps, 1 if state.i == 0 else every - state.i % every)
                for period in (state.every, state.plateau.every if state.plateau else 0):
                    if period:
                        steps = min(steps, period - state.i % period)
                if not self._call(steps):
                    continue
                self._watch()
                bar.update(state.done, self.losses)
                self._call_back()
                if save is not None and state.every and state.i % state.every == 0:
                    save()
                if state.loop.failures >= MAX_FAILURES:
                    raise FitError(self._why_stuck()) from self._error

    def _watch(self) -> None:
        """Let the step size decay, as the end of the fit, once the loss has settled."""
        state, rule = self._state, self._state.plateau
        if rule is None or state.i % rule.every:
            return
        ramp = 0 if state.ramp is None else max(0, state.ramp.steps - (state.i - state.done))
        decay = rule.decay if state.has_rate else 0
        if state.done + decay < self._n and rule.has_settled(self.losses[ramp:]):
            _log.info("The loss has settled after %d steps.", state.i)
            state.schedule = replace(state.schedule, first=state.i)
            self._n = state.n = state.done + decay
            state.plateau = None

    def _call(self, steps: int) -> bool:
        """Call the loop once; return whether any step was taken."""
        state = self._state
        begin = time.perf_counter()
        with Interrupts(deferred=True):
            try:
                chunk = state.loop.run(state.settings(steps))
            except StepError as error:
                if steps > 1:  # which of them is it?
                    state.chunk = max(1, steps // 8)
                    return False
                self._error = error.__cause__
                chunk = state.loop.fail()
            self._record(chunk)
        if steps == state.chunk:
            # Of a call of few steps nearly all may go into those that are skipped.
            idle = state.loop.idle_seconds * (1 - steps / state.loop.max_chunk)
            wanted = CHUNK_SECONDS * steps / max(time.perf_counter() - begin - idle, 1e-9)
            state.chunk = max(1, min(int(wanted), 8 * steps, state.loop.max_chunk))
        return True

    def _record(self, chunk: Chunk) -> None:
        n = len(chunk.losses)
        if self._state.score:
            self._losses[self._state.done : self._state.done + n] = chunk.losses
        for tracker in self._trackers:
            tracker.record(chunk.tracked)
        self._state.done += n
        self._state.i += n
        self._state.failed += int(chunk.failed.sum())

    def _call_back(self) -> None:
        i = self._state.i
        for callback in self._callbacks:
            if i == 1 or i % _every(callback) == 0:
                callback(self._approx, self.losses if self._state.score else None, i)

    def _why_stuck(self) -> str:
        loop = self._state.loop
        with np.errstate(all="ignore"):
            why = why_step_failed(self._approx, loop, self._state.replacements)
        return (
            f"{loop.failures} steps in a row failed, the last of them step "
            f"{self._state.i}\n{why}\n"
            "Parameters are those of the last good step. Try a smaller learning_rate, another "
            "start=, or total_grad_norm_constraint=."
        )

    def report(self, say: Callable[[str], object] = _log.warning, *, learns: bool = True) -> None:
        """Say what went wrong on the way, and log how it ended.

        Parameters
        ----------
        say : callable
            Gets what the losses give cause for concern about, a sentence a call.
        learns : bool
            Whether a loss that falls says that the flow gets better.
        """
        if self._state.failed:
            raised = f"; the last exception was {_brief(self._error)}" if self._error else ""
            warnings.warn(
                f"{self._state.failed} of {self._state.done} steps were skipped: they raised, or "
                f"their loss or update was not finite{raised}",
                UserWarning,
                stacklevel=4,
            )
        formula, is_framed = str(self._approx.formula), self._approx.is_framed
        for concern in concerns(self.losses, formula, is_framed=is_framed, learns=learns):
            say(concern)
        _log.info("%s", self._how_it_ended())

    def how_to_go_on(self) -> str:
        """What to say of a fit by `NFVI` that was interrupted."""
        state, file = self._state, self._state.checkpoint
        if file is not None:
            go_on = f"pymc_flows.resume({os.fspath(file)!r}) takes the others."
        else:
            go_on = (
                "refine(n) of an NFVI takes further ones; a fit with checkpoint= can be resumed."
            )
        return (
            f"Interrupted after {state.done:,} of {state.n:,} steps of "
            f"{str(self._approx.formula)!r}: the approximation can be used as it is. {go_on}"
        )

    def _how_it_ended(self) -> str:
        done = self._state.done
        steps = "step" if done == 1 else "steps"
        if done < self._n:
            text = f"Stopped after {done} of {self._n} steps"
        elif done < self._state.i:
            text = f"Finished after {done} further {steps}"
        else:
            text = f"Finished after {done} {steps}"
        recent = self.losses[-WINDOW:]
        recent = recent[np.isfinite(recent)]
        return f"{text}: average loss {recent.mean():.5g}." if len(recent) else f"{text}."


def call_interval(callbacks: Sequence[Callback]) -> int:
    """Steps between calls of callbacks: the greatest that misses none; 0 without callbacks."""
    return math.gcd(*map(_every, callbacks)) if callbacks else 0


def _every(callback: Callback) -> int:
    """Steps between calls; more than one only if the callback looks at nothing in between."""
    if not isinstance(callback, CheckParametersConvergence) or (
        type(callback).__call__ is not CheckParametersConvergence.__call__
    ):
        return 1
    every = callback.every
    if isinstance(every, bool) or not isinstance(every, int | np.integer) or every < 1:
        raise ArgumentError(
            f"every must be an integer of at least 1, got {every!r} in {callback!r}"
        )
    return int(every)


def why_step_failed(
    approx: NormalizingFlow, loop: TrainingLoop, replacements: Replacements = None
) -> str:
    """Replay the last failed step outside the loop; name what is not finite first.

    Parameters
    ----------
    approx : NormalizingFlow
        With the parameters of the failed step, which are those of the last good one.
    loop : TrainingLoop
    replacements : mapping, optional
        Those in the model's log density.
    """
    q, step, noise = approx.flow, loop.step, loop.failed_noise
    z, log_det = forward_and_log_det(q.chain, noise, q.values())
    z = q.frame.forward(z)
    bad = np.argwhere(~np.isfinite(z))
    if len(bad):
        draw, coordinate = bad[0]
        slot = next(s for s in approx.density.slots if coordinate < s.slice.stop)
        return (
            f"  the flow: coordinate {coordinate - slot.slice.start} of {slot.name!r} is "
            f"{z[draw, coordinate]} at draw {draw}"
        )
    if not np.isfinite(log_det).all():
        return "  the flow: its log-determinant is not finite"
    outputs = [step.loss, *step.grads.values()]
    try:
        replay = pytensor.function(
            [step.noise],
            outputs,
            mode=loop.mode if has_loop(outputs) else NUMPY,
            on_unused_input="ignore",
        )
        loss, *grads = replay(noise)
        if not np.isfinite(loss):
            return why_not_finite(approx.density.replaced(replacements), z)
    except Exception as error:  # whatever the model's Ops raise is the answer
        return f"  the log density raises {_brief(error)}"
    for name, grad in step.by_parameter(dict(zip(step.grads, grads, strict=True))).items():
        bad = np.argwhere(~np.isfinite(grad))
        if len(bad):
            return f"  the gradient with respect to {_place(approx, name, bad[0])} is not finite"
    return "  loss and gradient are finite there: the optimizer's update is not"


def _place(approx: NormalizingFlow, name: str, index: np.ndarray) -> str:
    """Say which parameter an entry of a gradient belongs to."""
    position = 0
    for i, block in enumerate(approx.chain.blocks):
        prefix = f"{i}_{block.layer.word}_"
        if name.startswith(prefix):
            layer = position + index[0]
            return f"{name.removeprefix(prefix)!r} of layer {layer} ({block.layer.word})"
        position += block.count
    return repr(name)


def _brief(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
