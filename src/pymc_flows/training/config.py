"""The arguments of a fit, checked in one place."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from pymc.variational.callbacks import CheckParametersConvergence
from pytensor.graph.basic import Variable

from pymc_flows.callbacks import Tracker
from pymc_flows.devices import as_devices
from pymc_flows.errors import ArgumentError
from pymc_flows.io.files import check_target
from pymc_flows.support.arguments import check_integer, check_list, renamed, warn_unused
from pymc_flows.support.compat import default_progress_theme
from pymc_flows.support.seeds import RandomState
from pymc_flows.training.annealing import Ramp, as_anneal
from pymc_flows.training.optimizers import Optimizer, Rated, Schedule, rated
from pymc_flows.training.stopping import as_plateau

type Callback = Callable[[Any, Any, int], object]

# Estimates of the gradient; 'switch' is 'total' first, then 'path'.
GRADIENTS = ("total", "path", "switch")
CHECKPOINT_EVERY = 1_000
# Stack level of the caller of `NFVI.fit` for warnings, through `__init__` and `__post_init__`.
_TO_CALLER = 5
# Arguments that are code, which files cannot hold.
_CODE = ("more_obj_params", "more_updates", "more_replacements", "compile_kwargs")


@dataclass(frozen=True, eq=False, kw_only=True)
class FitConfig:
    """The arguments of a fit, with the names and meanings of those of `NFVI.fit`.

    They are checked, and brought to one form: lists and dicts instead of None, a `Plateau`, an
    `Anneal`.

    Raises
    ------
    ArgumentError
        If an argument cannot be used.
    """

    n: int = 10_000
    score: Any = None
    callbacks: Any = None
    progressbar: bool = True
    progressbar_theme: Any = default_progress_theme
    backend: str | None = None
    include_transformed: bool = False
    random_seed: RandomState = None
    checkpoint: str | os.PathLike[str] | None = None
    every: Any = None
    obj_n_mc: Any = 64
    obj_optimizer: Optimizer | None = None
    schedule: str | None = None
    stop: Any = None
    anneal: Any = None
    gradient: str | None = None
    more_obj_params: Any = None
    more_updates: Any = None
    more_replacements: Mapping[Variable, Variable] | None = None
    total_grad_norm_constraint: Any = None
    compile_kwargs: Any = None
    devices: Any = None
    fn_kwargs: InitVar[Any] = None
    tf_n_mc: InitVar[Any] = None
    test_optimizer: InitVar[Any] = None
    more_tf_params: InitVar[Any] = None

    def __post_init__(
        self, fn_kwargs: Any, tf_n_mc: Any, test_optimizer: Any, more_tf_params: Any
    ) -> None:
        """Check what can be checked without a model."""
        checked: dict[str, Any] = {"n": check_integer("n", self.n, minimum=0)}
        if self.every is not None and self.checkpoint is None:
            raise ArgumentError("every= says how often checkpoint= is written: give both")
        if self.checkpoint is not None:
            every = CHECKPOINT_EVERY if self.every is None else self.every
            checked["every"] = check_integer("every", every)
            check_target(self.checkpoint)
        if self.gradient not in (None, *GRADIENTS):
            known = ", ".join(GRADIENTS)
            raise ArgumentError(f"gradient must be one of {known}, got {self.gradient!r}")
        checked["anneal"], checked["stop"] = as_anneal(self.anneal), as_plateau(self.stop)
        checked["score"] = self.score is None or bool(self.score)
        if checked["stop"] and (self.schedule is not None or not checked["score"]):
            raise ArgumentError("stop= sets the step sizes and needs the losses: give no schedule=")
        unused = {"tf_n_mc": tf_n_mc, "test_optimizer": test_optimizer}
        warn_unused(**unused, more_tf_params=more_tf_params, stacklevel=_TO_CALLER)
        checked["callbacks"] = check_list("callbacks", self.callbacks)
        for callback in checked["callbacks"]:
            if not callable(callback):
                raise ArgumentError(f"a callback must be callable, got {callback!r}")
        draws = 1 if self.obj_n_mc is None else self.obj_n_mc
        checked["obj_n_mc"] = check_integer("obj_n_mc", draws)
        checked["more_obj_params"] = list(self.more_obj_params or [])
        checked["more_updates"] = dict(self.more_updates or {})
        checked["compile_kwargs"] = renamed(fn_kwargs, self.compile_kwargs, stacklevel=_TO_CALLER)
        norm = self.total_grad_norm_constraint
        if isinstance(norm, int | float | np.number) and not norm > 0:
            raise ArgumentError(f"total_grad_norm_constraint must be positive, got {norm!r}")
        checked["devices"] = as_devices(self.devices)
        if self.devices is not None:
            self._check_devices(checked)
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        self.optimizer  # noqa: B018 - checks optimizer and schedule

    def _check_devices(self, checked: Mapping[str, Any]) -> None:
        """Refuse arguments that devices= cannot be used with."""
        if self.backend == "numba" or checked["compile_kwargs"]:
            what = "compile_kwargs=" if checked["compile_kwargs"] else "backend='numba'"
            raise ArgumentError(f"devices= are those of JAX: leave out {what}")
        if not checked["devices"].is_local:
            names = ("more_obj_params", "more_updates", "more_replacements", "checkpoint")
            given = [name for name in names if getattr(self, name)]
            if given:
                raise ArgumentError(
                    f"devices= of several processes cannot be used with {', '.join(given)}"
                )

    @cached_property
    def optimizer(self) -> Rated:
        """The optimizer, with a step size that is set from outside."""
        return rated(self.obj_optimizer, self.n, self.schedule)

    @property
    def trackers(self) -> list[Tracker]:
        """The callbacks that record inside the loop."""
        return [c for c in self.callbacks if isinstance(c, Tracker)]

    @property
    def step_callbacks(self) -> list[Callback]:
        """The callbacks that are called between steps."""
        return [c for c in self.callbacks if not isinstance(c, Tracker)]

    def step_sizes(self) -> Schedule:
        """The step sizes of all steps; with ``stop=``, as long as the loss has not settled."""
        schedule = self.optimizer.schedule
        if self.stop is None:
            return schedule
        decay = self.stop.decay
        return Schedule(schedule.peak, decay, "cosine", max(0, self.n - decay))

    def ramp(self) -> Ramp | None:
        """Inverse temperatures by step."""
        return None if self.anneal is None else self.anneal.over(self.n)

    def record(self) -> dict[str, Any]:
        """The arguments for a file, as JSON, and the names of those that it cannot hold."""
        norm, optimizer = self.total_grad_norm_constraint, self.optimizer.recipe
        is_number = isinstance(norm, int | float | np.number)
        again = [name for name in _CODE if getattr(self, name)]
        again += ["obj_optimizer"] * (optimizer is None)
        again += ["total_grad_norm_constraint"] * (norm is not None and not is_number)
        return {
            "backend": self.backend,
            "obj_n_mc": self.obj_n_mc,
            "optimizer": optimizer,
            "gradient": self.gradient,
            "score": self.score,
            "total_grad_norm_constraint": float(norm) if is_number else None,
            "again": sorted(again),
        }


def call_interval(callbacks: Sequence[Callback]) -> int:
    """Largest number of steps between calls that misses no callback; 0 without callbacks."""
    return math.gcd(*map(interval_of, callbacks)) if callbacks else 0


def interval_of(callback: Callback) -> int:
    """Steps between calls of a callback: 1, unless it is known to ignore the steps between."""
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
