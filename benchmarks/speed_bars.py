"""The bars of `benchmarks.speed`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks._common import Check, Row
from benchmarks.workloads import Workload

type Rates = Mapping[str, Mapping[str, np.ndarray]]
"""Steps per second by label of the workload, peer and repeat."""

OURS = ("JAX", "numba")
BY_HAND_EACH, BY_HAND_MEDIAN = 0.8, 1.0
FLOWJAX = 15.0
NUMPYRO = 1.0
# By group of the workload and number of draws.
ADVI = {
    ("W7", 1): 30.0,
    ("W7", 10): 20.0,
    ("W7", 100): 5.0,
    ("W6 500x10", 1): 5.0,
    ("W6 500x10", 10): 5.0,
    ("W6 500x10", 100): 3.0,
    ("W6 5000x50", 1): 1.2,
    ("W6 5000x50", 10): 1.2,
    ("W6 5000x50", 100): 1.2,
}
C_LOOP = {"W1": 0.4, "W2": 0.4, "W3": 0.3, "W4": 0.4}
PYMC3 = {"JAX": 65.0, "numba": 42.0}
DEFAULT_WITHIN, DEFAULT_SHARE = 0.1, 0.8

# Steps per CPU second on another machine (one core of an AMD EPYC with AVX-512, float64); PyMC3 by
# wall time. Only ratios to hand-written JAX carry over to this one.
ELSEWHERE: dict[str, dict[str, float]] = {
    "W1 planar*2, 1 draw": {"by hand": 1.6e6, "C loop": 4.3e6, "flowjax": 1.7e3},
    "W2 planar*8, 100 draws": {
        "by hand": 62e3,
        "C loop": 132e3,
        "flowjax": 1.7e3,
        "PyMC3 NFVI": 900.0,
    },
    "W3 planar*10, 10 draws": {"by hand": 120e3, "C loop": 394e3, "flowjax": 1.5e3},
    "W4 planar*32, 10 draws": {"by hand": 26e3, "C loop": 205e3},
    "W6 500x10 scale-loc, 1 draw": {"by hand": 106e3, "NumPyro": 108e3},
    "W6 500x10 scale-loc, 10 draws": {"by hand": 10e3, "NumPyro": 10e3},
    "W6 500x10 scale-loc, 100 draws": {"by hand": 1.4e3, "NumPyro": 1.6e3},
    "W6 5000x50 scale-loc, 10 draws": {"by hand": 0.77e3, "NumPyro": 1.0e3},
}


@dataclass(frozen=True)
class Measured:
    """The rates of one workload.

    Attributes
    ----------
    workload : Workload
    rates : mapping of str to ndarray
        Steps per second by peer and repeat.
    """

    workload: Workload
    rates: Mapping[str, np.ndarray]

    def ratio(self, a: str, b: str) -> float | None:
        """How many times as fast a is as b; None if one of them was not measured."""
        if a not in self.rates or b not in self.rates:
            return None
        return float(np.median(self.rates[a] / self.rates[b]))

    @property
    def better(self) -> str | None:
        """The faster of the library's backends, if both were measured."""
        if not set(OURS) <= set(self.rates):
            return None
        return max(OURS, key=lambda name: float(np.median(self.rates[name])))

    @property
    def elsewhere(self) -> Mapping[str, float]:
        """Rates on another machine, by peer."""
        return ELSEWHERE.get(self.workload.label, {})

    def scaled_ratio(self, a: str, there: str) -> float | None:
        """How many times as fast a is here as a peer there, in terms of hand-written JAX."""
        ratio = self.ratio(a, "by hand")
        if ratio is None or there not in self.elsewhere:
            return None
        return ratio * self.elsewhere["by hand"] / self.elsewhere[there]


def at_least(what: str, value: float | None, bar: float) -> list[Check]:
    """The check of a lower bound, if there is something to check."""
    return [] if value is None else [Check(what, value, f"≥ {bar:g}", value >= bar)]


def all_checks(
    workloads: Sequence[Workload], rates: Rates, chosen: Mapping[str, str]
) -> list[Check]:
    """Checks of everything that was measured."""
    runs = [Measured(w, rates[w.label]) for w in workloads if w.label in rates]
    return [
        *against_hand(runs),
        *against_peers(runs),
        *against_advi(runs),
        *against_elsewhere(runs),
        *default_backend(runs, chosen),
    ]


def against_hand(runs: Sequence[Measured]) -> list[Check]:
    """JAX against hand-written JAX: each workload, and the median."""
    checks, ratios = [], []
    for run in runs:
        what = f"{run.workload.label}: JAX : by hand"
        if (ratio := run.ratio("JAX", "by hand")) is not None:
            ratios.append(ratio)
            checks += at_least(what, ratio, BY_HAND_EACH)
    median = float(np.median(ratios)) if ratios else None
    what = f"JAX : by hand, median of {len(ratios)} workloads"
    return checks + at_least(what, median, BY_HAND_MEDIAN)


def against_peers(runs: Sequence[Measured]) -> list[Check]:
    """JAX against flowjax's trainer and NumPyro."""
    checks = []
    for run in runs:
        label = run.workload.label
        if run.workload.group in ("W1", "W2", "W3"):
            checks += at_least(f"{label}: JAX : flowjax", run.ratio("JAX", "flowjax"), FLOWJAX)
        checks += at_least(f"{label}: JAX : NumPyro", run.ratio("JAX", "NumPyro"), NUMPYRO)
    return checks


def against_advi(runs: Sequence[Measured]) -> list[Check]:
    """The better backend against `pm.fit` on its default backend."""
    checks = []
    for run in runs:
        bar = ADVI.get((run.workload.group, run.workload.draws))
        if run.workload.is_mean_field and bar is not None and run.better is not None:
            what = f"{run.workload.label}: {run.better}, the better : pm.fit"
            checks += at_least(what, run.ratio(run.better, "pm.fit"), bar)
    return checks


def against_elsewhere(runs: Sequence[Measured]) -> list[Check]:
    """Against programs that ran on another machine, scaled by hand-written JAX there and here."""
    checks = []
    for run in runs:
        group = run.workload.group
        for name, bar in PYMC3.items():
            what = f"{run.workload.label}: {name} : PyMC3 NFVI, scaled"
            checks += at_least(what, run.scaled_ratio(name, "PyMC3 NFVI"), bar)
        if group in C_LOOP and run.better is not None:
            what = f"{run.workload.label}: {run.better}, the better : C loop, scaled"
            checks += at_least(what, run.scaled_ratio(run.better, "C loop"), C_LOOP[group])
    return checks


def default_backend(runs: Sequence[Measured], chosen: Mapping[str, str]) -> list[Check]:
    """How often the backend of a fit that names none is about as fast as the better one."""
    near = []
    for run in runs:
        if run.better is not None:
            ratio = run.ratio(chosen[run.workload.label], run.better)
            near.append(ratio is not None and ratio >= 1 - DEFAULT_WITHIN)
    share = float(np.mean(near)) if near else None
    what = f"share of {len(near)} workloads with the default backend within 10 % of the better"
    return at_least(what, share, DEFAULT_SHARE)


def compared_elsewhere(workloads: Sequence[Workload], rates: Rates) -> list[Row]:
    """Rates of peers relative to hand-written JAX, here and on another machine."""
    rows: list[Row] = []
    for workload in workloads:
        run = Measured(workload, rates.get(workload.label, {}))
        for name, there in run.elsewhere.items():
            here = run.ratio(name, "by hand")
            if name == "by hand" or here is None:
                continue
            expected = there / run.elsewhere["by hand"]
            rows.append(
                {
                    "workload": workload.label,
                    "peer : by hand": name,
                    "here": here,
                    "there": expected,
                    "within 25 %": "yes" if 0.75 <= here / expected <= 1.25 else "NO",
                }
            )
    return rows
