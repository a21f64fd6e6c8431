"""Draws of many coordinates, pair by pair, over draws of a reference."""

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pymc_flows.errors import ArgumentError
from pymc_flows.plots.axes import STYLE, Floats, new_figure
from pymc_flows.plots.data import Names, columns

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure


def pairs(
    samples: Any,
    figure: "Figure | SubFigure | None" = None,
    *,
    reference: Any = None,
    var_names: Names = None,
    labels: tuple[str, str] = ("approximation", "reference"),
    max_coordinates: int = 6,
) -> npt.NDArray[np.object_]:
    """Scatter draws for each pair of coordinates, over draws of a reference.

    On the diagonal are histograms of each coordinate. The limits hold nearly all draws of both: the
    outermost 0.2 % on each side may be outside.

    Parameters
    ----------
    samples : DataTree, Dataset, DataArray or array_like, shape (..., k)
        Draws of the approximation: the result of ``approx.sample``, or an array.
    figure : matplotlib.figure.Figure or SubFigure, optional
        Where to put the axes.
    reference : the same, optional
        Draws of the same coordinates from another source, such as ``pm.sample``.
    var_names : str or sequence of str, optional
        Which variables; by default all.
    labels : pair of str
        Names of the draws and of those of the reference in the legend.
    max_coordinates : int
        Most coordinates that are drawn, the first ones; a warning says if there are more.

    Returns
    -------
    ndarray of matplotlib.axes.Axes, shape (k, k)
        Row by row; None above the diagonal.

    Raises
    ------
    ArgumentError
        If the reference has other coordinates, or there is nothing to draw.
    FlowShapeError, TypeError, ValueError
        As in `draws`.
    """
    z, names = columns(samples, var_names)
    others, other_names = (None, names) if reference is None else columns(reference, var_names)
    if other_names != names:
        differ = sorted(set(names) ^ set(other_names)) or ["their order"]
        raise ArgumentError(
            f"expected a reference with the same {len(names)} coordinates\n"
            f"got {len(other_names)}; what differs: {', '.join(differ[:6])}\n"
            "choose those that both have with var_names"
        )
    if not names or not len(z) or (others is not None and not len(others)):
        raise ArgumentError("expected draws of at least one coordinate\ngot none that are finite")
    if len(names) > max_coordinates:
        warnings.warn(
            f"showing the first {max_coordinates} of {len(names)} coordinates; a larger "
            "max_coordinates= shows more, var_names= others",
            stacklevel=2,
        )
    k = min(len(names), max_coordinates)
    figure = new_figure((1.5 + 1.7 * k, 1.5 + 1.7 * k)) if figure is None else figure
    grid: Any = figure.subplots(k, k, sharex="col", squeeze=False)
    sets = [(z, labels[0], STYLE.approximation, 2)]
    if others is not None:
        sets.insert(0, (others, labels[1], STYLE.reference, 1))
    frames = [_frame(np.concatenate([draws[:, i] for draws, *_ in sets])) for i in range(k)]
    axes = np.full((k, k), None, dtype=object)
    for i, j in np.ndindex(k, k):
        ax: Axes = grid[i, j]
        if j > i:
            ax.remove()
            continue
        axes[i, j] = ax
        ax.set_xlim(*frames[j])
        for draws, label, colour, order in sets:
            style: dict[str, Any] = {"color": colour, "label": label, "zorder": order}
            if i == j:
                bins = np.linspace(*frames[i], STYLE.pair_bins + 1).tolist()
                ax.hist(draws[:, i], bins, histtype="step", density=True, **style)
            else:
                x, y = _thinned(draws[:, [j, i]]).T
                alpha = float(np.clip(300 / len(x), 0.15, 0.8))
                ax.scatter(x, y, s=5, linewidths=0, alpha=alpha, **style)
        if i == j:
            ax.set_yticks([])
        else:
            ax.set_ylim(*frames[i])
            ax.tick_params(labelleft=j == 0)
        if i == k - 1:
            ax.set_xlabel(names[j])
        if j == 0 and i:
            ax.set_ylabel(names[i])
    if others is not None:
        handles, texts = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles[::-1], texts[::-1], loc="upper right")
    return axes


def _thinned(z: Floats) -> Floats:
    return z[:: -(-len(z) // STYLE.pair_dots)]


def _frame(values: Floats) -> tuple[float, float]:
    """Range of nearly all values, and a margin."""
    low, high = np.quantile(values, [STYLE.outermost, 1 - STYLE.outermost])
    margin = 0.05 * (high - low) or 0.5
    return float(low - margin), float(high + margin)
