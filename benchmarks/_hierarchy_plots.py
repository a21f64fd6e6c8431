"""The picture of `benchmarks.hierarchies`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._accuracy_tables import Rows, in_order, of
from benchmarks._hierarchy_fits import OURS
from benchmarks._hierarchy_problems import CALIBRATION, COST, GRID, LOGISTIC, POSTERIORS
from benchmarks._hierarchy_scores import MEAN_BAR

SMALLEST, LARGEST = 3e-3, 100.0


def save(rows: Rows, path: Path) -> bool:
    """Draw what there is; False if that is nothing."""
    from matplotlib.figure import Figure

    fitted = [row for table in (POSTERIORS, LOGISTIC) for row in of(rows, table=table)]
    panels: Mapping[str, tuple[Callable[[Any, Rows], None], Rows]] = {
        "CPU s until good": (_seconds, [r for r in fitted if r["CPU s to good"]]),
        "Grid: worst error of a mean, sd": (_grid, of(rows, table=GRID, method=OURS)),
        "Cost against groups": (_cost, [r for r in of(rows, table=COST) if r["formula"]]),
        "Ranks of the truth": (_ranks, [r for r in of(rows, table=CALIBRATION) if r["ranks"]]),
    }
    shown = {title: panel for title, panel in panels.items() if panel[1]}
    if not shown:
        return False
    figure = Figure(figsize=(5.2 * len(shown), 4.6), layout="constrained")
    axes = figure.subplots(1, len(shown), squeeze=False)[0]
    for axis, (title, (draw, own)) in zip(axes, shown.items(), strict=True):
        draw(axis, own)
        axis.set_title(title, fontsize="medium")
    figure.savefig(path, dpi=120)
    return True


def _seconds(axis: Any, rows: Rows) -> None:
    posteriors = in_order(rows, "posterior")
    for number, method in enumerate(in_order(rows, "method")):
        own = of(rows, method=method)
        places = [posteriors.index(row["posterior"]) for row in own]
        seconds = [row["CPU s to good"] for row in own]
        axis.plot(seconds, places, "o", color=f"C{number}", alpha=0.8, label=method)
    axis.set_yticks(range(len(posteriors)), posteriors, fontsize="small")
    axis.set(xscale="log")
    _tick(axis.xaxis)
    axis.invert_yaxis()
    axis.grid(axis="x", lw=0.4)
    axis.legend(fontsize="x-small")


def _grid(axis: Any, rows: Rows) -> None:
    judged = [row for row in rows if row["worst mean error"] is not None]
    looks = {True: ("o", "C0", "good"), False: ("x", "C3", "not good"), None: (".", "0.6", "–")}
    for verdict, (marker, color, label) in looks.items():
        own = [row for row in judged if row["is good"] is verdict]
        if own:
            error = np.clip([row["worst mean error"] for row in own], SMALLEST, LARGEST)
            seconds = [row["CPU s"] for row in own]
            axis.plot(seconds, error, marker, color=color, label=label, ms=4)
    axis.axhline(MEAN_BAR, color="0.7", lw=0.8)
    axis.set(xscale="log", yscale="log", xlabel="CPU s, compiling included")
    _tick(axis.xaxis)
    _tick(axis.yaxis)
    if judged:
        axis.legend(fontsize="x-small")


def _cost(axis: Any, rows: Rows) -> None:
    rows = sorted(rows, key=lambda row: row["groups"])
    groups = np.array([row["groups"] for row in rows])
    after = [row["CPU s"] - (row["of it compiling"] or 0) for row in rows]
    memory = [row["peak GB"] - row["GB at the start"] for row in rows]
    axis.plot(groups, after, "o-", label="CPU s, compiling apart")
    axis.plot(groups, memory, "s-", label="memory of the fit, GB")
    axis.plot(groups, after[-1] * groups / groups[-1], "--", color="0.6", label="in proportion")
    axis.set(xscale="log", yscale="log", xlabel="groups")
    axis.legend(fontsize="x-small")


def _ranks(axis: Any, rows: Rows) -> None:
    for number, name in enumerate(in_order(rows, "posterior")):
        own = of(rows, posterior=name)
        for quantity, style in (("fixed", "-"), ("scale", "--"), ("effect", ":")):
            shares = np.sort([row["ranks"][quantity] for row in own])
            levels = (np.arange(len(shares)) + 0.5) / len(shares)
            axis.plot(
                shares, levels - shares, style, color=f"C{number}", label=f"{name} {quantity}"
            )
    axis.axhline(0, color="0.7", lw=0.8)
    axis.set(xlabel="rank", ylabel="empirical minus uniform distribution")
    axis.legend(fontsize="x-small")


def _tick(axis: Any) -> None:
    """Numbers at 1, 2 and 5 of each decade: those of all others lie over each other."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axis.set_minor_formatter(NullFormatter())
