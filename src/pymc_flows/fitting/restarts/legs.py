"""One restart, in any process: all of its steps, or some of them (a leg)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pymc as pm

from pymc_flows.approximation import contents
from pymc_flows.fitting.checkpoint import fit_contents, read_anchor, restore_fit
from pymc_flows.fitting.nfvi import NFVI
from pymc_flows.fitting.restarts.single import inference_of, taken_up
from pymc_flows.formula import Formula
from pymc_flows.io.files import Content
from pymc_flows.support.compat import default_progress_theme
from pymc_flows.training.config import FitConfig

# Arguments of `fit` that `NFVI.fit` does not have.
_OF_FIT = ("inf_kwargs", "hyper", "field", "seconds", "quality")


@dataclass(frozen=True)
class Fitted:
    """A fit without its model, as processes exchange it, and its wall time in seconds."""

    content: Content
    seconds: float


def fit_one(shared: tuple[Any, ...], task: tuple[int, Any]) -> Fitted:
    """Fit once, in any process."""
    (fit, n, arguments), (seed, start) = shared, task
    begin = time.perf_counter()
    approx = fit(n, random_seed=seed, start=start, **arguments)
    return Fitted(contents(approx), time.perf_counter() - begin)


@dataclass(frozen=True)
class Fits:
    """What all fits of a formula share: steps, model, and further arguments of `fit`."""

    n: int
    model: pm.Model
    formula: Formula
    arguments: Mapping[str, Any]

    @property
    def config(self) -> FitConfig:
        """The arguments of each fit."""
        own = {name: value for name, value in self.arguments.items() if name not in _OF_FIT}
        return FitConfig(n=self.n, **own)


def prepared(fits: Fits, task: tuple[int, Any]) -> NFVI:
    """The inference that `fit` makes with this seed and start, before its first step."""
    seed, start = task
    inference = inference_of(
        fits.formula,
        model=fits.model,
        start=start,
        random_seed=seed,
        inf_kwargs=fits.arguments.get("inf_kwargs"),
    )
    inference.prepare(fits.config)
    return inference


@dataclass(frozen=True)
class Leg:
    """Some of the steps of a fit, up to ``until``; ``content`` is the result of the leg before."""

    seed: int
    start: Any
    content: Content | None
    until: int


def fit_leg(fits: Fits, leg: Leg) -> Fitted:
    """Take the steps of a leg, with the same bits as a fit that takes all steps at once."""
    begin = time.perf_counter()
    if leg.content is None:
        inference = prepared(fits, (leg.seed, leg.start))
    else:
        kl_weight, anchor = float(leg.content.record["fit"]["beta"]), read_anchor(leg.content)
        inference = taken_up(leg.content, fits.model, fits.config, kl_weight, anchor)
        restore_fit(inference.approx, inference.state, leg.content)
    inference.state.n = leg.until
    outcome = inference.go_on(default_progress_theme, show=False)
    if leg.until == fits.n:
        outcome.tell(stacklevel=1)
    content = fit_contents(inference.approx, inference.state, inference.hist, every=0)
    return Fitted(content, time.perf_counter() - begin)
