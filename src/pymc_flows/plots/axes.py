"""Style, new axes, limits and labels."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

type Floats = npt.NDArray[np.float64]
type Range = tuple[float, float]
type Limits = Range | tuple[Range, Range]
"""One range for both axes, or a range for each."""


@dataclass(frozen=True)
class Style:
    """How much the plots draw, and how.

    Attributes
    ----------
    line_points : int
        Most points of a line; a longer history is thinned.
    legend_entries : int
        Most components of a parameter for which a trace has a legend.
    pair_dots : int
        Most dots in a panel of `pairs`.
    pair_bins, weight_bins : int
        Bins of the histograms of `pairs` and of `log_weights`.
    outermost : float
        Share of draws on each side outside the limits; of weights, only of the smallest.
    kde_draws, bandwidth_draws : int
        Most draws for a density estimate, and for the choice of its bandwidth.
    layer_points, animated_points : int
        Points of the base that `layers` and `layers_animation` follow.
    pause : float
        Seconds that an animation pauses at the first and at the last layer.
    saturation, value : float
        Of the colours of these points: dark enough for a white background.
    khat : float
        End of the axis of k-hat.
    approximation, reference : str
        Colours of their draws.
    """

    line_points: int = 4_000
    legend_entries: int = 8
    pair_dots: int = 2_000
    pair_bins: int = 40
    weight_bins: int = 60
    outermost: float = 0.002
    kde_draws: int = 5_000
    bandwidth_draws: int = 1_000
    layer_points: int = 3_000
    animated_points: int = 1_500
    pause: float = 0.8
    saturation: float = 0.8
    value: float = 0.8
    khat: float = 1.5
    approximation: str = "tab:blue"
    reference: str = "black"


STYLE = Style()


def pyplot() -> Any:
    """Import Matplotlib, or say that it is missing."""
    try:
        import matplotlib.pyplot as plt
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.partition(".")[0] != "matplotlib":
            raise  # Matplotlib is installed, and lacks a package itself
        raise ModuleNotFoundError(
            "plots need matplotlib, which is not installed\ninstall matplotlib",
            name=error.name,
        ) from error
    return plt


def new_axes(figsize: tuple[float, float] = (5, 5)) -> "Axes":
    """Make a figure with one pair of axes."""
    ax: Axes = pyplot().subplots(figsize=figsize, layout="constrained")[1]
    return ax


def new_figure(size: tuple[float, float]) -> "Figure":
    """Make a figure; the size is in inches."""
    figure: Figure = pyplot().figure(figsize=size, layout="constrained")
    return figure


def ranges(limits: Limits) -> tuple[Range, Range]:
    """Check limits, and return the range of each axis."""
    array = np.asarray(limits, dtype=float)
    if array.shape == (2,):
        array = np.stack([array, array])
    if array.shape != (2, 2) or not np.isfinite(array).all() or (array[:, 0] >= array[:, 1]).any():
        raise ValueError(
            "expected limits (low, high), or ((left, right), (bottom, top)), each increasing\n"
            f"got {limits}"
        )
    (left, right), (bottom, top) = array.tolist()
    return (left, right), (bottom, top)


def set_frame(ax: "Axes", limits: Limits) -> None:
    """Set the limits of the axes."""
    x, y = ranges(limits)
    ax.set_xlim(*x)
    ax.set_ylim(*y)


def set_labels(ax: "Axes", labels: tuple[str, str], title: str | None) -> None:
    """Name the coordinates and, if there is one, set the title."""
    ax.set_xlabel(labels[0])
    ax.set_ylabel(labels[1])
    if title is not None:
        ax.set_title(title)


def grid(x: Floats, y: Floats) -> Floats:
    """Points of a grid, shape (len(y) len(x), 2), in C order of an array [y, x]."""
    return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
