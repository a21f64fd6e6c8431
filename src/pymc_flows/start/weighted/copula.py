"""Gaussian copulas with spline marginals, in closed form from weighted draws.

A draw of N(0, I) goes through a triangular matrix and monotone splines of single coordinates, in
either order. With the matrix first this is a Gaussian copula: the splines are the quantile
functions of the marginals, and the matrix gives the correlations of the normal scores. With the
splines first it is an affine map of independent coordinates. Nothing is trained or compiled.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from pymc_flows.flows.frame import Frame
from pymc_flows.flows.layers.elementwise.rational_quadratic import raw_of_knots
from pymc_flows.flows.numerics import inverse_softplus
from pymc_flows.start.options import MAX_DENSE
from pymc_flows.start.weighted.moments import Weighted

# Quantiles of N(0, 1) to which splines are fitted, in standard deviations. Few draws are beyond.
QUANTILES = np.linspace(-2.7, 2.7, 7)
# Beyond the outer quantiles slopes go on to grow, their logarithm by at most `STEEPEST` per
# standard deviation, up to `STRAIGHT`. From there splines go to the corner of their square,
# ±`BOUND`.
STEEPEST = 0.5
STRAIGHT, BOUND = 5.0, 25.0
SPLINE = f"spline(bins={len(QUANTILES) + 3}, bound={BOUND:g})"
# With fewer effective draws an outer quantile is noise.
ENOUGH = 500
# Draws are those of a Gaussian wider by this factor, so that they reach into the tails.
WIDER, DRAWS = 1.25, 8_000


@dataclass(frozen=True, eq=False)
class Copula:
    """A flow in a frame, with its parameters.

    Attributes
    ----------
    formula : str
    frame : Frame
    params : mapping of int to mapping of str to ndarray
        Raw parameters by position of the layer and name, as for `NormalizingFlow`.
    """

    formula: str
    frame: Frame
    params: Mapping[int, Mapping[str, np.ndarray]]


def copulas(draws: Weighted) -> Iterator[Copula]:
    """Fit a spline to each coordinate of weighted draws, on either side of a triangular matrix.

    Yields nothing if there are too few effective draws.
    """
    dim = len(draws.frame.center)
    if not draws.is_usable or draws.quality.ess < ENOUGH:
        return
    weights = np.exp(draws.log_weights)
    frame = draws.matched()
    yield Copula(SPLINE, frame, {0: {"bins": _splines(frame.inverse(draws.points), weights)}})
    if 1 < dim <= MAX_DENSE:
        yield _correlated(draws.points, weights)


def _correlated(points: np.ndarray, weights: np.ndarray) -> Copula:
    """The Gaussian copula: a matrix of correlations first, then splines."""
    center = weights @ points
    frame = Frame(center, np.sqrt(weights @ np.square(points - center)))
    scores = np.stack([_normal_scores(x, weights) for x in points.T], axis=1)
    scores -= weights @ scores
    covariance = (scores * weights[:, None]).T @ scores
    sd = np.sqrt(np.diagonal(covariance))
    correlation = covariance / sd / sd[:, None] + 1e-9 * np.eye(len(sd))
    lower = np.linalg.cholesky(correlation)
    diagonal = np.diagonal(lower)
    rows = (lower / diagonal[:, None])[np.tril_indices(len(sd), -1)]
    tril = {"lower": rows, "rho": inverse_softplus(diagonal)}
    bins = _splines(frame.inverse(points), weights)
    return Copula(f"tril-{SPLINE}", frame, {0: tril, 1: {"bins": bins}})


def _normal_scores(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Quantiles (n,) of N(0, 1) at the weighted ranks of values (n,)."""
    from scipy.special import ndtri  # slow to import

    order = np.argsort(values)
    scores = np.empty(len(values))
    scores[order] = ndtri(_ranks(weights[order]))
    return scores


def _ranks(weights: np.ndarray) -> np.ndarray:
    """Weight (n,) below the middle of each draw, within (0, 1)."""
    tiny = 0.1 / len(weights) ** 2
    ranks: np.ndarray = np.clip(np.cumsum(weights) - 0.5 * weights, tiny, 1 - tiny)
    return ranks


def _splines(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Raw parameters (dim, 3 bins - 1) of splines from N(0, 1) to columns of values (n, dim).

    The columns have mean 0 and standard deviation 1.
    """
    knots = [_knots(column, weights) for column in values.T]
    x, y, slopes = (np.stack(parts) for parts in zip(*knots, strict=True))
    return raw_of_knots(x, y, slopes, BOUND)


def _knots(values: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inner knots (bins - 1,) of a spline, and slopes there."""
    from scipy.special import ndtr

    order = np.argsort(values)
    ranks = _ranks(weights[order])
    y = np.interp(ndtr(QUANTILES), ranks, values[order])
    # Equal quantiles, of a point mass, would make the spline flat.
    y = np.maximum.accumulate(y + 1e-3 * QUANTILES)
    slopes = np.gradient(y, QUANTILES)
    low, at_low, slopes[0] = _tail(-y[::-1])
    high, at_high, slopes[-1] = _tail(y)
    x = np.concatenate([[-STRAIGHT], QUANTILES, [STRAIGHT]])
    return x, np.concatenate([[-low], y, [high]]), np.concatenate([[at_low], slopes, [at_high]])


def _tail(y: np.ndarray) -> tuple[float, float, float]:
    """Value and slope at `STRAIGHT`, and slope at the outer quantile, from quantiles (k,).

    Slopes that grow, as in a long tail, go on to grow by the same factor. Slopes that fall are held
    constant: too many draws in the tail get small weights, but too few would get large ones.
    """
    width, reach = QUANTILES[1] - QUANTILES[0], STRAIGHT - QUANTILES[-1]
    before, last = np.diff(y[-3:]) / width
    growth = float(np.clip(np.log(last / before) / width, 0.0, STEEPEST))
    slope = last * math.exp(growth * width / 2)
    gain = math.expm1(growth * reach) / growth if growth > 1e-9 else reach
    value = min(y[-1] + slope * gain, (y[-1] + BOUND) / 2)
    return value, min(slope * math.exp(growth * reach), 2 * (value - y[-1]) / reach), slope
