"""How close fits with default settings come to posteriors with known answers, and others' fits.

With ``--data FOLDER`` the posteriors are those of a folder outside of this repository:

    FOLDER/models.py            build(name) -> pymc.Model, and the list NAMES
    FOLDER/reference/NAME.npz   what is known of the exact posterior
    FOLDER/score.py             load_reference(path) -> dict with mean, sd and draws by variable;
                                score(draws, reference) -> dict with max_mean, mean_mean, max_logsd,
                                mean_logsd, worst_mean, worst_sd, sw1, sw1_white
    FOLDER/floor.json           scores of exact draws by name (optional)

With ``--held-out CACHE`` they are those of `benchmarks.held_out`, whose references are made by long
runs of NUTS and kept in the folder CACHE. With neither, only the project's own targets are fitted,
and the report says what is missing.

A method is ``auto`` or a formula, both for `pymc_flows.fit` with its defaults, or one of others:
``advi`` and ``fullrank_advi`` of `pymc.fit` (30,000 steps, else defaults), ``pathfinder`` of
pymc-extras, ``nuts`` of nutpie, both with defaults, and ``best Gaussian``, which is told the
answer: the Gaussian with the moments of the reference in the unconstrained space.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import _accuracy_plots, _accuracy_tables
from benchmarks._accuracy_tables import Bars, Rows
from benchmarks._common import Parser, Report, Row, environment, package_versions, say, stopwatch
from benchmarks._compile_clock import compile_clock
from benchmarks._methods import BEST_GAUSSIAN, DRAWS, METHODS, Fitted, best_gaussian, ours
from benchmarks._posteriors import Collection, Folder, OwnTargets, sd_ratios, summarized
from benchmarks.held_out import HeldOut
from pymc_flows.errors import FlowError

DEFAULT_METHODS = ("auto", "advi", "fullrank_advi")
RIVALS = ("nutpie", "pymc-extras")
# The best Gaussian is scored without noise of its own.
MANY_DRAWS = 100_000
FAILURES = (
    *(FlowError, ArithmeticError, ImportError, RuntimeError, ValueError),
    *(np.linalg.LinAlgError, NotImplementedError, TypeError),
)
COLUMNS = (
    *("posterior", "method", "seed", "dim"),
    *("worst mean error", "mean mean error", "lowest sd ratio", "highest sd ratio"),
    *("worst log sd error", "mean log sd error", "sw1", "white"),
    *("ELBO", "ELBO error", "k-hat"),
    *("compile wall s", "compile CPU s", "run wall s", "run CPU s", "share of run"),
    *("is good", "worst mean at", "worst sd at", "note", "source"),
)
WITHOUT_DATA = (
    "No --data: real posteriors are missing here, only the project's own targets were fitted, "
    "scored against exact draws; the column white needs the folder's score.py."
)
ABOUT = (
    f"Defaults of `pymc_flows.fit` and of others, {DRAWS:,} draws each. Errors of means are in "
    "exact standard deviations; worst and mean are over all scalars. sw1 is the sliced "
    "Wasserstein-1 distance of standardised draws, white the same of whitened ones. ELBO ± its "
    "Monte-Carlo error and k-hat come from 10,000 fresh draws (PyMC's Gaussians included). *best "
    "Gaussian* has the moments of the reference's draws in the unconstrained space and is scored "
    f"against the same draws, by {MANY_DRAWS:,} of its own: where nothing is transformed its means "
    "and standard deviations are right by construction, and sw1 says what is left. Seconds to "
    "compile are those in `pytensor.function`, in the first call of a training loop, in numba's "
    "and JAX's compilers and in nutpie's; seconds of the run are the rest, with the search for a "
    "start and the draws. CPU seconds count; wall seconds, in the JSON file, depend on what else "
    "the machine did. "
    f"Good: {_accuracy_tables.BAR}."
)


def fit_once(
    collection: Collection, name: str, method: str, seed: int, steps: int | None, bars: Bars
) -> Row:
    """Fit one posterior and score it; a failure becomes a line too."""
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    row |= {"posterior": name, "method": method, "seed": seed, "source": 0}
    reference = collection.reference(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = collection.model(name)
            with compile_clock() as clock, stopwatch() as seconds:
                if method == BEST_GAUSSIAN:
                    fitted = best_gaussian(model, reference, seed, MANY_DRAWS)
                else:
                    fitted = METHODS.get(method, ours(method))(model, seed, steps, clock)
        except FAILURES as error:
            return row | {"note": f"{type(error).__name__}: {error}".split("\n")[0]}
        row |= fitted.facts()
    if method == BEST_GAUSSIAN:
        # Its draws are few, so their own moments are what it can be held to.
        reference = reference | summarized(reference["draws"])
    else:
        row |= {
            "compile wall s": clock.seconds.wall,
            "compile CPU s": clock.seconds.cpu,
            "run wall s": seconds.wall - clock.seconds.wall,
            "run CPU s": seconds.cpu - clock.seconds.cpu,
        }
    row |= scored(collection, fitted, reference)
    row["is good"] = bars.holds(row)
    row["share of run"] = share_until_good(collection, fitted, reference, bars)
    return row


def scored(collection: Collection, fitted: Fitted, reference: Any, n: int | None = None) -> Row:
    """Columns of a comparison of the first n draws with a reference."""
    draws = {name: x[:n] for name, x in fitted.draws.items()}
    scores, ratios = collection.score(draws, reference), sd_ratios(draws, reference)
    return {
        "worst mean error": scores["max_mean"],
        "mean mean error": scores["mean_mean"],
        "lowest sd ratio": float(ratios.min()),
        "highest sd ratio": float(ratios.max()),
        "worst log sd error": scores["max_logsd"],
        "mean log sd error": scores["mean_logsd"],
        "sw1": scores["sw1"],
        "white": scores.get("sw1_white"),
        "worst mean at": scores["worst_mean"],
        "worst sd at": scores["worst_sd"],
    }


def share_until_good(
    collection: Collection, fitted: Fitted, reference: Any, bars: Bars
) -> float | None:
    """Share of a run after which it was good and stayed so; None if it never was."""
    share = None
    for n, so_far in reversed(fitted.course or [(None, 1.0)]):
        if not bars.holds(scored(collection, fitted, reference, n)):
            break
        share = so_far
    return share


def read_rows(paths: Sequence[Path]) -> tuple[list[Row], list[Row]]:
    """Rows of earlier runs and the sources that they name; source 0 is left for this run."""
    rows: dict[tuple[Any, ...], Row] = {}
    sources: list[Row] = []
    for path in paths:
        record = json.loads(path.read_text(encoding="utf-8"))
        known = record["details"]["sources"]
        # One run after the other, and the same one once.
        places = {}
        for number, source in enumerate(known):
            if source not in sources:
                sources.append(source)
            places[number] = sources.index(source) + 1
        for row in record["details"]["rows"]:
            rows[_key(row)] = row | {"source": places[row["source"]]}
    return list(rows.values()), sources


def together(new: Rows, added: Rows) -> list[Row]:
    """All rows; a new one instead of an added one of the same posterior, method and seed."""
    return list({_key(row): row for row in [*added, *new]}.values())


def _key(row: Row) -> tuple[Any, ...]:
    return row["posterior"], row["method"], row["seed"]


def open_collection(parser: Parser, data: Path | None, held_out: Path | None) -> Collection:
    """The posteriors that the arguments ask for."""
    if data is not None and held_out is not None:
        parser.error("give --data or --held-out, not both")
    try:
        if data is not None:
            return Folder(data)
    except FileNotFoundError as error:
        parser.error(str(error))
    return OwnTargets() if held_out is None else HeldOut(held_out)


def report_of(
    rows: list[Row], sources: list[Row], names: Sequence[str], about: str, arguments: Any
) -> Report:
    """Sort rows into tables."""
    own = {**environment(), **package_versions(RIVALS), "command": arguments.command}
    all_sources = [own, *sources]
    place = {name: i for i, name in enumerate(names)}
    rival = {name: i for i, name in enumerate((*METHODS, BEST_GAUSSIAN), start=1)}

    def order(row: Row) -> tuple[int, ...]:
        return place[row["posterior"]], rival.get(row["method"], 0)

    rows = sorted((row for row in rows if row["posterior"] in place), key=order)
    return Report(
        arguments.name,
        about,
        {"seeds": ", ".join(str(s) for s in sorted({row["seed"] for row in rows}))},
        _accuracy_tables.tables(rows)
        | {"Runs": _accuracy_tables.source_rows(rows, all_sources, RIVALS)},
        _accuracy_tables.checks(rows),
        {"sources": all_sources, "rows": rows},
    )


def main(argv: Sequence[str] | None = None) -> Report:
    """Fit all posteriors with all methods and seeds, and save the report."""
    parser = Parser("accuracy", (__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with models.py, score.py and reference/")
    parser.add_argument(
        "--held-out", type=Path, help="folder for references of benchmarks.held_out"
    )
    parser.add_argument("--names", nargs="+", help="only these posteriors")
    parser.add_argument("--methods", nargs="*", default=list(DEFAULT_METHODS))
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (3)")
    parser.add_argument("--first-seed", type=int, default=0, help="the first of them (0)")
    parser.add_argument("--steps", type=int, help="other number of steps, to try the script")
    parser.add_argument(
        "--add",
        nargs="+",
        type=Path,
        default=[],
        metavar="JSON",
        help="take other rows from earlier runs, which should be of the same machine",
    )
    parser.add_argument("--page", type=Path, help="write a short page to this file, too")
    arguments = parser.read(argv)
    collection = open_collection(parser, arguments.data, arguments.held_out)
    arguments.name = "accuracy" if arguments.held_out is None else "held_out"
    names = arguments.names or collection.names
    parser.refuse_unknown(names, collection.names)
    about = ABOUT
    if isinstance(collection, OwnTargets):
        about += f"\n\n{WITHOUT_DATA}"
        say(WITHOUT_DATA)
    added, sources = read_rows(arguments.add)
    new: list[Row] = []
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    for name in names:
        bars = Bars.of(collection.floor(name))
        for method in arguments.methods:
            for seed in seeds:
                new.append(fit_once(collection, name, method, seed, arguments.steps, bars))
                say(", ".join(f"{k} {v}" for k, v in new[-1].items()))
        report = report_of(together(new, added), sources, names, about, arguments)
        if name != names[-1]:  # what is there if the rest fails
            report.save(arguments, show=False)
    report.save(arguments)
    out = Path(arguments.out)
    _accuracy_plots.save(report.details["rows"], out / f"{report.name}.png")
    if arguments.page:
        page = _accuracy_tables.page(report, out / f"{report.name}.png", arguments.page)
        arguments.page.write_text(page, encoding="utf-8")
    return report


if __name__ == "__main__":
    main()
