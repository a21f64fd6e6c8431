"""Seconds from the call to a good posterior, in a process of its own: ours, NUTS and others.

Each measurement is a new process, and begins after the imports. *Cold* is with empty caches,
*warm* with what the first has left in them, and *again* the second call in the warm process, for a
model that is built anew. Methods are called as users call them:

``auto``        `pymc_flows.fit()`
``nuts``        `pm.sample(nuts_sampler="nutpie")`, 4 chains
``advi``        `pm.fit()`, 30,000 steps
``pathfinder``  `pymc_extras.fit_pathfinder`

Posteriors are those of `benchmarks.accuracy`, with ``--data FOLDER`` too, and the tutorial's.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks._accuracy_tables import BAR, Bars, Rows, in_order, of
from benchmarks._common import (
    Check,
    Parser,
    Report,
    Row,
    markdown_table,
    package_versions,
    say,
    stopwatch,
)
from benchmarks._posteriors import Collection, Folder, OwnTargets
from benchmarks._process import SINGLE_THREAD, empty_caches, one_core, run_child
from benchmarks._tutorial import NAME as TUTORIAL
from benchmarks._tutorial import Tutorial

OURS, NUTS = "auto", "nuts"
STATES = ("cold", "warm", "again")
DRAWS, CHAINS, ADVI_STEPS = 4_000, 4, 30_000
EIGHT_SCHOOLS = "eight_schools_noncentered"
# CPU seconds; on a core of its own a fit takes hardly more wall seconds.
BARS = {
    (TUTORIAL, "cold"): 4.0,
    (EIGHT_SCHOOLS, "cold"): 8.0,
    (EIGHT_SCHOOLS, "again"): 2.0,
}
FASTER = 0.75
RIVALS = ("nutpie", "pymc-extras")
FAILURES = (ArithmeticError, ImportError, RuntimeError, ValueError, TypeError, NotImplementedError)
ABOUT = (
    "Seconds from the call to draws of the posterior, imports apart, in processes with one thread "
    "on one core: *cold* with empty caches, *warm* with the caches of the first, *again* the "
    f"second call in the warm process, for a model that is built anew. {DRAWS:,} draws, or 4 "
    "chains of 1,000. The least of the seeds counts for seconds, whatever else the machine did; "
    "CPU seconds hardly depend on that, wall seconds do. "
    f"Good: {BAR}; **bold** where all seeds are good."
)

type Method = Callable[[Any, int, int | None], Any]


def ours(model: Any, seed: int, steps: int | None) -> Any:
    """`pymc_flows.fit` as users call it."""
    import pymc_flows as pmf

    given = {} if steps is None else {"n": steps}
    approx = pmf.fit(model=model, random_seed=seed, progressbar=False, **given)
    return approx.sample(DRAWS, random_seed=seed)


def nuts(model: Any, seed: int, steps: int | None) -> Any:
    """`pymc.sample` with nutpie, compiling included."""
    import pymc as pm

    length = {} if steps is None else {"draws": steps, "tune": steps}
    with model:
        return pm.sample(
            nuts_sampler="nutpie", chains=CHAINS, random_seed=seed, progressbar=False, **length
        )


def advi(model: Any, seed: int, steps: int | None) -> Any:
    """`pymc.fit` with its defaults but for the number of steps."""
    import pymc as pm

    approx = pm.fit(steps or ADVI_STEPS, model=model, random_seed=seed, progressbar=False)
    return approx.sample(DRAWS, random_seed=seed)


def pathfinder(model: Any, seed: int, steps: int | None) -> Any:
    """Multi-path Pathfinder with its defaults but for the number of draws."""
    from pymc_extras import fit_pathfinder

    return fit_pathfinder(
        model,
        num_draws=DRAWS,
        num_draws_per_path=DRAWS,
        random_seed=seed,
        parallel=False,
        progressbar=False,
    )


METHODS: Mapping[str, Method] = {
    OURS: ours,
    NUTS: nuts,
    "advi": advi,
    "pathfinder": pathfinder,
}
IMPORTS = {NUTS: "nutpie", "pathfinder": "pymc_extras"}


def measure(
    collection: Collection, name: str, method: str, seed: int, steps: int | None
) -> dict[str, Row]:
    """Call twice in this process, which must not have compiled anything before."""
    from benchmarks._methods import by_variable
    from benchmarks.accuracy import scored

    __import__("arviz")
    if method in IMPORTS:
        __import__(IMPORTS[method])
    reference, bars = collection.reference(name), Bars.of(collection.floor(name))
    found: dict[str, Row] = {}
    for state in ("first", "again"):
        model = collection.model(name)
        with warnings.catch_warnings(), stopwatch() as seconds:
            warnings.simplefilter("ignore")
            idata = METHODS[method](model, seed, steps)
        row = {"wall s": seconds.wall, "CPU s": seconds.cpu}
        row |= scored(collection, _Drawn(by_variable(idata)), reference)
        found[state] = row | {"is good": bars.holds(row)}
    return found


class _Drawn:
    """What `scored` asks of a fit."""

    def __init__(self, draws: Mapping[str, Any]):
        self.draws = draws


def measure_all(arguments: Any, name: str, method: str, seed: int) -> list[Row]:
    """Measure cold, warm and again, in two processes that share caches; a failure is a row too."""
    own = {"posterior": name, "method": method, "seed": seed}
    command = ["--measure", name, method, seed]
    command += [] if arguments.data is None else ["--data", arguments.data.resolve()]
    command += [] if arguments.steps is None else ["--steps", arguments.steps]
    try:
        with empty_caches() as caches:
            # Of JAX's caches, only that of a library, which is in the folder of PyTensor's.
            child = {**SINGLE_THREAD, **caches, "JAX_ENABLE_COMPILATION_CACHE": "true"}
            cold, warm = (run_child("seconds", command, child) for _ in range(2))
    except FAILURES as error:
        note = str(error).strip().splitlines()[-1]
        return [own | {"state": state, "is good": False, "note": note} for state in STATES]
    states = {"cold": cold["first"], "warm": warm["first"], "again": warm["again"]}
    return [own | {"state": state, "note": ""} | row for state, row in states.items()]


def least(rows: Rows, column: str) -> float | None:
    """Least value over the seeds that have one."""
    return min((row[column] for row in rows if column in row), default=None)


def table(rows: Rows, state: str, column: str) -> list[Row]:
    """Seconds by posterior and method; bold where all seeds are good."""
    lines = []
    for name in in_order(rows, "posterior"):
        line: dict[str, Any] = {"posterior": name}
        for method in in_order(rows, "method"):
            own = of(rows, posterior=name, method=method, state=state)
            value = least(own, column)
            text = None if value is None else f"{value:.1f}"
            is_good = own and all(row["is good"] for row in own)
            line[method] = f"**{text}**" if text and is_good else text
        lines.append(line)
    return lines


def checks(rows: Rows) -> list[Check]:
    """The bars of the default call."""
    found = []
    for (name, state), bar in BARS.items():
        own = of(rows, posterior=name, method=OURS, state=state)
        value = least(own, "CPU s")
        if value is not None:
            holds = value <= bar and all(row["is good"] for row in own)
            found.append(Check(f"{name}, {state}, CPU s", value, f"≤ {bar:g}, and good", holds))
    names = [p for p in in_order(rows, "posterior") if of(rows, posterior=p, method=NUTS)]
    if names:
        share = statistics.fmean(_is_faster(rows, name) for name in names)
        what = f"share of {len(names)} posteriors that are good in less CPU time than by NUTS, cold"
        found.append(Check(what, share, f"≥ {FASTER}", share >= FASTER))
    return found


def _is_faster(rows: Rows, name: str) -> bool:
    """Whether ours is good, and in less time than NUTS if that is good too."""
    cold = of(rows, posterior=name, state="cold")
    own, other = of(cold, method=OURS), of(cold, method=NUTS)
    if not (own and all(row["is good"] for row in own)):
        return False
    if not all(row["is good"] for row in other):
        return True
    return (least(own, "CPU s") or math.inf) < (least(other, "CPU s") or math.inf)


def save_picture(rows: Rows, path: Path) -> None:
    """Draw CPU seconds by posterior, method and state of the caches; hollow where not good."""
    import matplotlib.pyplot as plt

    posteriors, methods = in_order(rows, "posterior"), in_order(rows, "method")
    height = 1.5 + 0.45 * len(posteriors)
    figure, axes = plt.subplots(1, 3, figsize=(12, height), sharey=True, layout="constrained")
    for axis, state in zip(axes, STATES, strict=True):
        for number, method in enumerate(methods):
            fits = [r for r in of(rows, method=method, state=state) if "CPU s" in r]
            color = f"C{number % 10}"
            axis.scatter(
                [r["CPU s"] for r in fits],
                [posteriors.index(r["posterior"]) + 0.15 * number for r in fits],
                s=22,
                edgecolors=color,
                facecolors=[color if r["is good"] else "none" for r in fits],
                label=method,
            )
        axis.set(title=f"CPU seconds, {state}")
        if axis.collections and any(len(c.get_offsets()) for c in axis.collections):
            axis.set_xscale("log")  # which matplotlib refuses where nothing is drawn
        axis.set_yticks(range(len(posteriors)), posteriors)
        axis.grid(axis="x", lw=0.4)
    axes[0].invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def page(report: Report, picture: Path, place: Path) -> str:
    """A short page: seconds to a good posterior."""
    rows, folder = report.details["rows"], os.path.relpath(picture.parent, place.parent)
    parts = [
        "# Seconds",
        f"{ABOUT} Made by `benchmarks/seconds.py`; [all numbers]({folder}/{report.name}.md).",
        f"![CPU seconds by posterior and method]({folder}/{picture.name})",
        markdown_table([check.row() for check in report.checks]),
    ]
    for state in STATES:
        parts += [f"## CPU seconds, {state}", markdown_table(table(rows, state, "CPU s"))]
    return "\n\n".join(parts) + "\n"


def report_of(rows: Rows, arguments: Any) -> Report:
    """Sort rows into tables."""
    tables = {
        f"{column}, {state}": table(rows, state, column)
        for column in ("CPU s", "wall s")
        for state in STATES
    }
    failed = [row for row in rows if row["note"] and row["state"] == "cold"]
    tables["Failures"] = [
        {k: r[k] for k in ("posterior", "method", "seed", "note")} for r in failed
    ]
    settings = {
        "seeds": ", ".join(str(s) for s in sorted({row["seed"] for row in rows})),
        **package_versions(RIVALS),
    }
    return Report("seconds", ABOUT, settings, tables, checks(rows), {"rows": rows})


def main(argv: Sequence[str] | None = None) -> Report | None:
    """Measure all posteriors with all methods and seeds, and save the report."""
    parser = Parser("seconds", (__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with models.py, score.py and reference/")
    parser.add_argument("--names", nargs="+", help="only these posteriors")
    parser.add_argument("--methods", nargs="+", default=[OURS, NUTS], choices=METHODS)
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (3)")
    parser.add_argument("--first-seed", type=int, default=0, help="the first of them (0)")
    parser.add_argument("--steps", type=int, help="other number of steps, to try the script")
    parser.add_argument("--page", type=Path, help="write a short page to this file, too")
    parser.add_argument("--measure", nargs=3, metavar=("NAME", "METHOD", "SEED"), help="inside")
    arguments = parser.read(argv)
    try:
        collection = Tutorial(OwnTargets() if arguments.data is None else Folder(arguments.data))
    except FileNotFoundError as error:
        parser.error(str(error))
    if arguments.measure:
        name, method, seed = arguments.measure
        say(json.dumps(measure(collection, name, method, int(seed), arguments.steps)))
        return None
    names = arguments.names or collection.names
    parser.refuse_unknown(names, collection.names)
    rows: list[Row] = []
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    with one_core():
        for name in names:
            for method in arguments.methods:
                for seed in seeds:
                    rows += measure_all(arguments, name, method, seed)
                    say(", ".join(f"{k} {v}" for k, v in rows[-3].items()))
    report = report_of(rows, arguments)
    report.save(arguments)
    picture = Path(arguments.out) / f"{report.name}.png"
    save_picture(rows, picture)
    if arguments.page:
        arguments.page.write_text(page(report, picture, arguments.page), encoding="utf-8")
    return report


if __name__ == "__main__":
    main()
