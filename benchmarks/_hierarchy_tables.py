"""What is made of the rows of `benchmarks.hierarchies`: tables, bars and a page."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._accuracy_tables import Rows, all_good, in_order, median, of
from benchmarks._common import Check, Report, Row, markdown_table
from benchmarks._hierarchy_fits import LOW_RANK, NUTPIE, OURS, PEERS
from benchmarks._hierarchy_models import Cell
from benchmarks._hierarchy_problems import (
    CALIBRATION,
    COST,
    GRID,
    LOGISTIC,
    MILLION,
    POSTERIORS,
)
from benchmarks._hierarchy_scores import BAR
from benchmarks._hierarchy_studies import uniformity

# CPU seconds until good, ours : the better run of NUTS.
RATIOS = {"slopes": 0.25, "mrp": 0.1, "irt": 0.5, "insteval": 0.25, "stochvol": 0.3, "gp": 0.5}
# CPU seconds of a fit that is good, compiling included.
SECONDS = {
    "radon_slopes": 8.0,
    "radon_slopes_centred": 8.0,
    "logistic-100000x50": 10.0,
    "logistic-1000000x20": 60.0,
}
# Posteriors without one mode or a few hyperparameters: a verdict that holds, within so many CPU s.
HONEST, HONEST_SECONDS = ("horseshoe", "bnn", "matfac"), 120.0
GRID_SHARE, GRID_SECONDS = 0.95, 5.0
MILLION_MINUTES, MILLION_GB = 15.0, 16.0
LOWEST_COVERAGE, HIGHEST_COVERAGE = 0.88, 0.92
# An exact posterior has the truth of 1 in 22 hyperparameters beyond two standard deviations.
BEYOND, BEYOND_CHANCE = 0.0455, 0.01
GROWTH = 1.1
SMALLEST_P = 0.01

FITTED = (
    *("posterior", "method", "seeds", "good", "CPU s", "of it compiling", "CPU s to good"),
    *("densities", "gradients", "curvatures", "peak GB", "status", "k-hat", "worst group k-hat"),
    *("worst mean error", "lowest sd ratio", "highest sd ratio", "share within", "left out"),
    "note",
)
FACTORS = ("family", "parametrisation", "groups", "rows", "terms")


def tables(rows: Rows) -> dict[str, Sequence[Row]]:
    """All tables, by heading; of what was not run there is none."""
    found: dict[str, Sequence[Row]] = {}
    named = {POSTERIORS: "Posteriors", LOGISTIC: "Logistic regressions"}
    for table, heading in named.items():
        if own := of(rows, table=table):
            found[f"{heading}: CPU seconds until good"] = duels(own)
            found[f"{heading}: fits"] = fits(own)
    if own := of(rows, table=GRID):
        found["Grid by level"] = levels(own)
        found["Grid: losses"] = losses(of(own, method=OURS))
        found["Grid: fits"] = fits(own)
    if own := of(rows, table=MILLION):
        found["A very large hierarchy"] = chosen(own, MILLION_COLUMNS)
    if own := of(rows, table=COST):
        found["Cost against size"] = chosen(own, COST_COLUMNS)
    if own := of(rows, table=CALIBRATION):
        found["Calibration"] = calibration(own)
    return found


MILLION_COLUMNS = (
    *("groups", "rows", "dim", "wall s", "CPU s", "of it compiling", "draws CPU s", "peak GB"),
    *("densities", "gradients", "curvatures", "worst distance", "beyond 2 sds", "hyperparameters"),
    *("coverage", "status", "k-hat", "worst group k-hat", "report CPU s", "note"),
)
COST_COLUMNS = (
    *("groups", "dim", "CPU s", "of it compiling", "peak GB", "GB at the start"),
    *("densities", "gradients", "curvatures", "formula", "note"),
)


def chosen(rows: Rows, columns: Sequence[str]) -> list[Row]:
    """Rows with some columns only."""
    return [{column: row.get(column) for column in columns} for row in rows]


def fits(rows: Rows) -> list[Row]:
    """A line by posterior and method, medians over seeds."""
    found = []
    for posterior in in_order(rows, "posterior"):
        for method in in_order(of(rows, posterior=posterior), "method"):
            own = of(rows, posterior=posterior, method=method)
            line: dict[str, Any] = {name: _median(own, name) for name in FITTED}
            found.append(
                line
                | {"posterior": posterior, "method": method, "seeds": len(own)}
                | {"good": verdicts(own), "status": _all(own, "status"), "note": _all(own, "note")}
            )
    return found


def verdicts(rows: Rows) -> str | None:
    """How many of the fits that could be judged are good."""
    judged = [row for row in rows if row["is good"] is not None]
    return f"{sum(row['is good'] for row in judged)} of {len(judged)}" if judged else None


def _median(rows: Rows, column: str) -> float | None:
    values = [row.get(column) for row in rows]
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    return float(np.median(numbers)) if numbers else None


def _all(rows: Rows, column: str) -> str | None:
    return "; ".join(dict.fromkeys(str(v) for row in rows if (v := row.get(column)))) or None


# ------------------------------------------------------------------------------- ours and others


def duels(rows: Rows) -> list[Row]:
    """CPU seconds until good, ours with compiling and others' without, by posterior."""
    found = []
    for posterior in in_order(rows, "posterior"):
        own = of(rows, posterior=posterior)
        line: dict[str, Any] = {"posterior": posterior, OURS: _cell(of(own, method=OURS))}
        line |= {method: _cell(of(own, method=method)) for method in PEERS}
        found.append(line | {"ratio": ratio(own)})
    return found


def ratio(rows: Rows) -> float | None:
    """Seconds until good of ours : the better NUTS; ∞ where only NUTS is good, 0 where ours is."""
    ours = _seconds(of(rows, method=OURS))
    others = [_seconds(of(rows, method=method)) for method in (NUTPIE, LOW_RANK)]
    if not any(of(rows, method=method) for method in (NUTPIE, LOW_RANK)):
        return None
    best = min(others)
    if math.isinf(ours) and math.isinf(best):
        return None
    return math.inf if math.isinf(ours) else ours / best


def _seconds(rows: Rows) -> float:
    seconds = median(rows, "CPU s to good") if all_good(rows) else None
    return math.inf if seconds is None else seconds


def _cell(rows: Rows) -> Any:
    """Seconds, or why there are none."""
    if not rows:
        return None
    seconds = _seconds(rows)
    if not math.isinf(seconds):
        return seconds
    spent = _median(rows, "CPU s")
    if all(row["is good"] is None for row in rows):
        return f"– ({_all(rows, 'note') or 'not judged'})"
    return f"not good ({spent:.3g} s)"


# ------------------------------------------------------------------------------------------ grid


def levels(rows: Rows) -> list[Row]:
    """Fits of the grid by method and by level of each factor."""
    found = []
    for method in in_order(rows, "method"):
        own = [(Cell.parse(row["posterior"]), row) for row in of(rows, method=method)]
        found.append(_level("all", method, [row for _, row in own]))
        for factor in FACTORS:
            for level in sorted({getattr(cell, factor) for cell, _ in own}):
                there = [row for cell, row in own if getattr(cell, factor) == level]
                found.append(_level(f"{factor} {level}", method, there))
    return found


def _level(name: str, method: str, rows: Rows) -> Row:
    return {
        "level": name,
        "method": method,
        "fits": len(rows),
        "good": verdicts(rows),
        "wrongly called good": wrongly_good(rows),
        "median CPU s": _median(rows, "CPU s"),
        "median CPU s, compiling apart": _after_compiling(rows),
        "median CPU s to good": _median(rows, "CPU s to good"),
        "median gradients": _median(rows, "gradients"),
    }


def wrongly_good(rows: Rows) -> int:
    """Number of fits that the report calls good and the reference does not."""
    return sum(row["is good"] is False and bool(row["says good"]) for row in rows)


def _after_compiling(rows: Rows) -> float | None:
    seconds = [
        row["CPU s"] - (row["of it compiling"] or 0) for row in rows if row["CPU s"] is not None
    ]
    return float(np.median(seconds)) if seconds else None


def losses(rows: Rows) -> list[Row]:
    """Fits that are not good, with what they lack."""
    columns = (
        *("posterior", "seed", "status", "worst mean error", "worst mean at", "lowest sd ratio"),
        *("highest sd ratio", "worst sd at", "share within", "few: worst mean error"),
        *("k-hat", "formula", "note"),
    )
    return chosen([r for r in rows if r["is good"] is False or r["CPU s"] is None], columns)


# ----------------------------------------------------------------------------------- calibration


def calibration(rows: Rows) -> list[Row]:
    """p-values of uniform ranks and coverage of effects, over all fits and those called good."""
    found = []
    for name in in_order(rows, "posterior"):
        own = [row for row in of(rows, posterior=name) if row["ranks"]]
        for what, chosen_rows in (
            ("all", own),
            ("called good", [r for r in own if r["says good"]]),
        ):
            line: dict[str, Any] = {"hierarchy": name, "fits": what, "data sets": len(chosen_rows)}
            for quantity in ("fixed", "scale", "effect"):
                shares = [row["ranks"][quantity] for row in chosen_rows]
                line[f"p, {quantity}"] = uniformity(shares) if shares else None
            covered = [row["coverage"] for row in chosen_rows]
            line["coverage of effects"] = float(np.mean(covered)) if covered else None
            found.append(line | {"median CPU s": _median(chosen_rows, "CPU s")})
    return found


# ------------------------------------------------------------------------------------------ bars


def checks(rows: Rows) -> list[Check]:
    """All bars whose rows are there."""
    makers: Mapping[str, Callable[[Rows], list[Check]]] = {
        POSTERIORS: _posterior_checks,
        LOGISTIC: _posterior_checks,
        GRID: _grid_checks,
        MILLION: _million_checks,
        COST: _cost_checks,
        CALIBRATION: _calibration_checks,
    }
    return [
        check
        for table, make in makers.items()
        if (own := of(rows, table=table))
        for check in make(own)
    ]


def _at_most(what: str, value: float | None, bar: float) -> Check:
    value = math.nan if value is None else value
    return Check(what, value, f"≤ {bar:g}", value <= bar)


def _posterior_checks(rows: Rows) -> list[Check]:
    found = []
    for name in in_order(rows, "posterior"):
        own = of(rows, posterior=name)
        ours = of(own, method=OURS)
        if not ours:
            continue
        if name in HONEST:
            wrong = wrongly_good(ours)
            found.append(Check(f"{name}: wrongly called good", wrong, "= 0", wrong == 0))
            found.append(_at_most(f"{name}: CPU s", _median(ours, "CPU s"), HONEST_SECONDS))
        elif name in SECONDS:
            found.append(_at_most(f"{name}: CPU s until good", _seconds(ours), SECONDS[name]))
        elif name in RATIOS:
            what = f"{name}: CPU s until good, ours : the better NUTS"
            found.append(_at_most(what, ratio(own), RATIOS[name]))
        else:
            good = sum(bool(row["is good"]) for row in ours)
            found.append(Check(f"{name}: good seeds", good, f"= {len(ours)}", good == len(ours)))
    return found


def _grid_checks(rows: Rows) -> list[Check]:
    ours = [row for row in of(rows, method=OURS) if row["is good"] is not None]
    if not ours:
        return []
    share, wrong = float(np.mean([row["is good"] for row in ours])), wrongly_good(ours)
    what = f"grid: share of {len(ours)} fits that are good"
    return [
        Check(what, share, f"≥ {GRID_SHARE}", share >= GRID_SHARE),
        Check("grid: wrongly called good", wrong, "= 0", wrong == 0),
        _at_most("grid: median CPU s, compiling apart", _after_compiling(ours), GRID_SECONDS),
    ]


def _million_checks(rows: Rows) -> list[Check]:
    from scipy.stats import binom

    found = []
    for row in rows:
        if row["coverage"] is None:
            found.append(Check("very large: done", 0, "= 1", holds=False))
            continue
        most = int(binom.ppf(1 - BEYOND_CHANCE, row["hyperparameters"], BEYOND))
        what = f"very large: of {row['hyperparameters']} hyperparameters, beyond 2 sds"
        found += [
            _at_most(what, row["beyond 2 sds"], most),
            _covered("very large: coverage of 90 % intervals of effects", row["coverage"]),
            _at_most("very large: minutes", row["wall s"] / 60, MILLION_MINUTES),
            _at_most("very large: peak memory, GB", row["peak GB"], MILLION_GB),
        ]
    return found


def _covered(what: str, value: float) -> Check:
    bar = f"in {LOWEST_COVERAGE} to {HIGHEST_COVERAGE}"
    return Check(what, value, bar, LOWEST_COVERAGE <= value <= HIGHEST_COVERAGE)


def _cost_checks(rows: Rows) -> list[Check]:
    done = sorted((row for row in rows if row["formula"]), key=lambda row: row["groups"])
    found = [Check("cost: sizes done", len(done), f"= {len(rows)}", len(done) == len(rows))]
    for what in ("time", "memory"):
        for heading, own in (("all sizes", done), ("the two largest", done[-2:])):
            power = growth(own, what) if len(own) > 1 else None
            found.append(
                _at_most(f"cost: {what} as which power of groups, {heading}", power, GROWTH)
            )
    return found


def growth(rows: Rows, what: str) -> float:
    """Slope on logarithmic axes, by least squares; what is there before the fit is taken off."""
    if what == "time":
        values = [row["CPU s"] - (row["of it compiling"] or 0) for row in rows]
    else:
        values = [row["peak GB"] - row["GB at the start"] for row in rows]
    sizes = np.log([row["groups"] for row in rows])
    return float(np.polyfit(sizes, np.log(np.maximum(values, 1e-6)), 1)[0])


def _calibration_checks(rows: Rows) -> list[Check]:
    found = []
    for line in calibration(rows):
        if not line["data sets"] or (line["fits"] == "all" and line["hierarchy"] == "bernoulli"):
            continue
        what = f"{line['hierarchy']}, {line['fits']} ({line['data sets']})"
        p = min(line[f"p, {quantity}"] for quantity in ("fixed", "scale", "effect"))
        bar = SMALLEST_P / 3
        found.append(Check(f"{what}: smallest p of uniform ranks", p, f"≥ {bar:.4f}", p >= bar))
        found.append(_covered(f"{what}: coverage of effects", line["coverage of effects"]))
    return found


# ------------------------------------------------------------------------------------------ page


def page(report: Report, picture: Path, place: Path) -> str:
    """A short page: bars, and the tables but those of single fits."""
    folder = os.path.relpath(picture.parent, place.parent)
    parts = [
        f"# {report.name.capitalize()}",
        "Hierarchies and large regressions by the default call, in processes of their own with "
        f"empty caches. Good: {BAR}. Made by `benchmarks/hierarchies.py`; [all numbers and how "
        f"they were measured]({folder}/{report.name}.md).",
        f"![Seconds, errors, cost and ranks]({folder}/{picture.name})",
        "## Bars",
        markdown_table([check.row() for check in report.checks]),
    ]
    for heading, rows in report.tables.items():
        if heading == "Runs" or heading.endswith(": fits"):
            continue
        parts += [f"## {heading}", markdown_table(rows)]
    return "\n\n".join(parts) + "\n"
