"""How far a fit is: steps, schedules, and the compiled loop."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import numpy as np

from pymc_flows.backends.ops import brief
from pymc_flows.support.arguments import as_count, check_positive
from pymc_flows.training.annealing import CURVES, Ramp
from pymc_flows.training.config import FitConfig, call_interval
from pymc_flows.training.loop import MAX_CHUNK, MAX_FAILURES, Chunk, Step, TrainingLoop
from pymc_flows.training.objectives import Objective
from pymc_flows.training.optimizers import CURVES as SCHEDULES
from pymc_flows.training.optimizers import Schedule
from pymc_flows.training.stopping import Plateau

_log = logging.getLogger(__name__)

# An interrupt waits for the end of a call, so a call should take about this long.
CHUNK_SECONDS = 0.25
_COUNTS = ("i", "n", "done", "failed", "lost", "every")


class FitState:
    """What `NFVI.refine` continues from.

    Parameters
    ----------
    objective : Objective
    config : FitConfig
        With the backend and the gradient that were chosen.
    loop : TrainingLoop

    Attributes
    ----------
    i : int
        Steps so far.
    n, done, failed, lost : int
        Of the last run: steps planned, steps taken, steps taken that failed, and draws that the
        others left out.
    chunk : int
        Steps of the next call, unless something else limits them.
    schedule : Schedule
    ramp : Ramp, optional
        Inverse temperatures.
    path_from : int, optional
        Step after which the path gradient is used, where the loop has both.
    plateau : Plateau, optional
        The rule by which the step size begins to decay; None once it does.
    callbacks : list of callable
    checkpoint : Path, optional
        The file of the fit.
    every : int
        Steps between checkpoints; 0 for none.
    is_interrupted : bool
        Whether a Ctrl-C ended the last run.
    """

    def __init__(self, objective: Objective, config: FitConfig, loop: TrainingLoop):
        self.objective, self.config, self.loop = objective, config, loop
        self.i = self.n = self.done = self.failed = self.lost = 0
        self.chunk = 1
        self.schedule = config.step_sizes()
        self.ramp = config.ramp()
        self.path_from = config.n // 2 if config.gradient == "switch" else None
        self.plateau = config.stop
        self.callbacks = list(config.callbacks)
        self.checkpoint = None if config.checkpoint is None else Path(config.checkpoint)
        self.every = 0 if self.checkpoint is None else config.every
        self.is_interrupted = False
        # Makes the loop on another backend; None after the first call.
        self._instead: Callable[[Exception], tuple[FitConfig, TrainingLoop]] | None = None

    @classmethod
    def prepare(
        cls,
        objective: Objective,
        config: FitConfig,
        entropy: Callable[[], int],
        max_chunk: int | None = None,
    ) -> FitState:
        """Check everything, then build the loop, which is not compiled yet.

        ``entropy`` is called after all checks for the seed of base noise and the model's own
        randomness. A call takes at most ``max_chunk`` steps, by default the interval of callbacks.
        """
        every = call_interval(config.step_callbacks)
        chosen, step = objective.step(config)
        seed = entropy()
        if chosen.devices is not None:
            params = {str(p.name): p.get_value() for p in objective.q.params}
            chosen.devices.check_same(
                {"random_seed=": seed, "start=": objective.q.center(), "n=": config.n, **params}
            )

        def loop_of(config: FitConfig, step: Step) -> TrainingLoop:
            noise_seed, model_seed, rows_seed = np.random.SeedSequence(seed).spawn(3)
            return TrainingLoop(
                step,
                backend=str(config.backend),
                noise_seed=noise_seed,
                model_seed=model_seed,
                max_chunk=max_chunk or every or MAX_CHUNK,
                compile_kwargs=config.compile_kwargs,
                source=objective.source,
                devices=config.devices,
                batches=objective.batches(int(rows_seed.generate_state(1)[0])),
            )

        def on_numba(error: Exception) -> tuple[FitConfig, TrainingLoop]:
            _log.warning(
                "JAX cannot compile the fit (%s). Numba does, which takes longer.", brief(error)
            )
            other, step = objective.step(replace(config, backend="numba"))
            return other, loop_of(other, step)

        is_open = config.backend is config.devices is None and "mode" not in config.compile_kwargs
        instead = on_numba if is_open and chosen.backend == "jax" else None
        try:
            loop = loop_of(chosen, step)
        except Exception as error:  # whatever JAX or its conversion raises
            if instead is None:
                raise
            chosen, loop = instead(error)
        state = cls(objective, chosen, loop)
        state._instead = instead
        return state

    def compile(self) -> None:
        """Compile the loop; on numba, as the log then says, if JAX fails and was not asked for."""
        instead, self._instead = self._instead, None
        try:
            self.loop.compile()
        except Exception as error:  # whatever JAX raises
            if instead is None or self.loop.is_compiled:
                raise
            self.config, self.loop = instead(error)
            self.loop.compile()

    @property
    def has_rate(self) -> bool:
        """Whether the schedule sets the optimizer's step size."""
        return self.config.optimizer.rate is not None

    def settings(self, steps: int) -> np.ndarray:
        """Settings (steps, settings) of the next steps, for `TrainingLoop.run`."""
        columns = []
        if self.has_rate:
            columns.append(self.schedule.rates(self.i, steps))
        if self.ramp is not None:
            columns.append(self.ramp.values(self.i, steps))
        if self.path_from is not None:
            columns.append(np.arange(self.i, self.i + steps) >= self.path_from)
        return np.column_stack(columns) if columns else np.zeros((steps, 0))

    # ---------------------------------------------------------------------------------- changes

    def begin(self, n: int, learning_rate: float | None = None) -> None:
        """Plan ``n`` further steps, at a constant step size if one is given."""
        if learning_rate is not None:
            self.schedule = Schedule(check_positive("learning_rate", learning_rate))
        self.n, self.done, self.failed, self.lost = n, 0, 0, 0

    def go_on(self) -> None:
        """Begin, or go on with, the steps that are planned."""
        self.is_interrupted = False
        if self.loop.failures >= MAX_FAILURES:  # a fit that gave up gets another chance
            self.loop.failures = 0

    def take(self, chunk: Chunk) -> None:
        """Count steps that were taken."""
        n = len(chunk.losses)
        self.done += n
        self.i += n
        self.failed += int(chunk.failed.sum())
        self.lost += chunk.lost

    def search_failure(self, steps: int) -> None:
        """Take fewer steps per call, since one of these raised."""
        self.chunk = max(1, steps // 8)

    def pace(self, steps: int, seconds: float) -> None:
        """Let calls take about `CHUNK_SECONDS`, given the time of one call."""
        # Skipped steps may take most of the time of a call of few steps.
        idle = self.loop.idle_seconds * (1 - steps / self.loop.max_chunk)
        wanted = CHUNK_SECONDS * steps / max(seconds - idle, 1e-9)
        self.chunk = max(1, min(int(wanted), 8 * steps, self.loop.max_chunk))
        if self.config.devices is not None:
            self.chunk = self.config.devices.least(self.chunk)

    def settle(self, decay: int) -> None:
        """Let the step size decay in as many last steps."""
        self.schedule = replace(self.schedule, first=self.i)
        self.n, self.plateau = self.done + decay, None

    def stop(self) -> None:
        """Leave nothing to resume."""
        self.n = self.done

    def keep_in(self, path: str | os.PathLike[str]) -> None:
        """Write further checkpoints to this file, if there were any."""
        if self.every:
            self.checkpoint = Path(path)

    def interrupt(self) -> None:
        """Note that a Ctrl-C ended the run."""
        self.is_interrupted = True

    # ---------------------------------------------------------------------------------- keeping

    def state_dict(self) -> dict[str, Any]:
        """The state for a file, as JSON; ``arrays`` are those of the loop."""
        return {
            **{name: getattr(self, name) for name in _COUNTS},
            "schedule": astuple(self.schedule),
            "plateau": self.plateau and astuple(self.plateau)[:3],
            "ramp": self.ramp and astuple(self.ramp),
            "path_from": self.path_from,
            **self.loop.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any], array: Callable[..., np.ndarray]) -> None:
        """Restore a `state_dict` of a fit with the same arguments.

        Raises
        ------
        AttributeError, KeyError, TypeError, ValueError, OverflowError
            If it is malformed.
        """
        counts = {name: as_count(state[name]) for name in _COUNTS}
        if not counts["failed"] <= counts["done"] <= min(counts["i"], counts["n"]):
            raise ValueError("the numbers of steps contradict each other")
        if counts["lost"] > counts["done"] * self.config.obj_n_mc:
            raise ValueError("more draws were left out than there were")
        peak, steps, curve, first = state["schedule"]
        if curve not in SCHEDULES:
            raise ValueError(f"{curve!r} is no schedule")
        self.schedule = Schedule(float(peak), as_count(steps), curve, as_count(first))
        if self.ramp is not None:
            self.ramp = as_ramp(*state["ramp"])
        if self.path_from is not None:
            self.path_from = as_count(state["path_from"])
        if state["plateau"] is not None:
            tolerance, window, decay = state["plateau"]
            self.plateau = Plateau(float(tolerance), as_count(window), as_count(decay))
        self.loop.load_state_dict(state, array)
        for name, value in counts.items():
            setattr(self, name, value)

    def __getstate__(self) -> dict[str, object]:
        """Leave out the file: a copy must not write to it."""
        return {**self.__dict__, "checkpoint": None, "every": 0, "_instead": None}


def as_ramp(steps: object, start: object, curve: Any) -> Ramp:
    """Return the inverse temperatures of a file, or raise `ValueError`."""
    if curve not in CURVES or not isinstance(start, float) or not 0 < start <= 1:
        raise ValueError(f"{start!r} and {curve!r} make no inverse temperatures")
    return Ramp(max(1, as_count(steps)), start, curve)
