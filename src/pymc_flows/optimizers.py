"""Step sizes that change from step to step, for any PyMC optimizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pymc as pm
import pytensor
from pytensor.compile.sharedvalue import SharedVariable

type Optimizer = Callable[..., dict[SharedVariable, Any]]

LEARNING_RATE = 0.01
# A cosine that ends at zero would leave nothing for `refine` to continue with.
FINAL_FRACTION = 0.01


@dataclass(frozen=True, eq=False)
class Rated:
    """An optimizer whose step size is set from outside, step by step.

    Attributes
    ----------
    optimizer : callable
        ``(grads, params) -> updates``.
    rate : SharedVariable or None
        Stands for the step size in the updates; None if the optimizer keeps it to itself.
    peak : float
        Step size at the first step.
    decays : bool
        Cosine decay from ``peak`` to `FINAL_FRACTION` of it; False keeps it constant.
    """

    optimizer: Optimizer
    rate: SharedVariable | None
    peak: float
    decays: bool

    def rates(self, first: int, n: int, total: int) -> np.ndarray:
        """Step sizes of ``n`` steps after the first ``first`` of ``total``."""
        if not self.decays:
            return np.full(n, self.peak)
        done = np.arange(first, first + n) / max(total, 1)
        factor = FINAL_FRACTION + (1 - FINAL_FRACTION) * 0.5 * (1 + np.cos(np.pi * done))
        return self.peak * factor

    def final(self, total: int) -> float:
        """Step size of the last of ``total`` steps."""
        return float(self.rates(max(total - 1, 0), 1, total)[0])


def rated(optimizer: Optimizer | None) -> Rated:
    """Wrap an optimizer; None is the default: Adam with cosine decay.

    A PyMC optimizer made without gradients, ``pm.adam(learning_rate=.01)``, is a partial whose
    step size can be replaced by a variable, so that `refine` can change it without compiling.
    """
    decays = optimizer is None
    if optimizer is None:
        optimizer = pm.adam(learning_rate=LEARNING_RATE)
    keywords = optimizer.keywords if isinstance(optimizer, partial) else {}
    learning_rate = keywords.get("learning_rate")
    if isinstance(learning_rate, bool) or not isinstance(learning_rate, int | float | np.number):
        return Rated(optimizer, None, 0.0, decays=False)
    value = np.asarray(learning_rate, dtype=pytensor.config.floatX)
    rate = pytensor.shared(value, name="learning_rate", shape=())
    return Rated(
        partial(optimizer, learning_rate=rate), rate, float(learning_rate), decays=decays
    )
