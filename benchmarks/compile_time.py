"""Seconds from the call of `fit` to its first steps, in a process of its own with empty caches.

What is timed in the fresh process is a fit of 100 steps with the defaults on pot1, after
everything is imported. Those 100 steps take next to nothing, which the table shows; a single one
would not do, since XLA simplifies a loop of one step away. `benchmarks.first_step` compares with
hand-written JAX and a warm cache.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks._common import Check, Parser, Report, Row, say, stopwatch
from benchmarks._process import empty_caches, run_child

STEPS = 100


@dataclass(frozen=True)
class Pair:
    """A short and a long formula; the long one may take ``bar`` times as long to compile."""

    backend: str
    short: str
    long: str
    bar: float | None


PAIRS = (
    Pair("jax", "planar*4", "planar*64", 1.3),
    Pair("jax", "hh*4", "hh*100", 1.5),
    Pair("numba", "planar*4", "planar*64", 1.3),
)


def measure(formula: str, backend: str) -> Row:
    """Compile and run once in this process, which must not have compiled anything before."""
    from pymc_flows import NFVI
    from pymc_flows.targets import POTENTIALS

    inference = NFVI(formula, model=POTENTIALS[0].model(), random_seed=0)
    with stopwatch() as imports:
        __import__(backend)
    with stopwatch() as first:
        inference.fit(STEPS, backend=backend, progressbar=False)
    with stopwatch() as again:
        inference.refine(STEPS, progressbar=False)
    return {
        "import_wall": imports.wall,
        "wall": first.wall,
        "cpu": first.cpu,
        "steps_wall": again.wall,
    }


def measure_cold(formula: str, backend: str) -> Row:
    """Call `measure` in a new process whose caches are empty."""
    with empty_caches() as caches:
        return run_child("compile_time", ["--measure", formula, backend], caches)


def compare(pair: Pair, repeats: int) -> tuple[list[Row], Row, Row]:
    """Measure both formulas in turn: table lines, line of the ratio, all single measurements."""
    runs: dict[str, list[Row]] = {pair.short: [], pair.long: []}
    for _ in range(repeats):
        for formula, done in runs.items():
            done.append(measure_cold(formula, pair.backend))
    medians = {
        formula: {key: float(np.median([run[key] for run in done])) for key in done[0]}
        for formula, done in runs.items()
    }
    lines = [
        {
            "backend": pair.backend,
            "formula": formula,
            "CPU s": m["cpu"],
            "wall s": m["wall"],
            "import of the backend, wall s": m["import_wall"],
            f"{STEPS} further steps, wall s": m["steps_wall"],
        }
        for formula, m in medians.items()
    ]
    short, long = medians[pair.short], medians[pair.long]
    ratio = {
        "backend": pair.backend,
        "ratio": f"{pair.long} : {pair.short}",
        "CPU": long["cpu"] / short["cpu"],
        "wall": long["wall"] / short["wall"],
        "wall with import": (long["wall"] + long["import_wall"])
        / (short["wall"] + short["import_wall"]),
    }
    return lines, ratio, {"backend": pair.backend, "runs": runs}


def main(argv: Sequence[str] | None = None) -> Report | None:
    """Measure all pairs and save the report."""
    parser = Parser("compile_time", __doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=len(PAIRS), help="only the first so many")
    parser.add_argument("--measure", nargs=2, metavar=("FORMULA", "BACKEND"), help="used inside")
    arguments = parser.read(argv)
    if arguments.measure:
        say(json.dumps(measure(*arguments.measure)))
        return None
    lines, ratios, details, checks = [], [], [], []
    for pair in PAIRS[: arguments.pairs]:
        rows, ratio, detail = compare(pair, arguments.repeats)
        lines += rows
        ratios.append(ratio)
        details.append(detail)
        if pair.bar is not None:
            for clock in ("CPU", "wall"):
                what = f"{ratio['ratio']} on {pair.backend}, {clock} time"
                checks.append(Check(what, ratio[clock], f"≤ {pair.bar}", ratio[clock] <= pair.bar))
    report = Report(
        "compile_time",
        f"Cold start: a fit of {STEPS} steps (defaults, pot1) in a new process with empty caches, "
        "everything imported before. Medians over the repeats; both formulas take turns.",
        {"repeats": arguments.repeats, "seeds": 0},
        {"Seconds": lines, "Ratios": ratios},
        checks,
        {"repeats": details},
    )
    report.save(arguments)
    return report


if __name__ == "__main__":
    main()
