"""What a fit costs among many of one model: `fit_many`, and calls of `fit` one by one.

The model is a hierarchy of groups with a normal likelihood, built anew for each call of `fit`.
Calls are measured in one process, where what is compiled serves all of them, in one process with
no compiled function kept from the call before, and in processes of their own, imports apart.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pymc as pm

import pymc_flows as pmf
from benchmarks._common import Check, Parser, Report, Row, say, stopwatch
from benchmarks._process import SINGLE_THREAD, empty_caches, run_child
from pymc_flows.backends.functions import counts, forget

GROUPS, ROWS, DRAWS = 10, 20, 1_000
MANY, CALLS, ALONE = "fit_many", "fit, one by one", "fit, no function kept"
PROCESS = "fit, a process each"
BAR = 10.0
FORMULAS = ("auto", "planar*4-scale-loc")


def data_set(seed: int) -> np.ndarray:
    """Responses (rows,) of groups with means of their own."""
    rng = np.random.default_rng(seed)
    means = 1 + 0.7 * rng.normal(size=GROUPS)
    return np.repeat(means, ROWS) + rng.normal(size=GROUPS * ROWS)


def build(y: np.ndarray) -> pm.Model:
    """A hierarchy, not centred."""
    group = np.repeat(np.arange(GROUPS), ROWS)
    with pm.Model() as model:
        mu, tau = pm.Normal("mu", 0, 5), pm.HalfNormal("tau", 2)
        offset = pm.Normal("offset", 0, 1, shape=GROUPS)
        pm.Normal("y", mu + tau * offset[group], pm.HalfNormal("sigma", 2), observed=y)
    return model


def measure(way: str, formula: str, n: int, steps: int) -> Row:
    """Fit to n data sets in one way, after the first, which is not counted."""
    if way == PROCESS:
        return _in_processes(formula, n, steps)
    given = _given(formula, steps)
    forget()
    _fits(way, [data_set(0)], given)
    before = counts()
    with stopwatch() as seconds:
        errors = _fits(way, [data_set(k) for k in range(1, n + 1)], given)
    made = counts().made - before.made
    return {
        "formula": formula,
        "way": way,
        "fits": n,
        "CPU s each": seconds.cpu / n,
        "functions made after the first": made,
        "largest difference of a mean": max(errors),
    }


def _given(formula: str, steps: int) -> dict[str, Any]:
    return {} if formula == "auto" else {"formula": formula, "n": steps}


def _in_processes(formula: str, n: int, steps: int) -> Row:
    """Fit to n data sets in a process each, with the caches on disk of those before."""
    with empty_caches() as caches:
        found = [
            run_child(
                "many",
                ["--formulas", formula, "--steps", steps, "--child", k],
                SINGLE_THREAD | caches,
            )
            for k in range(n + 1)
        ][1:]
    return {
        "formula": formula,
        "way": PROCESS,
        "fits": n,
        "CPU s each": float(np.mean([row["seconds"] for row in found])),
        "functions made after the first": sum(row["made"] for row in found),
        "largest difference of a mean": max(row["error"] for row in found),
    }


def child(formula: str, steps: int, seed: int) -> Row:
    """Fit to one data set in this process."""
    with stopwatch() as seconds:
        [error] = _fits(CALLS, [data_set(seed)], _given(formula, steps))
    return {"seconds": seconds.cpu, "made": counts().made, "error": error}


def _fits(way: str, data: Sequence[np.ndarray], given: dict[str, Any]) -> list[float]:
    """Errors of the mean of μ against the mean of all responses, in standard deviations."""
    if way == MANY:
        many = pmf.fit_many(
            build(data[0]),
            [{"y": y} for y in data],
            draws=DRAWS,
            random_seed=1,
            progressbar=False,
            **given,
        )
        draws = many.tree["posterior"]["mu"].values.reshape(len(data), -1)
    else:
        found = []
        for y in data:
            if way == ALONE:
                forget()
            approx = pmf.fit(model=build(y), random_seed=1, progressbar=False, **given)
            found.append(approx.sample(DRAWS, random_seed=1).posterior["mu"].values.ravel())
        draws = np.stack(found)
    centers = np.array([y.mean() for y in data])
    return list(np.abs(draws.mean(axis=1) - centers) / draws.std(axis=1))


def checks(rows: Sequence[Row]) -> list[Check]:
    """Compare with the bars."""
    found = []
    for formula in dict.fromkeys(row["formula"] for row in rows):
        mine = {row["way"]: row for row in rows if row["formula"] == formula}
        made = mine[MANY]["functions made after the first"]
        found.append(Check(f"{formula}: functions made after the first fit", made, "0", made == 0))
        for way in (CALLS, ALONE, PROCESS):
            ratio = mine[way]["CPU s each"] / mine[MANY]["CPU s each"]
            what = f"{formula}: {way}, CPU time over that of {MANY}"
            found.append(Check(what, ratio, f"≥ {BAR:g}", ratio >= BAR))
    return found


def main(argv: Sequence[str] | None = None) -> Report | None:
    """Measure all ways and save the report."""
    parser = Parser("many", (__doc__ or "").split("\n")[0])
    parser.add_argument("--fits", type=int, default=20, help="data sets (20)")
    parser.add_argument("--steps", type=int, default=2_000, help="of a trained formula (2,000)")
    parser.add_argument("--processes", type=int, default=5, help="data sets of these (5)")
    parser.add_argument("--formulas", nargs="+", default=list(FORMULAS))
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    arguments = parser.read(argv)
    if arguments.child is not None:
        say(json.dumps(child(arguments.formulas[0], arguments.steps, arguments.child)))
        return None
    rows = []
    for formula in arguments.formulas:
        for way in (MANY, CALLS, ALONE, PROCESS):
            n = arguments.processes if way == PROCESS else arguments.fits
            rows.append(measure(way, formula, n, arguments.steps))
            say(", ".join(f"{k} {v}" for k, v in rows[-1].items()))
    report = Report(
        "many",
        (__doc__ or "").split("\n\n")[1].replace("\n", " "),
        {"groups": GROUPS, "rows": GROUPS * ROWS, "draws": DRAWS, "steps": arguments.steps},
        {"Ways": rows},
        checks(rows),
    )
    report.save(arguments)
    return report


if __name__ == "__main__":
    logging.getLogger("pymc_flows").setLevel(logging.ERROR)
    main()
