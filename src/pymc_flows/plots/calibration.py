"""Ranks of simulation-based calibration."""

from typing import TYPE_CHECKING, Any

import numpy as np

from pymc_flows.errors import ArgumentError
from pymc_flows.many import Calibration
from pymc_flows.plots.axes import STYLE, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 4


def calibration(
    found: Calibration,
    figure: "Figure | None" = None,
    *,
    most: int = 12,
    level: float = 0.95,
) -> "np.ndarray[Any, np.dtype[Any]]":
    """Draw how ranks deviate from uniform ones, for each scalar.

    A line is the empirical distribution function of u = (rank + U) / (draws + 1), minus u. For
    calibrated fits it stays inside the band with probability ``level``, for each scalar by itself.
    A line above zero means draws that are too large; one below zero, too small; one that is first
    above and then below, intervals that are too narrow.

    Parameters
    ----------
    found : Calibration
    figure : matplotlib.figure.Figure, optional
        Where to draw.
    most : int
        Most scalars that are drawn, those with the smallest p-values first.
    level : float
        Level of the band, by the Kolmogorov-Smirnov statistic.

    Returns
    -------
    ndarray of matplotlib.axes.Axes

    Raises
    ------
    ArgumentError
        If ``level`` is not between 0 and 1, or ``most`` is less than 1.
    """
    from scipy import stats  # slow to import

    if not 0 < level < 1 or most < 1:
        raise ArgumentError(f"need 0 < level < 1 and most >= 1, got {level!r} and {most!r}")
    scalars, p_values = found.scalars(), found.p_values()
    names = list(p_values)[:most]
    columns = min(COLUMNS, len(names))
    rows = -(-len(names) // columns)
    figure = new_figure((3.2 * columns, 2.6 * rows)) if figure is None else figure
    panels: list[Axes] = []
    width = float(stats.kstwo.ppf(level, found.n))
    for place, name in enumerate(names, start=1):
        ax = figure.add_subplot(rows, columns, place, sharey=panels[0] if panels else None)
        u = np.sort(scalars[name])
        steps = np.arange(len(u) + 1) / len(u)
        x = np.repeat(np.concatenate([[0.0], u, [1.0]]), 2)[1:-1]
        ax.plot(x, np.repeat(steps, 2) - x, color=STYLE.approximation)
        ax.axhspan(-width, width, color="0.9", label=f"{level:.0%}")
        ax.axhline(0.0, color="black", linewidth=0.8)
        ax.set(title=name, xlabel=f"u   (p = {p_values[name]:.2g})", xlim=(0, 1))
        panels.append(ax)
    panels[0].set_ylabel("deviation from uniform")
    return np.array(panels, dtype=object)
