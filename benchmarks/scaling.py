"""Cost of a step and peak memory by dimension, rows of data and draws.

Every point has a process of its own, on one core with one thread. Beside the JSON file and the page
there is a plot, scaling.png.
"""

from __future__ import annotations

import json
import resource
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._common import Check, Parser, Report, Row, Seconds, say, stopwatch
from benchmarks._process import SINGLE_THREAD, one_core, run_child

PREDICTORS = 20
BATCH = 500
DIM_DRAWS = 10
ROW_DRAWS = 64
SAMPLE_DRAWS = 100_000
COST_FACTOR, MEMORY_EXPONENT, PEAK_GB, SAMPLE_SECONDS = 130, 1.05, 3.0, 1.0
# First calls are short, to bound how long a call takes.
WARM_UP = 10

DIM, ROWS, DRAWS = "dimensions", "rows", "draws"
SIZES: Mapping[str, Sequence[int]] = {
    DIM: (10, 30, 100, 300, 1000, 3000, 10_000),
    ROWS: (1000, 10_000, 100_000, 1_000_000),
    DRAWS: (1, 4, 16, 64, 256, 1024, 4096),
}
CASES: Mapping[str, Sequence[str]] = {
    DIM: ("scale-loc", "scale-hh*10-loc"),
    ROWS: ("all rows", "minibatch"),
    DRAWS: ("pot1, planar*8",),
}


@dataclass(frozen=True)
class Point:
    """One fit.

    Attributes
    ----------
    axis : {"dimensions", "rows", "draws"}
        What is varied.
    case : str
        What else the fit is.
    size : int
        Value of what is varied.
    backend : {"jax", "numba"}
    """

    axis: str
    case: str
    size: int
    backend: str


# ------------------------------------------------------------------------------- in the child


def regression(rows: int, *, minibatch: bool) -> Any:
    """Logistic regression on data that are made up."""
    import pymc as pm

    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, PREDICTORS))
    # PyMC casts other integers, and takes no minibatch that was cast.
    y = (rng.uniform(size=rows) < 1 / (1 + np.exp(-x.sum(1) / 4))).astype(np.int32)
    with pm.Model() as model:
        total = None
        if minibatch:
            x, y = pm.Minibatch(x, y, batch_size=BATCH)
            total = rows
        beta = pm.Normal("beta", 0, 1, shape=PREDICTORS)
        pm.Bernoulli("y", logit_p=x @ beta, observed=y, total_size=total)
    return model


def problem(point: Point) -> tuple[Any, str, int]:
    """Model, formula and draws of a point."""
    import pymc as pm

    from pymc_flows.targets import POTENTIALS

    if point.axis == ROWS:
        return regression(point.size, minibatch=point.case == "minibatch"), "scale-loc", ROW_DRAWS
    if point.axis == DRAWS:
        return POTENTIALS[0].model(), point.case.split(", ")[1], point.size
    with pm.Model() as model:
        pm.Normal("x", np.linspace(-1, 1, point.size), np.linspace(0.5, 2, point.size))
    return model, point.case, DIM_DRAWS


def measure(point: Point, seconds: float) -> Row:
    """Fit in this process: seconds per step, and peak memory before and after in bytes."""
    import pymc as pm

    from pymc_flows import NFVI

    model, formula, draws = problem(point)
    __import__(point.backend)
    before = peak_memory()
    inference = NFVI(formula, model=model, random_seed=0)
    with stopwatch() as first:
        inference.fit(
            WARM_UP,
            obj_n_mc=draws,
            obj_optimizer=pm.adam(learning_rate=0.01),
            backend=point.backend,
            gradient="total",
            progressbar=False,
        )

    def timed(steps: int) -> Seconds:
        with stopwatch() as elapsed:
            inference.refine(steps, progressbar=False)
        return elapsed

    timed(1)
    # Calls of few steps on JAX cost what their padding costs, which is not the cost of a step.
    call = timed(1)
    steps = 2
    while (elapsed := timed(steps)).cpu - call.cpu < seconds:
        taken = max(elapsed.cpu - call.cpu, 1e-9)
        steps = int(steps * max(2.0, min(10.0, 1.2 * seconds / taken)))
    return {
        "cpu": (elapsed.cpu - call.cpu) / (steps - 1),
        "wall": max(elapsed.wall - call.wall, 0.0) / (steps - 1),
        "call": call.cpu,
        "steps": steps,
        "first": first.cpu,
        "before": before,
        "peak": peak_memory(),
    }


def peak_memory() -> int:
    """Largest resident size of this process so far, in bytes."""
    # In kilobytes, but on macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def measure_sample(draws: int) -> Row:
    """Seconds of `NormalizingFlow.sample` of eight schools, on the second call."""
    from benchmarks.workloads import WORKLOADS
    from pymc_flows import NormalizingFlow

    workload = next(w for w in WORKLOADS if w.kind == "schools")
    approx = NormalizingFlow(workload.formula, model=workload.model(), random_seed=0)
    with stopwatch() as first:
        approx.sample(draws, random_seed=1)
    with stopwatch() as again:
        tree = approx.sample(draws, random_seed=2)
    names = ", ".join(sorted(map(str, tree["posterior"].data_vars)))
    return {"cpu": again.cpu, "wall": again.wall, "first": first.wall, "variables": names}


# ----------------------------------------------------------------------------------- the report

type Found = Mapping[Point, Row]


def checks(found: Found, sample: Row | None) -> list[Check]:
    """Compare with the bars what was measured."""
    checks = []
    for backend in sorted({point.backend for point in found}):
        case = "scale-hh*10-loc"
        low, middle, high = (found.get(Point(DIM, case, n, backend)) for n in (100, 1000, 10_000))
        what = f"{case} on {backend}, 10,000 dimensions"
        if low and high:
            cost = high["cpu"] / low["cpu"]
            bar = f"≤ {COST_FACTOR}"
            checks.append(Check(f"{what} : 100, CPU time", cost, bar, cost <= COST_FACTOR))
        if middle and high:
            # Of what the fit takes beyond the imports; at least a page, so that there is a log.
            extra = [max(run["peak"] - run["before"], 4096) for run in (middle, high)]
            power = log(extra[1] / extra[0]) / log(10)
            what += " : 1,000, memory as which power of the dimension"
            checks.append(Check(what, power, f"≤ {MEMORY_EXPONENT}", power <= MEMORY_EXPONENT))
        if full := found.get(Point(ROWS, "all rows", 1_000_000, backend)):
            peak = full["peak"] / 1e9
            what = f"1,000,000 × {PREDICTORS}, {ROW_DRAWS} draws on {backend}: peak memory, GB"
            checks.append(Check(what, peak, f"≤ {PEAK_GB:g}", peak <= PEAK_GB))
    if sample:
        what = f"sample({SAMPLE_DRAWS:,}) of eight schools, second call, wall s"
        wall = sample["wall"]
        checks.append(Check(what, wall, f"≤ {SAMPLE_SECONDS:g}", wall <= SAMPLE_SECONDS))
    return checks


def table(found: Found, axis: str) -> list[Row]:
    """Lines of the points on one axis."""
    return [
        {
            "fit": point.case,
            "backend": point.backend,
            axis: point.size,
            "CPU ms per step": 1e3 * run["cpu"],
            "wall ms per step": 1e3 * run["wall"],
            "a call of 1 step, CPU ms": 1e3 * run["call"],
            "peak memory, MB": run["peak"] / 1e6,
            "of it since the fit began, MB": (run["peak"] - run["before"]) / 1e6,
            "first steps, CPU s": run["first"],
        }
        for point, run in found.items()
        if point.axis == axis
    ]


def plot(found: Found, path: Path) -> None:
    """Draw cost and memory by each axis."""
    from matplotlib.figure import Figure

    axes = [axis for axis in SIZES if any(point.axis == axis for point in found)]
    figure = Figure(figsize=(4 * len(axes), 6), layout="constrained")
    panels = figure.subplots(2, len(axes), squeeze=False)
    for column, axis in enumerate(axes):
        points = [point for point in found if point.axis == axis]
        for case, backend in dict.fromkeys((p.case, p.backend) for p in points):
            line = [p for p in points if (p.case, p.backend) == (case, backend)]
            sizes = [p.size for p in line]
            label = f"{case}, {backend}"
            panels[0, column].plot(sizes, [1e3 * found[p]["cpu"] for p in line], "o-", label=label)
            panels[1, column].plot(sizes, [found[p]["peak"] / 1e6 for p in line], "o-")
        for panel in panels[:, column]:
            panel.set(xscale="log", yscale="log", xlabel=axis)
        panels[0, column].legend(loc="lower left", bbox_to_anchor=(0, 1), fontsize="small")
    panels[0, 0].set_ylabel("CPU time per step in ms")
    panels[1, 0].set_ylabel("peak memory in MB")
    figure.savefig(path, dpi=120)


def run_all(arguments: Namespace) -> dict[Point, Row]:
    """Measure all points."""
    found = {}
    for axis in arguments.axes:
        for case in CASES[axis]:
            for backend in arguments.backends:
                for size in SIZES[axis]:
                    if arguments.largest and size > arguments.largest:
                        continue
                    point = Point(axis, case, size, backend)
                    child = ["--seconds", arguments.seconds, "--measure", axis, case, size, backend]
                    run = found[point] = run_child("scaling", child, SINGLE_THREAD)
                    say(
                        f"{case}, {backend}, {size:,} {axis}: {1e3 * run['cpu']:.4g} ms per step, "
                        f"{run['peak'] / 1e6:,.0f} MB"
                    )
    return found


def main(argv: Sequence[str] | None = None) -> Report | None:
    """Measure all points; save the report and the plot."""
    parser = Parser("scaling", __doc__)
    parser.add_argument("--axes", nargs="+", default=list(SIZES), choices=SIZES)
    parser.add_argument("--backends", nargs="+", default=["jax", "numba"])
    parser.add_argument("--largest", type=int, help="leave larger sizes out, to try the script")
    parser.add_argument("--seconds", type=float, default=1.0, help="CPU seconds per measurement")
    parser.add_argument("--no-sample", action="store_true", help="leave out `sample`")
    parser.add_argument("--measure", nargs="*", help="used inside")
    arguments = parser.read(argv)
    if arguments.measure == ["sample"]:
        say(json.dumps(measure_sample(SAMPLE_DRAWS)))
        return None
    if arguments.measure:
        axis, case, size, backend = arguments.measure
        say(json.dumps(measure(Point(axis, case, int(size), backend), arguments.seconds)))
        return None
    with one_core() as core:
        found = run_all(arguments)
        sample = None
        if not arguments.no_sample:
            sample = run_child("scaling", ["--measure", "sample"], SINGLE_THREAD)
    tables: dict[str, Sequence[Row]] = {f"By {axis}": table(found, axis) for axis in arguments.axes}
    if sample:
        tables[f"{SAMPLE_DRAWS:,} draws of eight schools to a DataTree"] = [
            {
                "wall s, second call": sample["wall"],
                "CPU s, second call": sample["cpu"],
                "wall s, first call": sample["first"],
                "variables": sample["variables"],
            }
        ]
    report = Report(
        "scaling",
        "Cost of a further step and peak memory of a process (imports included), adam at step size "
        f".01, float64, one core. By dimensions: independent normals, {DIM_DRAWS} draws. By rows: "
        f"logistic regression with {PREDICTORS} predictors, scale-loc, {ROW_DRAWS} draws; "
        f"minibatches have {BATCH} rows. One process per point.\n\n"
        "![Cost of a step and peak memory by dimensions, rows and draws](scaling.png)",
        {"core": core, "seconds per measurement": arguments.seconds, "seeds": 0},
        tables,
        checks(found, sample),
        {"points": [{**vars(point), **run} for point, run in found.items()]},
    )
    report.save(arguments)
    plot(found, Path(arguments.out) / "scaling.png")
    return report


if __name__ == "__main__":
    main()
