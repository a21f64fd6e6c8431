"""One restart, in whatever process."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from pymc_flows.approximation import contents
from pymc_flows.io.files import Content


@dataclass(frozen=True)
class Fitted:
    """A fit as it travels: without its model.

    Attributes
    ----------
    content : Content
    seconds : float
        Wall time.
    """

    content: Content
    seconds: float


def fit_one(shared: tuple[Any, ...], task: tuple[int, Any]) -> Fitted:
    """Fit once; in whatever process."""
    (fit, n, arguments), (seed, start) = shared, task
    begin = time.perf_counter()
    approx = fit(n, random_seed=seed, start=start, **arguments)
    return Fitted(contents(approx), time.perf_counter() - begin)
