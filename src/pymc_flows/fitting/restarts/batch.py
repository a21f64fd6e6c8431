"""Restarts as a batch: one compiled loop on JAX takes the steps of all together."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pymc_flows.approximation import contents
from pymc_flows.backends.ops import brief
from pymc_flows.fitting.restarts.legs import Fits, Fitted, prepared
from pymc_flows.model.logp import density_of
from pymc_flows.model.streams import stream_of
from pymc_flows.support.compat import default_progress_theme
from pymc_flows.support.interrupts import Interrupts
from pymc_flows.training.loop import MAX_FAILURES, BatchedLoop, StepError
from pymc_flows.training.progress import FitProgress
from pymc_flows.training.trainer import Trainer
from pymc_flows.workers import Failed, Finished, Tally
from pymc_flows.workers.attempt import Result, attempt

_log = logging.getLogger(__name__)

# Arguments that end fits at different steps, or are objects that fits would have to share.
_NOT_TOGETHER = ("stop", "seconds", "devices", "compile_kwargs", "more_obj_params", "more_updates")


def fit_together(
    fits: Fits | None, tasks: Sequence[tuple[int, Any]], *, show: bool
) -> Tally | None:
    """Fit with each (seed, start) in one loop; ``fits`` is None without a formula.

    None if they cannot be fitted together; the log says why.
    """
    why = _why_not(fits)
    if fits is not None and not why:
        with Interrupts(deferred=False):
            inferences = [attempt(prepared, fits, task) for task in tasks]
        states = [result.value.state for result in inferences if isinstance(result, Finished)]
        if not states:
            return Tally(list(inferences))
        if any(state.config.backend != "jax" for state in states):
            why = "numba compiles the loop"
        elif (loop := BatchedLoop([state.loop for state in states], fits.n)).is_possible:
            try:
                return _Together(inferences, loop, fits.n, show=show).run()
            except StepError as error:
                why = brief(error.__cause__ or error)
        else:
            why = "their graphs differ"
    _log.warning("Restarts are fitted one by one, not as a batch: %s.", why)
    return None


def _why_not(fits: Fits | None) -> str:
    if fits is None or fits.formula.conditional is not None:
        return "only a formula that is trained step by step can be"
    given = [name for name in _NOT_TOGETHER if fits.arguments.get(name)]
    if given:
        return f"{', '.join(given)} was given"
    density = density_of(fits.model)
    if density.is_random or stream_of(density) is not None:
        return "steps see batches of the rows, or the log density is random"
    return ""


class _Together:
    """Inferences whose steps are taken together."""

    def __init__(
        self, inferences: Sequence[Finished | Failed], loop: BatchedLoop, n: int, *, show: bool
    ):
        self._loop, self._n, self._show = loop, n, show
        self._prepared, self._results = inferences, list[Result](inferences)
        self._running = {
            i: result.value for i, result in enumerate(inferences) if isinstance(result, Finished)
        }
        self._trainers = {i: Trainer(inference.state) for i, inference in self._running.items()}

    def run(self) -> Tally:
        """Take all steps; after a Ctrl-C, the results are those of the steps until then."""
        begin, is_interrupted = time.perf_counter(), False
        try:
            self._advance()
        except KeyboardInterrupt:
            is_interrupted = True
        seconds = (time.perf_counter() - begin) / len(self._running)
        for i in self._running:
            found = attempt(self._finish, seconds, i)
            messages = (*self._prepared[i].messages, *found.messages)
            self._results[i] = replace(found, messages=messages)
        return Tally(self._results, is_interrupted)

    def _advance(self) -> None:
        states = [inference.state for inference in self._running.values()]
        label = f"{len(states)} × {states[0].objective.q.formula}"
        trainers, done = list(self._trainers.values()), 0
        with (
            FitProgress(self._n, default_progress_theme, show=self._show, label=label) as bar,
            Interrupts(deferred=False) as interrupts,
        ):
            while done < self._n:
                steps = min(self._loop.steps, self._n - done)
                # The loop skips the steps of fits that failed too often.
                furthest = max(states, key=lambda state: state.i)
                if furthest.loop.failures >= MAX_FAILURES:
                    return
                with Interrupts(deferred=True):
                    chunks = self._loop.run(furthest.settings(steps))
                    for trainer, chunk in zip(trainers, chunks, strict=True):
                        trainer.take(chunk)
                if done == 0:
                    bar.begin()
                done += steps
                bar.update(done, trainers[0].losses)
                interrupts.let_through()

    def _finish(self, seconds: float, i: int) -> Fitted:
        """Keep the losses of a fit, tell its outcome, and return it."""
        inference, trainer = self._running[i], self._trainers[i]
        trainer.check_stuck()
        inference.hist = inference.approx.hist = trainer.losses
        trainer.outcome().tell(stacklevel=1)
        return Fitted(contents(inference.approx), seconds)
