"""Step sizes that change from step to step, for any PyMC optimizer."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pymc as pm
import pytensor
from pymc.variational import updates as pymc_updates
from pytensor.compile.sharedvalue import SharedVariable

from pymc_flows.errors import ArgumentError

# All of PyMC's.
ELEMENTWISE = (
    pymc_updates.adadelta,
    pymc_updates.adagrad,
    pymc_updates.adagrad_window,
    pymc_updates.adam,
    pymc_updates.adamax,
    pymc_updates.momentum,
    pymc_updates.nesterov_momentum,
    pymc_updates.rmsprop,
    pymc_updates.sgd,
)

type Optimizer = Callable[..., dict[SharedVariable, Any]]

LEARNING_RATE = 0.01
# A cosine that ends at zero would leave nothing for `refine` to continue with.
FINAL_FRACTION = 0.01


@dataclass(frozen=True)
class Schedule:
    """Step sizes by step.

    Attributes
    ----------
    peak : float
        Step size at the first step.
    decay_steps : int
        Length of the cosine decay to `FINAL_FRACTION` of the peak, which is the step size from
        then on; 0 for no decay.
    """

    peak: float
    decay_steps: int = 0

    def rates(self, first: int, n: int) -> np.ndarray:
        """Step sizes (n,) of the steps after the first ``first``."""
        if not self.decay_steps:
            return np.full(n, self.peak)
        last = self.decay_steps - 1
        done = np.minimum(np.arange(first, first + n), last) / max(last, 1)
        return self.peak * (
            FINAL_FRACTION + (1 - FINAL_FRACTION) * 0.5 * (1 + np.cos(np.pi * done))
        )


@dataclass(frozen=True, eq=False)
class Rated:
    """An optimizer whose step size is set from outside, step by step.

    Attributes
    ----------
    optimizer : callable
        ``(grads, params) -> updates``.
    rate : SharedVariable or None
        Stands for the step size in the updates; None if the optimizer keeps it to itself.
    schedule : Schedule
        The step sizes.
    is_elementwise : bool
        Whether an update of an entry depends on that entry and its gradients alone.
    recipe : dict, optional
        What `from_recipe` makes the optimizer from, as JSON has it; None if it is code.
    """

    optimizer: Optimizer
    rate: SharedVariable | None
    schedule: Schedule
    is_elementwise: bool = False
    recipe: dict[str, Any] | None = None


def rated(optimizer: Optimizer | None, n: int) -> Rated:
    """Prepare an optimizer for a fit of ``n`` steps; None is the default, Adam with cosine decay.

    A PyMC optimizer made without gradients, ``pm.adam(learning_rate=.01)``, is a partial whose
    step size can be replaced by a variable, so that it can change without compiling. Of any other
    callable nothing is assumed.
    """
    if optimizer is not None and not callable(optimizer):
        raise ArgumentError(
            f"obj_optimizer must be callable, such as pm.adam(learning_rate=.01), got {optimizer!r}"
        )
    schedule = Schedule(0.0)
    if optimizer is None:
        optimizer = pm.adam(learning_rate=LEARNING_RATE)
        schedule = Schedule(LEARNING_RATE, decay_steps=n)
    made = partial(optimizer) if optimizer in ELEMENTWISE else optimizer
    if isinstance(made, partial) and made.func in ELEMENTWISE:
        recipe = _recipe(made)
        learning_rate = made.keywords.get("learning_rate")
        if isinstance(learning_rate, int | float | np.number):
            value = np.asarray(learning_rate, dtype=pytensor.config.floatX)
            rate = pytensor.shared(value, name="learning_rate", shape=())
            schedule = Schedule(float(learning_rate), schedule.decay_steps)
            optimizer = partial(made, learning_rate=rate)
            return Rated(optimizer, rate, schedule, is_elementwise=True, recipe=recipe)
        return Rated(optimizer, None, schedule, is_elementwise=True, recipe=recipe)
    return Rated(optimizer, None, schedule)


def _recipe(optimizer: partial[Any]) -> dict[str, Any] | None:
    """Name and keywords of one of PyMC's optimizers, if all of them are plain numbers."""
    numbers = {k: v for k, v in optimizer.keywords.items() if _is_number(v)}
    if optimizer.args or numbers.keys() != optimizer.keywords.keys():
        return None
    plain = {k: v.item() if isinstance(v, np.number) else v for k, v in numbers.items()}
    return {"name": optimizer.func.__name__, "keywords": plain}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def from_recipe(recipe: dict[str, Any]) -> Optimizer:
    """Make the optimizer again; the recipe may come from a file.

    Raises
    ------
    KeyError, TypeError, ValueError
        If it is not one of PyMC's with plain numbers.
    """
    function = {f.__name__: f for f in ELEMENTWISE}[recipe["name"]]
    keywords = dict(recipe["keywords"])
    known = inspect.signature(function).parameters
    for name, value in keywords.items():
        if name not in known or not _is_number(value):
            raise ValueError(f"{recipe['name']} takes no {name}={value!r}")
    return partial(function, **keywords)
