"""Draws in the plane, as dots and as density estimates."""

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pymc_flows.plots.axes import (
    STYLE,
    Floats,
    Limits,
    grid,
    new_axes,
    new_figure,
    ranges,
    set_frame,
    set_labels,
)
from pymc_flows.plots.data import Names, plane

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from scipy.stats import gaussian_kde


def draws(
    samples: Any,
    ax: "Axes | None" = None,
    *,
    var_names: Names = None,
    limits: Limits | None = None,
    title: str | None = None,
    **scatter_options: Any,
) -> "Axes":
    """Scatter draws over the plane; the more draws, the fainter the dots.

    Draws that are not finite are left out, with a warning that says how many.

    Parameters
    ----------
    samples : array_like, shape (..., 2), or DataTree, Dataset or DataArray
        Draws: an array, or the result of ``approx.sample`` or ``pm.sample``.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    var_names : str or sequence of str, optional
        One variable of length 2, or two scalar variables. By default all variables, which must
        have two coordinates together.
    limits : pair of float or pair of pairs of float, optional
        One range for both axes, or a range for each. By default they hold all draws.
    title : str, optional
        Title.
    **scatter_options
        Options of ``Axes.scatter``.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    FlowShapeError
        If the samples do not have two coordinates.
    TypeError
        If ``var_names`` is given for an array.
    ValueError
        If ``var_names`` has a name that does not exist.
    """
    z, labels = plane(samples, var_names)
    ax = new_axes() if ax is None else ax
    options = {"s": 9, "linewidths": 0, "alpha": float(np.clip(1500 / max(len(z), 1), 0.1, 0.8))}
    ax.scatter(*z.T, **(options | scatter_options))
    if limits is not None:
        set_frame(ax, limits)
    set_labels(ax, labels, title)
    return ax


def joint_kde(
    samples: Any,
    figure: "Figure | SubFigure | None" = None,
    *,
    var_names: Names = None,
    limits: Limits | None = None,
    points: int = 128,
    levels: int = 10,
    bw_method: float | str | None = None,
    cmap: str = "Blues",
    title: str | None = None,
) -> npt.NDArray[np.object_]:
    """Draw a kernel density estimate of draws in the plane, with both marginals.

    The contours bound highest-density regions: the outermost holds 95 % of the draws within the
    limits and the innermost 5 %, in equal steps. Of the draws within the limits and a margin of a
    quarter of their size, at most 5,000 are used, evenly spaced. Features narrower than the
    bandwidth look wider than they are.

    Parameters
    ----------
    samples, var_names
        As in `draws`.
    figure : matplotlib.figure.Figure or SubFigure, optional
        Where to put the three axes.
    limits : pair of float or pair of pairs of float, optional
        One range for both axes, or a range for each. By default they hold all draws.
    points : int, optional
        Number of grid points along each axis.
    levels : int, optional
        Number of contours.
    bw_method : float or str, optional
        Bandwidth as in `scipy.stats.gaussian_kde`: a factor of the standard deviation, or a rule,
        ``"scott"`` or ``"silverman"``. By default least-squares cross-validation [1]_, but at most
        Scott's rule, which suits one mode and blurs several.
    cmap : str, optional
        Name of a colour map; the marginals have one of its dark tones.
    title : str, optional
        Title.

    Returns
    -------
    ndarray of matplotlib.axes.Axes, shape (3,)
        The joint density, the marginal above it and the marginal beside it.

    Raises
    ------
    FlowShapeError, TypeError
        As in `draws`.
    ValueError
        If ``var_names`` has a name that does not exist, or all draws within the limits lie on one
        line.

    References
    ----------
    .. [1] Hall & Marron, Local minima in cross-validation functions, Journal of the Royal
       Statistical Society B 53 (1991).
    """
    z, labels = plane(samples, var_names)
    inside = z if limits is None else z[_is_near(z, limits, widen=0)]
    if len(inside) < 3 or np.linalg.matrix_rank(inside - inside.mean(0)) < 2:
        raise ValueError(
            "expected draws that spread over the plane\n"
            f"got {len(inside)} in the frame, on one line, where there is no density\n"
            "look at them with plots.draws, and choose limits that hold more of them"
        )
    z = _thinned(z if limits is None else z[_is_near(z, limits)], STYLE.kde_draws)
    kde = _estimate(z, bw_method)
    if limits is None:
        margin = 3 * np.sqrt(np.diag(kde.covariance))
        (left, bottom), (right, top) = z.min(0) - margin, z.max(0) + margin
        limits = ((left, right), (bottom, top))
    x, y = (np.linspace(*range_, points) for range_ in ranges(limits))
    density = kde(grid(x, y).T).reshape(points, points)
    # A region that holds a share of the draws is where the density exceeds its quantile over them.
    at_draws = kde(_thinned(inside, STYLE.bandwidth_draws).T)
    heights = np.unique(np.quantile(at_draws, 1 - np.linspace(0.95, 0.05, levels)))

    figure = new_figure((5, 5)) if figure is None else figure
    cells = figure.add_gridspec(2, 2, width_ratios=(5, 1), height_ratios=(1, 5))
    joint = figure.add_subplot(cells[1, 0])
    above = figure.add_subplot(cells[0, 0], sharex=joint)
    beside = figure.add_subplot(cells[1, 1], sharey=joint)
    top = 1.01 * max(density.max(), heights[-1])
    filled = joint.contourf(x, y, density, [*heights, top], cmap=cmap)
    colour = filled.get_cmap()(0.8)
    _draw_marginal(above, x, _estimate(z[:, :1], bw_method)(x), colour, vertical=False)
    _draw_marginal(beside, y, _estimate(z[:, 1:], bw_method)(y), colour, vertical=True)
    joint.set(xlim=x[[0, -1]], ylim=y[[0, -1]])
    set_labels(joint, labels, None)
    if title is not None:
        above.set_title(title)
    return np.array([joint, above, beside], dtype=object)


def _thinned(z: Floats, most: int) -> Floats:
    """Evenly spaced draws, at most ``most``."""
    return z[:: max(1, -(-len(z) // most))]


def _is_near(z: Floats, limits: Limits, *, widen: float = 0.25) -> npt.NDArray[np.bool_]:
    """Whether each draw is within the limits, widened on each side by ``widen`` times their size.

    Kernels reach over the limits, so draws just outside matter.
    """
    low, high = np.transpose(ranges(limits))
    margin = widen * (high - low)
    near: npt.NDArray[np.bool_] = ((z >= low - margin) & (z <= high + margin)).all(-1)
    return near


def _estimate(z: Floats, bw_method: float | str | None) -> "gaussian_kde":
    """Kernel density estimate of draws of shape (n, d)."""
    from scipy.stats import gaussian_kde  # slow to import

    return gaussian_kde(z.T, _cross_validated_bandwidth(z) if bw_method is None else bw_method)


def _cross_validated_bandwidth(z: Floats) -> float:
    """Factor of the standard deviation by least-squares cross-validation.

    It minimises ∫f̂² − 2 mean_i f̂₋ᵢ(zᵢ), an unbiased estimate of the integrated squared error up to
    a constant, over factors up to Scott's. Of several minima it takes the one at the largest
    factor, as Hall & Marron advise: the others tend to show noise.
    """
    from scipy.spatial.distance import pdist

    # Repeated draws, such as a Markov chain makes, would drive the bandwidth to 0.
    few = np.unique(_thinned(z, STYLE.bandwidth_draws), axis=0)
    m, d = few.shape
    whitened = np.linalg.solve(np.linalg.cholesky(np.atleast_2d(np.cov(few.T))), few.T).T
    squared = pdist(whitened, "sqeuclidean")

    def score(factor: float) -> float:
        h2 = factor**2
        square = (1 / m + (1 - 1 / m) * np.exp(-squared / (4 * h2)).mean()) / 2 ** (d / 2)
        return float((square - 2 * np.exp(-squared / (2 * h2)).mean()) / factor**d)

    factors = m ** (-1 / (d + 4)) * 0.9 ** np.arange(25)
    scores = map(score, factors)
    best, lowest = factors[0], next(scores)
    for factor, value in zip(factors[1:], scores, strict=True):
        if value > lowest:
            break
        best, lowest = factor, value
    return float(best * (m / len(z)) ** (1 / (d + 4)))


def _draw_marginal(
    ax: "Axes", positions: Floats, density: Floats, colour: Any, *, vertical: bool
) -> None:
    fill = ax.fill_betweenx if vertical else ax.fill_between
    fill(positions, density, color=colour, alpha=0.2, linewidth=0)
    if vertical:
        ax.plot(density, positions, color=colour)
        ax.set_xlim(left=0)
    else:
        ax.plot(positions, density, color=colour)
        ax.set_ylim(bottom=0)
    # The joint density labels the positions; heights need no labels.
    ax.tick_params(labelbottom=False, labelleft=False, length=0)
    ax.spines[:].set_visible(False)
