"""Densities over the plane, as contours."""

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pymc_flows.errors import FlowShapeError
from pymc_flows.plots.axes import Floats, Limits, grid, new_axes, ranges, set_frame, set_labels
from pymc_flows.targets import Target

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def density_contour(
    target: Target | Callable[[Floats], npt.ArrayLike],
    ax: "Axes | None" = None,
    *,
    limits: Limits = (-5, 5),
    points: int = 200,
    levels: int = 10,
    cmap: str = "inferno",
    title: str | None = None,
) -> "Axes":
    """Draw filled contours of a density over the plane.

    The colour is the density relative to its highest value within the limits, from 0 to 1 in equal
    steps, so it does not depend on how the density is normalised.

    Parameters
    ----------
    target : Target or callable
        A two-dimensional target, or a function from points (n, 2) to log densities (n,) in nats,
        normalised or not.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    limits : pair of float or pair of pairs of float, optional
        One range for both axes, or a range for each.
    points : int, optional
        Number of grid points along each axis. All points² are evaluated in one call.
    levels : int, optional
        Number of colours.
    cmap : str, optional
        Name of a colour map.
    title : str, optional
        Title; by default the name of the target.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    FlowShapeError
        If the target is not two-dimensional, or the log densities do not have shape (n,).
    ValueError
        If the density is zero or not a number everywhere within the limits.
    """
    name = "z"
    log_density: Callable[[Floats], Any]
    if isinstance(target, Target):
        name, log_density = target.name, target.log_density
        title = name if title is None else title
    else:
        log_density = target

    x, y = (np.linspace(*range_, points) for range_ in ranges(limits))
    density = _relative_density(log_density, grid(x, y))
    ax = new_axes() if ax is None else ax
    ax.contourf(x, y, density.reshape(points, points), np.linspace(0, 1, levels + 1), cmap=cmap)
    set_frame(ax, limits)
    set_labels(ax, (f"{name}[0]", f"{name}[1]"), title)
    return ax


def approximation_density(
    approx: Any,
    ax: "Axes | None" = None,
    *,
    limits: Limits = (-5, 5),
    points: int = 200,
    levels: int = 10,
    cmap: str = "inferno",
    title: str | None = None,
) -> "Axes":
    """Draw filled contours of the density of a two-dimensional approximation.

    The axes are the unconstrained space of the model. Colours are as in `density_contour`, so the
    two plots can be compared.

    Parameters
    ----------
    approx : NormalizingFlow
        Anything whose ``log_prob`` maps points (n, 2) to log densities (n,) in nats.
    ax, limits, points, levels, cmap, title
        As in `density_contour`.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    FlowShapeError, ValueError
        As in `density_contour`.
    """
    return density_contour(
        approx.log_prob, ax, limits=limits, points=points, levels=levels, cmap=cmap, title=title
    )


def _relative_density(log_density: Callable[[Floats], Any], points: Floats) -> Floats:
    """Density at the points over its maximum there, masked where it is unknown."""
    values = np.asarray(log_density(points), dtype=float)
    if values.shape != points.shape[:-1]:
        raise FlowShapeError(
            f"expected log densities of shape {points.shape[:-1]} for points of {points.shape}\n"
            f"got shape {values.shape}"
        )
    unknown = np.isnan(values) | (values == np.inf)
    highest = np.max(values, where=~unknown, initial=-np.inf)
    if highest == -np.inf:
        raise ValueError(
            "expected a positive density somewhere in the frame\n"
            f"got {unknown.sum():,} log densities of NaN or +inf, and else −inf\n"
            "move limits to where the density is"
        )
    if unknown.any():
        warnings.warn(
            f"{unknown.sum():,} of {len(values):,} log densities are NaN or +inf and left blank",
            stacklevel=3,
        )
    return np.ma.masked_where(unknown, np.exp(np.where(unknown, -np.inf, values - highest)))
