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
from pymc_flows.support.arguments import check_positive

# All of PyMC's optimizers: an update of an entry depends on that entry and its gradients alone.
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
# Where a cosine ends, as a fraction of the peak; at zero, `refine` could not go on.
FINAL_FRACTION = 0.01
# The one cycle begins at this fraction of the peak, and reaches it after this share of the steps.
FIRST_FRACTION, RISE = 0.04, 0.3
CONSTANT = "constant"


def _cosine(done: np.ndarray) -> np.ndarray:
    return FINAL_FRACTION + (1 - FINAL_FRACTION) * 0.5 * (1 + np.cos(np.pi * done))


def _one_cycle(done: np.ndarray) -> np.ndarray:
    rise = FIRST_FRACTION + (1 - FIRST_FRACTION) * 0.5 * (1 - np.cos(np.pi * done / RISE))
    return np.where(done < RISE, rise, _cosine((done - RISE) / (1 - RISE)))


def _halving(done: np.ndarray) -> np.ndarray:
    return np.where(done < 0.5, 1.0, np.where(done < 0.75, 0.5, 0.25))


CURVES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    CONSTANT: np.ones_like,
    "cosine": _cosine,
    "halving": _halving,
    "one-cycle": _one_cycle,
}
"""Step size as a fraction of the peak, by the share of the steps that is done, 0 to 1."""


@dataclass(frozen=True)
class Schedule:
    """Step sizes by step.

    Attributes
    ----------
    peak : float
        The largest step size.
    steps : int
        Steps of the whole curve, whose last step size is used from then on.
    curve : str
        One of `CURVES`.
    first : int
        Steps before the curve begins; their step size is the peak.
    """

    peak: float
    steps: int = 0
    curve: str = CONSTANT
    first: int = 0

    def rates(self, first: int, n: int) -> np.ndarray:
        """Step sizes (n,) of the steps after the first ``first``."""
        last = max(self.steps - 1, 0)
        i = np.arange(first, first + n) - self.first
        done = np.clip(i, 0, last) / max(last, 1)
        return self.peak * np.where(i < 0, 1.0, CURVES[self.curve](done))


@dataclass(frozen=True, eq=False)
class Rated:
    """An optimizer whose step size is set from outside, step by step.

    Attributes
    ----------
    optimizer : callable
        ``(grads, params) -> updates``.
    rate : SharedVariable or None
        The step size in the updates; None if it cannot be set.
    schedule : Schedule
        The step sizes.
    is_elementwise : bool
        Whether an update of an entry depends on that entry and its gradients alone.
    recipe : dict, optional
        The optimizer as JSON, for `from_recipe`; None if it is code.
    """

    optimizer: Optimizer
    rate: SharedVariable | None
    schedule: Schedule
    is_elementwise: bool = False
    recipe: dict[str, Any] | None = None


def rated(optimizer: Optimizer | None, n: int, curve: str | None = None) -> Rated:
    """Prepare an optimizer for a fit of ``n`` steps; None is the default, Adam.

    ``curve``, one of `CURVES`, says how the step size changes. By default that of the default
    optimizer decays like a cosine, and that of others is constant.

    A PyMC optimizer made without gradients, ``pm.adam(learning_rate=.01)``, is a partial; its step
    size is replaced by a variable, which can change without compiling. Nothing is assumed of any
    other callable.
    """
    if optimizer is not None and not callable(optimizer):
        raise ArgumentError(
            f"obj_optimizer must be callable, such as pm.adam(learning_rate=.01), got {optimizer!r}"
        )
    if curve is not None and curve not in CURVES:
        raise ArgumentError(f"schedule must be one of {', '.join(CURVES)}, got {curve!r}")
    if optimizer is None:
        optimizer = pm.adam(learning_rate=LEARNING_RATE)
        curve = curve or "cosine"
    made = partial(optimizer) if optimizer in ELEMENTWISE else optimizer
    known = made if isinstance(made, partial) and made.func in ELEMENTWISE else None
    recipe = None if known is None else _recipe(known)
    size = None if known is None else known.keywords.get("learning_rate")
    if known is None or not isinstance(size, int | float | np.number):
        if curve is not None:
            raise ArgumentError(
                f"schedule={curve!r} needs an optimizer with a step size of its own, a number, "
                "like pm.adam(learning_rate=.01)"
            )
        return Rated(
            optimizer, None, Schedule(0.0), is_elementwise=known is not None, recipe=recipe
        )
    peak = check_positive("learning_rate of obj_optimizer", size)
    value = np.asarray(size, dtype=pytensor.config.floatX)
    rate = pytensor.shared(value, name="learning_rate", shape=())
    schedule = Schedule(peak, n, curve or CONSTANT)
    changed = partial(known, learning_rate=rate)
    return Rated(changed, rate, schedule, is_elementwise=True, recipe=recipe)


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
