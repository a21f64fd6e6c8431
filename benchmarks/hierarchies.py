"""Hierarchies and large regressions: seconds, memory, evaluations and accuracy of the default fit.

Each fit of `pymc_flows.fit` has a process of its own, on one core with one thread and empty caches;
seconds are CPU seconds from the call, imports apart. With ``--peers`` the same posteriors are given
to nutpie (its default and its low-rank adaptation), ADVI, and Pathfinder and INLA of pymc-extras.

Tables, each of which can be run alone with ``--tables``:

    posteriors   those that everybody knows; with ``--data FOLDER ...`` also those of folders with
                 models.py: of one that has reference/ the hierarchies radon_slopes and its centred
                 twin, of another all models that ``build(name)`` makes of the names in ``M``
    grid         simulated hierarchies: families, parametrisations, groups, rows, terms
    logistic     regressions with 10⁵ and 10⁶ rows
    million      10⁶ rows in 10⁵ groups with 21 effects each, against the truth
    cost         10² to 10⁵ groups
    calibration  ranks of the truth over many data sets

References are files of a folder, ``--references FOLDER``, and never of this repository;
``--make-references`` makes those that are missing and fits nothing. A file of another's making
serves as well: arrays ``NAME|mean``, ``NAME|sd``, and, where they come from chains, ``NAME|ess``
and ``NAME|rhat``.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import groupby
from pathlib import Path

from benchmarks import _hierarchy_fits as fits
from benchmarks import _hierarchy_models as models
from benchmarks import _hierarchy_plots, _hierarchy_problems, _hierarchy_studies, _hierarchy_tables
from benchmarks._accuracy_tables import source_rows
from benchmarks._common import Parser, Report, Row, environment, package_versions, say
from benchmarks._hierarchy_problems import (
    CALIBRATION,
    COST,
    GRID,
    LOGISTIC,
    MILLION,
    POSTERIORS,
    REGRESSIONS,
    Places,
    Problem,
)
from benchmarks._hierarchy_scores import BAR
from benchmarks._process import SINGLE_THREAD, empty_caches, one_core, run_child
from benchmarks.accuracy import read_rows, together

TABLES = (POSTERIORS, GRID, LOGISTIC, MILLION, COST, CALIBRATION)
PEER_PACKAGES = ("nutpie", "pymc-extras")
ABOUT = (
    "The default call in a process of its own, on one core with one thread and empty caches. CPU s "
    "are from the call to the approximation, imports apart and compiling included; CPU s to good "
    f"also contain {fits.DRAWS:,} draws, and of nutpie's run ({fits.CHAINS} chains, compiling left "
    "out) the share of the gradients after which it was good and stayed so. Densities, gradients "
    "and curvatures are numbers of evaluations of the model. Errors of means are in standard "
    f"deviations of the reference. Good: {BAR}. A reference whose chains do not agree about a "
    "scalar (R-hat, effective sample size) leaves that scalar out. Other methods' seconds to good "
    "are without compiling.\n\n![Seconds, errors, cost and ranks](hierarchies.png)"
)


def parser() -> Parser:
    """Arguments of the script."""
    found = Parser("hierarchies", (__doc__ or "").split("\n")[0])
    add = found.add_argument
    add("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    add("--data", nargs="+", type=Path, default=[], help="folders with models.py")
    add("--references", type=Path, help="folder of references")
    add("--make-references", action="store_true", help="make what is missing, and fit nothing")
    add("--names", nargs="+", help="only these posteriors, cells of the grid or hierarchies")
    add("--sample", type=int, metavar="K", help="only K cells of the grid, spread over its levels")
    add("--formulas", nargs="*", default=[fits.OURS], help="auto and others, for `pymc_flows.fit`")
    add("--peers", nargs="*", choices=fits.PEERS, default=[], help="others' methods, too")
    add("--seeds", type=int, default=2, help="number of seeds (2)")
    add("--first-seed", type=int, default=0, help="the first of them (0)")
    add("--limit", type=float, default=1_200.0, help="CPU seconds of a fit (1,200)")
    add("--datasets", type=int, default=100, help="data sets of the calibration (100)")
    add("--shrink", type=int, default=1, help="divide rows and groups of large problems, for a try")
    add("--steps", type=int, help="other number of steps, to try the script")
    add("--keep-caches", action="store_true", help="use the caches of this machine")
    add("--add", nargs="+", type=Path, default=[], metavar="JSON", help="rows of earlier runs")
    add("--page", type=Path, help="write a short page to this file, too")
    add("--measure", nargs=4, metavar=("TABLE", "NAME", "METHOD", "SEED"), help="used inside")
    return found


# --------------------------------------------------------------------------------- in the child


def places_of(arguments: Namespace) -> Places:
    """Where problems come from."""
    return Places(arguments.data, arguments.references, arguments.shrink)


def measure(arguments: Namespace) -> list[Row]:
    """Run one fit, or all of a calibration, in this process."""
    table, name, method, seed = arguments.measure
    lengths = fits.LENGTHS if arguments.steps is None else (arguments.steps,)
    settings = fits.Settings(arguments.limit, lengths, arguments.steps)
    if table == COST:
        rows = [_hierarchy_studies.measure_cost(name, int(seed), settings)]
    elif table == MILLION:
        rows = [_hierarchy_studies.measure_million(name, int(seed), settings)]
    elif table == CALIBRATION:
        rows = _hierarchy_studies.calibrate(name, range(arguments.datasets), settings)
    else:
        problem = _hierarchy_problems.problem(places_of(arguments), table, name, int(seed))
        rows = [fits.measure(problem, method, int(seed), settings)]
    return [{"table": table, **row} for row in rows]


# -------------------------------------------------------------------------------- in the parent


def names_of(arguments: Namespace, table: str) -> list[str]:
    """Names of the problems of a table."""
    if table == GRID:
        cells: Sequence[models.Cell] = models.GRID
        if arguments.sample is not None:
            cells = models.spread(cells, arguments.sample)
        names = [cell.name for cell in cells]
    elif table == COST:
        sizes = [n // arguments.shrink for n in _hierarchy_studies.COST_GROUPS]
        return [f"{COST}-{n}" for n in sizes if n]
    elif table == MILLION:
        return [f"{MILLION}-{_hierarchy_studies.MILLION_GROUPS // arguments.shrink}"]
    elif table == CALIBRATION:
        names = list(_hierarchy_studies.CALIBRATED)
    elif table == LOGISTIC:
        names = list(REGRESSIONS)
    else:
        names = list(_hierarchy_problems.posteriors(places_of(arguments)))
    return [name for name in names if arguments.names is None or name in arguments.names]


def jobs(arguments: Namespace) -> Iterator[tuple[str, str, str, int]]:
    """Table, name, method and seed of all processes."""
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    for table in arguments.tables:
        for name in names_of(arguments, table):
            if table in (MILLION, COST, CALIBRATION):
                yield table, name, fits.OURS, arguments.first_seed
                continue
            for method in (*arguments.formulas, *arguments.peers):
                for seed in seeds:
                    yield table, name, method, seed


def run(arguments: Namespace, job: tuple[str, str, str, int]) -> list[Row]:
    """Measure in a process of its own; one that dies becomes a row."""
    table, name, method, seed = job
    given: list[object] = ["--measure", *job, "--limit", arguments.limit]
    given += ["--shrink", arguments.shrink, "--datasets", arguments.datasets]
    if arguments.steps is not None:
        given += ["--steps", arguments.steps]
    if arguments.references is not None:
        given += ["--references", arguments.references.absolute()]
    if arguments.data:
        given += ["--data", *(path.absolute() for path in arguments.data)]
    caches = nullcontext({}) if arguments.keep_caches else empty_caches()
    # The very large hierarchy may use what the machine has.
    core = nullcontext() if table == MILLION else one_core()
    environment = {} if table == MILLION else SINGLE_THREAD
    with caches as folders, core:
        try:
            return run_child("hierarchies", given, {**environment, **folders})["rows"]
        except RuntimeError as error:
            row = dict.fromkeys((*fits.COLUMNS, *_hierarchy_studies.STUDY_COLUMNS, "groups"))
            note = str(error).strip().split("\n")[-1]
            row |= {"table": table, "posterior": name, "method": method, "seed": seed}
            return [row | {"source": 0, "ranks": {}, "note": f"the process died: {note}"}]


def problems(arguments: Namespace) -> Iterator[Problem]:
    """All problems that have references."""
    places = places_of(arguments)
    for table, name, _, seed in jobs(arguments):
        if table in (POSTERIORS, GRID, LOGISTIC):
            yield _hierarchy_problems.problem(places, table, name, seed)


def report_of(rows: list[Row], sources: list[Row], arguments: Namespace) -> Report:
    """Sort rows into tables."""
    own = {
        **environment(),
        **package_versions(PEER_PACKAGES),
        "command": arguments.command,
    }
    all_sources = [own, *sources]
    # Those of a calibration are the numbers of its data sets.
    seeds = sorted({row["seed"] for row in rows if row["table"] != CALIBRATION})
    return Report(
        "hierarchies",
        ABOUT,
        {"seeds": ", ".join(map(str, seeds))},
        _hierarchy_tables.tables(rows) | {"Runs": source_rows(rows, all_sources, PEER_PACKAGES)},
        _hierarchy_tables.checks(rows),
        {"sources": all_sources, "rows": rows},
    )


def fit_all(arguments: Namespace) -> Report:
    """Run all processes; what is there is saved after each posterior."""
    added, sources = read_rows(arguments.add)
    new: list[Row] = []
    report = None
    for _, group in groupby(jobs(arguments), key=lambda job: job[:2]):
        for job in group:
            for row in run(arguments, job):
                new.append(row)
                told = {k: v for k, v in row.items() if v is not None and k != "source"}
                say(", ".join(f"{k} {v}" for k, v in told.items()))
        # What is there if the rest fails.
        report_of(together(new, added), sources, arguments).save(arguments, show=False)
    report = report_of(together(new, added), sources, arguments)
    report.save(arguments)
    return report


def main(argv: Sequence[str] | None = None) -> Report | None:
    """Make references, or fit everything and save the report."""
    arguments_parser = parser()
    arguments = arguments_parser.read(argv)
    if arguments.measure:
        say(json.dumps({"rows": measure(arguments)}, default=lambda x: x.item()))
        return None
    if arguments.names:
        known = [name for table in TABLES for name in names_of(_all_names(arguments), table)]
        arguments_parser.refuse_unknown(arguments.names, known)
    if arguments.make_references:
        if arguments.references is None:
            arguments_parser.error("--make-references needs --references FOLDER")
        for problem in problems(arguments):
            if places_of(arguments).make(problem):
                say(f"made {problem.stem}")
        return None
    report = fit_all(arguments)
    picture = Path(arguments.out) / f"{report.name}.png"
    _hierarchy_plots.save(report.details["rows"], picture)
    if arguments.page:
        page = _hierarchy_tables.page(report, picture, arguments.page)
        arguments.page.write_text(page, encoding="utf-8")
    return report


def _all_names(arguments: Namespace) -> Namespace:
    return Namespace(**{**vars(arguments), "names": None, "sample": None})


if __name__ == "__main__":
    main()
