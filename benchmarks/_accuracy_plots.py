"""The picture of `benchmarks.accuracy`."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from benchmarks._accuracy_tables import LOWEST_SD, MEAN_BAR, Rows, in_order, of

# Errors beyond these are drawn at the edge.
SMALLEST, LARGEST = 3e-3, 100.0


def save(rows: Rows, path: Path) -> None:
    """Draw the worst errors of all fits, by posterior and method."""
    import matplotlib.pyplot as plt

    posteriors, methods = in_order(rows, "posterior"), in_order(rows, "method")
    height = 1.5 + 0.42 * len(posteriors)
    figure, axes = plt.subplots(1, 2, figsize=(11, height), sharey=True, layout="constrained")
    panels = {
        "worst mean error": ("worst error of a mean, sd", MEAN_BAR),
        "worst log sd error": ("worst |log ratio of sds|", -math.log(LOWEST_SD)),
    }
    places = np.arange(len(posteriors))
    offsets = np.linspace(0.32, -0.32, len(methods)) if len(methods) > 1 else [0.0]
    for axis, (column, (title, bar)) in zip(axes, panels.items(), strict=True):
        axis.axvspan(SMALLEST, bar, color="0.93", zorder=0)
        for number, (method, offset) in enumerate(zip(methods, offsets, strict=True)):
            fits = [r for r in of(rows, method=method) if r[column] is not None]
            x = np.clip([r[column] for r in fits], SMALLEST, LARGEST)
            y = [posteriors.index(r["posterior"]) - offset for r in fits]
            axis.plot(x, y, "o", ms=3.5, color=f"C{number % 10}", alpha=0.8, label=method)
        axis.set(xscale="log", xlim=(SMALLEST, LARGEST), title=title)
        axis.set_yticks(places, posteriors)
        axis.grid(axis="x", lw=0.4)
    axes[0].invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    figure.savefig(path, dpi=120)
    plt.close(figure)
