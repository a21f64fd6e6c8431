"""Training: losses, parameters and gradients against steps."""

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pymc_flows.errors import FlowShapeError
from pymc_flows.plots.axes import STYLE, new_axes, new_figure
from pymc_flows.plots.data import (
    Floats,
    Names,
    Row,
    extremes,
    running_mean,
    tracked_rows,
    typical_range,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.lines import Line2D


def history(
    hist: Any,
    ax: "Axes | None" = None,
    *,
    window: int | None = None,
    log_z: float | None = None,
    label: str | None = None,
    stops: Mapping[int, str] | Sequence[int] = (),
) -> "Axes":
    """Draw the loss of each step, and its running mean with a band of two standard errors.

    A long history is thinned to the lowest and the highest loss of equal stretches, so that no
    spike is lost. Losses far from the bulk, such as the first ones, are outside the limits; the
    legend counts them. Steps whose loss is not finite are marked by red ticks at the bottom,
    counted in the legend, and left out of the mean.

    Parameters
    ----------
    hist : array_like, shape (n,), or object with ``hist``
        Losses of steps 1 to n, in nats; or an inference or approximation that has them.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    window : int, optional
        Number of steps, centred, of the running mean; by default a fiftieth of all.
    log_z : float, optional
        Log normalising constant of the target, in nats. A line at −``log_z`` shows the lowest
        possible expected loss: the distance to it is KL(q ‖ p).
    label : str, optional
        Name of this history in the legend.
    stops : sequence of int, or dict of int to str, optional
        Steps after which something began or ended, such as a fit that `refine` continued, each
        with an optional label: a vertical line for each.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    FlowShapeError
        If the history is not one-dimensional, or is empty.
    ValueError
        If ``window`` is less than 1, or a stop is not among the steps.
    """
    losses = np.asarray(getattr(hist, "hist", hist), dtype=float)
    if not losses.size and getattr(hist, "ladder", None) is not None:
        raise FlowShapeError(
            "there are no losses: the Gaussian that pymc_flows.fit begins with was good enough, "
            "and nothing was trained\nlook at approx.ladder, or pymc_flows.plots.ladder(approx)"
        )
    if losses.ndim != 1 or not len(losses):
        raise FlowShapeError(
            "expected a history of shape (n,), one loss per step\n"
            f"got shape {losses.shape}\n"
            "fit first, or pass the losses of one fit"
        )
    window = max(1, len(losses) // 50) if window is None else window
    if window < 1:
        raise ValueError(f"expected a window of at least 1 step\ngot {window}")
    texts = stops if isinstance(stops, Mapping) else dict.fromkeys(stops, "")
    if wrong := [stop for stop in texts if not 0 <= stop <= len(losses)]:
        raise ValueError(f"expected stops from 0 to {len(losses)}\ngot {wrong}")
    ax = new_axes(figsize=(7, 4)) if ax is None else ax

    frame = ax.get_ylim() if ax.lines else None
    finite = np.isfinite(losses)
    name = "" if label is None else f"{label}: "
    kept = extremes(losses, STYLE.line_points)
    [each] = ax.plot(kept + 1, np.where(finite, losses, np.nan)[kept], linewidth=0.6, alpha=0.35)
    centres = np.unique(np.linspace(0, len(losses) - 1, STYLE.line_points // 2).astype(int))
    mean, error = running_mean(losses, centres, window)
    ax.plot(centres + 1, mean, color=each.get_color(), label=f"{name}mean over {window:,} steps")
    ax.fill_between(
        centres + 1,
        mean - 2 * error,
        mean + 2 * error,
        color=each.get_color(),
        alpha=0.3,
        linewidth=0,
        label=f"{name}± 2 standard errors",
    )
    outside = _frame_losses(ax, losses[finite], log_z, frame)
    each.set_label(f"{name}each step" + (f" ({outside:,} outside the frame)" if outside else ""))
    if not finite.all():
        [missing] = np.nonzero(~finite)
        ax.plot(
            missing + 1,
            np.zeros(len(missing)),
            "|",
            color="red",
            markersize=14,
            transform=ax.get_xaxis_transform(),
            label=f"{name}not finite ({len(missing):,} steps)",
        )
    if log_z is not None:
        ax.axhline(-log_z, color="black", linestyle="--", linewidth=1, label="−log Z")
    for stop, text in texts.items():
        ax.axvline(stop + 0.5, color="grey", linestyle=":", linewidth=1)
        ax.annotate(
            text,
            (stop + 0.5, 0.02),
            (3, 0),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            va="bottom",
            rotation=90,
            fontsize="small",
        )
    ax.set_xlabel("step")
    ax.set_ylabel("loss (nats)")
    ax.legend()
    return ax


def traces(
    tracker: Any,
    figure: "Figure | SubFigure | None" = None,
    *,
    var_names: Names = None,
    max_rows: int = 24,
) -> npt.NDArray[np.object_]:
    """Draw how parameters moved during training, and their gradients beside them.

    One row for each parameter of each layer (``b_0``, ``b_1``, …): on the left a line, on the
    right dots, in one colour for each component.

    Parameters
    ----------
    tracker : Dataset, or object with ``dataset``, or pymc.variational.callbacks.Tracker, or mapping
        Tracked values. A dataset has the dimension ``step`` first, then an optional one of layers,
        then those of the parameter; gradients are the variables called ``grad_`` + the parameter's
        name. PyMC's tracker, or a mapping from names to arrays, has no step numbers: its values
        count as those of steps 1, 2, ….
    figure : matplotlib.figure.Figure or SubFigure, optional
        Where to put the axes.
    var_names : str or sequence of str, optional
        Which rows to draw: names of parameters (all their layers) or of rows.
    max_rows : int, optional
        Most rows that are drawn; a warning says if there are more.

    Returns
    -------
    ndarray of matplotlib.axes.Axes, shape (rows, 2), or (rows, 1) if there are no gradients

    Raises
    ------
    ValueError
        If nothing was tracked, or ``var_names`` has a name that was not.
    """
    rows = tracked_rows(tracker, var_names)
    if len(rows) > max_rows:
        warnings.warn(
            f"showing the first {max_rows} of {len(rows)} rows; choose others with var_names=, or "
            f"raise max_rows={max_rows}",
            stacklevel=2,
        )
        rows = rows[:max_rows]
    columns = 2 if any(row.gradient is not None for row in rows) else 1
    figure = new_figure((6 * columns, 0.6 + 1.9 * len(rows))) if figure is None else figure
    axes = figure.subplots(len(rows), columns, sharex=True, squeeze=False)
    for row, (left, *right) in zip(rows, axes, strict=True):
        lines = _draw_components(left, row, row.values, linestyle="-")
        left.set_title(row.name)
        for ax in right:
            faint = float(np.clip(300 / len(row.steps), 0.05, 0.8))
            ax.axhline(0, color="grey", linewidth=0.6)
            dots = _draw_components(ax, row, row.gradient, linestyle="", marker=".", alpha=faint)
            lines = lines or dots
            ax.set_title(f"gradient of {row.name}")
        if 0 < len(row.components) <= STYLE.legend_entries:
            place = {"loc": "upper left", "bbox_to_anchor": (1, 1), "fontsize": "small"}
            [left, *right][-1].legend(lines, row.components, **place)
    for ax in axes[-1]:
        ax.set_xlabel("step")
    return np.asarray(axes, dtype=object)


def _frame_losses(
    ax: "Axes", losses: Floats, log_z: float | None, frame: tuple[float, float] | None
) -> int:
    """Set the limits to the bulk of the losses and earlier limits; return how many are outside."""
    if not len(losses):
        return 0
    low, high = typical_range(losses)
    outside = int(((losses < low) | (losses > high)).sum())
    if log_z is not None:
        low, high = min(low, -log_z), max(high, -log_z)
    margin = 0.05 * (high - low) or 0.5
    bounds = [low - margin, high + margin, *(frame or ())]
    ax.set_ylim(min(bounds), max(bounds))
    return outside


def _draw_components(ax: "Axes", row: Row, values: Floats | None, **style: Any) -> "list[Line2D]":
    """Draw each component against the steps; return its line."""
    if values is None:
        ax.text(0.5, 0.5, "not tracked", transform=ax.transAxes, ha="center", va="center")
        return []
    return ax.plot(row.steps, values, **style)
