"""What is made of the rows of `benchmarks.accuracy`: bars, tables and a page."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._common import Check, Report, Row, markdown_table

MEAN_BAR = 0.1
LOWEST_SD, HIGHEST_SD = 0.9, 1.1
SHARE_BAR = 0.8
# No bar is tighter than this multiple of what exact draws reach.
FLOORS = 2.0
# A posterior on which NUTS takes this many seconds is one to be faster on.
LONG = 10.0
BAR = (
    f"every mean within {MEAN_BAR} exact standard deviations, every standard deviation within "
    f"{LOWEST_SD} to {HIGHEST_SD} of the exact one (where exact draws do not reach half of that, "
    "twice what they reach)"
)
OURS = "auto"
RIVALS = ("advi", "fullrank_advi", "pathfinder")
NUTS = "nuts"

type Rows = Sequence[Row]


@dataclass(frozen=True)
class Bars:
    """What a good fit of a posterior is.

    Attributes
    ----------
    mean : float
        Bound of errors of means, in exact standard deviations.
    log_sd : float
        Bound of |log ratio of standard deviations| that is enough, whatever the ratio is.
    """

    mean: float = MEAN_BAR
    log_sd: float = 0.0

    @classmethod
    def of(cls, floor: Mapping[str, float]) -> Bars:
        """Bars for a posterior on which exact draws have these scores."""
        return cls(
            max(MEAN_BAR, FLOORS * floor.get("max_mean", 0.0)),
            FLOORS * floor.get("max_logsd", 0.0),
        )

    def holds(self, row: Row) -> bool:
        """Whether a scored row is good."""
        is_near = LOWEST_SD <= row["lowest sd ratio"] and row["highest sd ratio"] <= HIGHEST_SD
        return bool(
            row["worst mean error"] < self.mean
            and (is_near or row["worst log sd error"] < self.log_sd)
        )


def severity(row: Row) -> float:
    """How far a fit is from good: the worse of its two errors, in units of the plain bars."""
    if row["worst mean error"] is None:
        return math.inf
    return max(row["worst mean error"] / MEAN_BAR, row["worst log sd error"] / -math.log(LOWEST_SD))


def of(rows: Rows, **wanted: Any) -> list[Row]:
    """Rows with these values."""
    return [row for row in rows if all(row[k] == v for k, v in wanted.items())]


def in_order(rows: Rows, column: str) -> list[str]:
    """Values of a column, each once."""
    return list(dict.fromkeys(row[column] for row in rows))


def all_good(rows: Rows) -> bool:
    """Whether there are rows and all are good."""
    return bool(rows) and all(row["is good"] for row in rows)


def median(rows: Rows, column: str) -> float | None:
    """Median over rows that have a value."""
    values = [row[column] for row in rows if row[column] is not None]
    return float(np.median(values)) if values else None


def seconds_to_bars(rows: Rows) -> float | None:
    """Median CPU seconds until the fit was good, compiling apart; None if a row never was."""
    if not rows or any(row["share of run"] is None for row in rows):
        return None
    return float(np.median([row["run CPU s"] * row["share of run"] for row in rows]))


def tables(rows: Rows) -> dict[str, Rows]:
    """All tables of the report."""
    posteriors, methods = in_order(rows, "posterior"), in_order(rows, "method")
    found: dict[str, Rows] = {"Good posteriors": [_share(rows, m, posteriors) for m in methods]}

    def by_method(cell: Any) -> list[Row]:
        return [
            {"posterior": p} | {m: cell(of(rows, posterior=p, method=m)) for m in methods}
            for p in posteriors
        ]

    found["Worst error of a mean, median over seeds"] = by_method(
        lambda r: median(r, "worst mean error")
    )
    found["Mean error of means, median over seeds"] = by_method(
        lambda r: median(r, "mean mean error")
    )
    found["Lowest and highest ratio of standard deviations, over seeds"] = by_method(_sd_range)
    found["Sliced Wasserstein-1 distance, median over seeds"] = by_method(
        lambda r: median(r, "sw1")
    )
    found["ELBO ± Monte-Carlo error, best seed"] = by_method(_elbo)
    found["k-hat, median over seeds"] = by_method(lambda r: median(r, "k-hat"))
    found["CPU seconds of the run (and to compile), medians over seeds"] = by_method(_seconds)
    found["CPU seconds until good, compiling apart"] = duels(rows, posteriors)
    found["What auto took, by seed"] = [
        {"posterior": p, "dim": median(r, "dim"), "taken": ", ".join(str(x["note"]) for x in r)}
        for p in posteriors
        if (r := of(rows, posterior=p, method=OURS))
    ]
    failed = [r for r in rows if r["worst mean error"] is None]
    if failed:
        keys = ("posterior", "method", "seed", "note")
        found["Failures"] = [{k: r[k] for k in keys} for r in failed]
    return {heading: table for heading, table in found.items() if table}


def _share(rows: Rows, method: str, posteriors: Sequence[str]) -> Row:
    good = [p for p in posteriors if all_good(of(rows, posterior=p, method=method))]
    fits = of(rows, method=method)
    return {
        "method": method,
        "posteriors good in every seed": len(good),
        "of": len({r["posterior"] for r in fits}),
        "good fits": sum(bool(r["is good"]) for r in fits),
        "of fits": len(fits),
    }


def _sd_range(rows: Rows) -> str | None:
    scored = [r for r in rows if r["lowest sd ratio"] is not None]
    if not scored:
        return None
    lowest = min(r["lowest sd ratio"] for r in scored)
    return f"{lowest:.2f} to {max(r['highest sd ratio'] for r in scored):.2f}"


def _elbo(rows: Rows) -> str | None:
    known = [r for r in rows if r["ELBO"] is not None]
    if not known:
        return None
    best = max(known, key=lambda r: r["ELBO"])
    return f"{best['ELBO']:,.3f} ± {best['ELBO error']:.3f}"


def _seconds(rows: Rows) -> str | None:
    run, compiling = median(rows, "run CPU s"), median(rows, "compile CPU s")
    return None if run is None else f"{run:,.1f} ({compiling:,.1f})"


def duels(rows: Rows, posteriors: Sequence[str]) -> list[Row]:
    """Ours against NUTS, by posterior; wins and losses."""
    found = []
    for p in posteriors:
        own, other = of(rows, posterior=p, method=OURS), of(rows, posterior=p, method=NUTS)
        if not (own and other):
            continue
        a, b = seconds_to_bars(own), seconds_to_bars(other)
        found.append(
            {
                "posterior": p,
                OURS: a,
                NUTS: b,
                "NUTS, whole run": median(other, "run CPU s"),
                "ratio": a / b if a is not None and b is not None else None,
                "faster": _winner(a, b),
            }
        )
    return found


def _winner(own: float | None, other: float | None) -> str:
    if own is None or other is None:
        return {(True, True): "neither is good", (True, False): NUTS, (False, True): OURS}[
            own is None, other is None
        ]
    return OURS if own < other else NUTS


def checks(rows: Rows) -> list[Check]:
    """The bars of the default fit."""
    own = of(rows, method=OURS)
    posteriors = in_order(own, "posterior")
    if not posteriors:
        return []
    good = sum(all_good(of(own, posterior=p)) for p in posteriors)
    share = good / len(posteriors)
    found = [
        Check(f"{OURS}: share of good posteriors", share, f"≥ {SHARE_BAR}", share >= SHARE_BAR)
    ]
    for method in RIVALS:
        failed = [
            p for p in posteriors if (r := of(rows, posterior=p, method=method)) and not all_good(r)
        ]
        if not of(rows, method=method):
            continue
        worse = [p for p in failed if not _is_nearer(rows, p, method)]
        what = f"{OURS} no nearer than {method} on {len(failed)} posteriors where that fails"
        names = f" ({', '.join(worse)})" if worse else ""
        found.append(Check(what + names, len(worse), "= 0", not worse))
    for duel in duels(rows, posteriors):
        if duel["NUTS, whole run"] >= LONG:
            what = f"{duel['posterior']}: CPU seconds until good, {OURS} : {NUTS}"
            ratio = duel["ratio"] if duel["ratio"] is not None else math.nan
            found.append(Check(what, ratio, "< 1", duel["faster"] == OURS))
    return found


def _is_nearer(rows: Rows, posterior: str, method: str) -> bool:
    own, other = (
        float(np.median([severity(r) for r in of(rows, posterior=posterior, method=m)]))
        for m in (OURS, method)
    )
    return own < other


def source_rows(rows: Rows, sources: Sequence[Row], packages: Sequence[str]) -> list[Row]:
    """Which rows come from which run, and the versions of some packages then."""
    keys = ("date", "commit", "machine", "load average (1, 5, 15 minutes)", *packages, "command")
    return [
        {"methods": ", ".join(methods), "rows": len(own)} | {k: source.get(k) for k in keys}
        for number, source in enumerate(sources)
        if (own := of(rows, source=number)) and (methods := in_order(own, "method"))
    ]


def page(report: Report, picture: Path, place: Path) -> str:
    """A short page: how near each method comes to each posterior."""
    rows = report.details["rows"]
    methods = in_order(rows, "method")
    table = [
        {"posterior": p} | {m: _verdict(of(rows, posterior=p, method=m)) for m in methods}
        for p in in_order(rows, "posterior")
    ]
    folder = os.path.relpath(picture.parent, place.parent)
    return (
        "\n\n".join(
            [
                f"# {report.name.replace('_', ' ').capitalize()}",
                "Worst error of a mean in standard deviations; lowest to highest ratio of standard "
                f"deviations; **bold** where all seeds are good, which is: {BAR}. Made by "
                f"`benchmarks/accuracy.py`; [all numbers and how they were measured]({folder}/"
                f"{report.name}.md).",
                f"![Errors by posterior and method]({folder}/{picture.name})",
                markdown_table(table),
                "## Bars",
                markdown_table([check.row() for check in report.checks]),
                "## Seconds",
                "CPU seconds until a fit is good, compiling apart (– where it never is).",
                markdown_table(report.tables.get("CPU seconds until good, compiling apart", [])),
            ]
        )
        + "\n"
    )


def _verdict(rows: Rows) -> str | None:
    error = median(rows, "worst mean error")
    if error is None:
        return None
    text = f"{error:.2f}; {_sd_range(rows)}"
    return f"**{text}**" if all_good(rows) else text
