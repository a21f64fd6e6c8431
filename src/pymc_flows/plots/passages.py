"""How each layer of a flow moves points: a grid of panels, and an animation."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pytensor

from pymc_flows.approximation import NormalizingFlow
from pymc_flows.diagnostics.reliability import coordinate_name
from pymc_flows.errors import ArgumentError, FlowShapeError
from pymc_flows.plots.axes import (
    STYLE,
    Floats,
    Limits,
    new_figure,
    pyplot,
    ranges,
    set_frame,
    set_labels,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure


def layers(
    approx: NormalizingFlow,
    figure: "Figure | SubFigure | None" = None,
    *,
    coordinates: tuple[int, int] = (0, 1),
    points: npt.ArrayLike | None = None,
    limits: Limits | None = None,
    max_panels: int = 12,
) -> npt.NDArray[np.object_]:
    """Draw where points of the base are after each layer, one panel for each layer.

    The colour of a point shows its direction from the origin of the base. All panels are in the
    unconstrained space of the model: the constant frame of the flow is applied to the points after
    each layer.

    Parameters
    ----------
    approx : NormalizingFlow
    figure : matplotlib.figure.Figure or SubFigure, optional
        Where to put the axes.
    coordinates : pair of int
        Which two coordinates of the unconstrained space are drawn.
    points : array_like, shape (n, dim), optional
        Points of the base, N(0, I). By default 3,000, spread evenly in the two coordinates, and
        fixed noise in the others.
    limits : pair of float or pair of pairs of float, optional
        Limits of all panels; by default they hold 99.8 % of the points of every panel.
    max_panels : int
        Most panels. Of more layers, an evenly spaced selection is drawn, with the first and the
        last one. Repeats of `hh` are one step.

    Returns
    -------
    ndarray of matplotlib.axes.Axes, shape (panels,)

    Raises
    ------
    ArgumentError
        If ``coordinates`` are not two that the approximation has, or ``max_panels`` is below 2.
    FlowShapeError
        If the points do not have shape (n, dim).
    """
    if max_panels < 2:
        raise ArgumentError(f"max_panels must be at least 2, got {max_panels!r}")
    names, places, colours, axis_labels = _path(
        approx, coordinates, STYLE.layer_points if points is None else points
    )
    limits = _limits(places) if limits is None else ranges(limits)
    shown = np.unique(np.linspace(0, len(places) - 1, min(max_panels, len(places))).astype(int))
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    size = (2.6 * columns + 0.4, 2.6 * rows + 0.4)
    figure = new_figure(size) if figure is None else figure
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for ax in grid.flat[len(shown) :]:
        ax.remove()
    axes = grid.flat[: len(shown)]
    for step, ax in zip(shown, axes, strict=True):
        x, y = places[step].T
        ax.scatter(x, y, color=colours, s=3, linewidths=0)
        ax.set_title(names[step], fontsize="medium")
        set_frame(ax, limits)
    figure.supxlabel(axis_labels[0])
    figure.supylabel(axis_labels[1])
    return np.array(axes, dtype=object)


def layers_animation(
    approx: NormalizingFlow,
    path: str | os.PathLike[str],
    *,
    coordinates: tuple[int, int] = (0, 1),
    points: npt.ArrayLike | None = None,
    limits: Limits | None = None,
    frames_per_layer: int = 6,
    fps: int = 20,
) -> Path:
    """Write a GIF in which points of the base move from layer to layer.

    Between two layers points move on straight lines, which only guide the eye.

    Parameters
    ----------
    approx : NormalizingFlow
    path : str or path-like
        File to write, such as ``'flow.gif'``.
    coordinates, points, limits
        As in `layers`; 1,500 points by default.
    frames_per_layer : int
        Pictures for each layer.
    fps : int
        Pictures per second.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ArgumentError, FlowShapeError
        As in `layers`; or if a number is below 1, or the name of the file does not end in .gif.
    """
    target = Path(path)
    if target.suffix.lower() != ".gif":
        raise ArgumentError(f"path must end in .gif, got {str(path)!r}")
    if frames_per_layer < 1 or fps < 1:
        raise ArgumentError(
            f"frames_per_layer and fps must be at least 1, got {frames_per_layer!r} and {fps!r}"
        )
    names, places, colours, axis_labels = _path(
        approx, coordinates, STYLE.animated_points if points is None else points
    )
    limits = _limits(places) if limits is None else ranges(limits)
    plt = pyplot()
    from matplotlib.animation import PillowWriter

    figure, ax = plt.subplots(figsize=(4.5, 4.5), layout="constrained")
    try:
        x, y = places[0].T
        dots = ax.scatter(x, y, color=colours, s=4, linewidths=0)
        set_frame(ax, limits)
        set_labels(ax, axis_labels, names[0])
        figure.canvas.draw()
        figure.set_layout_engine("none")  # titles of different lengths must not move the axes
        writer = PillowWriter(fps=fps)
        with writer.saving(figure, target, dpi=80):
            for step in range(len(places)):
                for share in np.linspace(0, 1, frames_per_layer + 1)[1:] if step else [1.0]:
                    eased = share**2 * (3 - 2 * share)
                    before = places[max(step - 1, 0)]
                    dots.set_offsets(before + eased * (places[step] - before))
                    ax.set_title(names[step])
                    writer.grab_frame()
                if step in (0, len(places) - 1):
                    for _ in range(int(STYLE.pause * fps)):
                        writer.grab_frame()
    finally:
        plt.close(figure)
    return target


def _path(
    approx: NormalizingFlow, coordinates: tuple[int, int], points: npt.ArrayLike | int
) -> tuple[list[str], list[Floats], Floats, tuple[str, str]]:
    """Names of the steps, points (n, 2) after each, colours (n, 3) of the points, axis labels.

    ``points`` are those of the base, or their number.
    """
    pair = list(coordinates)
    dim = approx.ddim
    if len(pair) != 2 or len(set(pair)) != 2 or not all(0 <= i < dim for i in pair):
        raise ArgumentError(
            f"coordinates must be two different ones from 0 to {dim - 1}, got {coordinates!r}"
        )
    z = _base(points, dim, pair) if isinstance(points, int) else np.asarray(points, dtype=float)
    if z.ndim != 2 or z.shape[1] != dim:
        raise FlowShapeError(f"expected points of shape (n, {dim})\ngot shape {z.shape}")
    hue = np.arctan2(*z[:, pair[::-1]].T) / (2 * np.pi) % 1
    from matplotlib.colors import hsv_to_rgb

    colours = hsv_to_rgb(
        np.stack([hue, np.full_like(hue, STYLE.saturation), np.full_like(hue, STYLE.value)], -1)
    )
    names: list[str] = []
    places: list[Floats] = []
    for word, after in approx.flow.passage(z.astype(pytensor.config.floatX)):
        names.append(f"{len(names)}: {word}" if names else word)
        places.append(after[:, pair])
    first, second = (coordinate_name(approx.model, approx.density.slots, i) for i in pair)
    return names, places, colours, (first, second)


def _base(n: int, dim: int, pair: list[int]) -> Floats:
    """Points (n, dim) that follow N(0, I), spread evenly in the pair of coordinates."""
    z = np.random.default_rng(0).standard_normal((n, dim))
    share = (np.arange(n) + 0.5) / n
    radius = np.sqrt(-2 * np.log1p(-share))
    angle = np.pi * (3 - np.sqrt(5)) * np.arange(n)  # the golden angle, as in a sunflower
    z[:, pair] = (radius * [np.cos(angle), np.sin(angle)]).T
    return z


def _limits(places: list[Floats]) -> Limits:
    """Limits that hold the bulk of the points of every step."""
    low = np.min([np.nanquantile(z, 0.001, axis=0) for z in places], axis=0)
    high = np.max([np.nanquantile(z, 0.999, axis=0) for z in places], axis=0)
    margin = 0.05 * (high - low)
    (left, bottom), (right, top) = low - margin, high + margin
    return (left, right), (bottom, top)
