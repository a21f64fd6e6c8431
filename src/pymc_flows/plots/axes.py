"""New axes, frames and labels."""

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes

type Floats = npt.NDArray[np.float64]
type Range = tuple[float, float]
type Limits = Range | tuple[Range, Range]
"""One range for both axes, or a range for each."""


def pyplot() -> Any:
    """Import Matplotlib, or say that it is missing."""
    try:
        import matplotlib.pyplot as plt
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.partition(".")[0] != "matplotlib":
            raise  # Matplotlib is there, and lacks something itself
        raise ModuleNotFoundError(
            "plots need matplotlib, which is not installed\ninstall matplotlib",
            name=error.name,
        ) from error
    return plt


def new_axes(figsize: tuple[float, float] = (5, 5)) -> "Axes":
    """Make a figure of one pair of axes."""
    ax: Axes = pyplot().subplots(figsize=figsize, layout="constrained")[1]
    return ax


def ranges(limits: Limits) -> tuple[Range, Range]:
    """Check the limits and give each axis its range."""
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
    """Fix the frame."""
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
