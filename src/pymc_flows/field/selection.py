"""A choice of few weighted values that stand for all of them.

A draw of the posterior takes a value of the hyperparameters as often as its weight says. A few
hundred independent draws of thousands of values would have noisy means. So each comes from a
stratum: a region with the same share of the weight. Of several draws of each stratum, those are
taken that together have the mean and the second moments of all values.
"""

from __future__ import annotations

import numpy as np

from pymc_flows.importance import systematic

# Points that `neighbours` leaves in any order.
LEAF = 2
# Draws of a stratum of which one is chosen, and how often each choice is made anew.
CANDIDATES, SWEEPS = 8, 2
# Most dimensions whose products are matched, too.
MOST = 16


def select(points: np.ndarray, weights: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Choose n indices (n,) of weighted points (m, d): neighbours follow each other.

    Parameters
    ----------
    points : ndarray
    weights : ndarray, shape (m,)
        Not negative; they sum to 1.
    n : int
    rng : Generator
    """
    order = neighbours(points, weights)
    total = np.cumsum(weights[order])
    total[np.flatnonzero(weights[order])[-1] :] = np.inf  # whatever places are rounded to
    places = (np.arange(n)[:, None] + rng.random((n, CANDIDATES))) / n
    candidates = order[np.searchsorted(total, places, side="right")]
    moments = _moments(points, weights)
    chosen = candidates[:, 0].copy()
    missing = moments[chosen].mean(axis=0)
    for _ in range(SWEEPS):
        for i in rng.permutation(n):
            changed = missing + (moments[candidates[i]] - moments[chosen[i]]) / n
            best = int(np.square(changed).sum(axis=1).argmin())
            missing, chosen[i] = changed[best], candidates[i, best]
    return chosen


def spread_rows(
    points: np.ndarray, weights: np.ndarray, n: int, rng: np.random.Generator
) -> np.ndarray:
    """Indices of at most n different points (m, d), by weights (m,) and from all regions.

    Points of a Sobol' sequence are not chosen in their order: every sixteenth has the same
    beginning of its first coordinate.
    """
    order = neighbours(points, weights)
    return np.unique(order[systematic(weights[order], n, rng)])


def _moments(points: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Coordinates of points and products of two, scaled to means of 0 and spreads of 1."""
    z = _standardised(points, weights)
    rows, columns = np.triu_indices(z.shape[1])
    if z.shape[1] > MOST:
        rows = columns = np.arange(z.shape[1])
    return _standardised(np.concatenate([z, z[:, rows] * z[:, columns]], axis=1), weights)


def _standardised(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    centred = values - weights @ values
    scale = np.sqrt(weights @ np.square(centred))
    return centred / np.where(scale > 0, scale, np.inf)


def neighbours(points: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Order (n,) of weighted points (n, d) in which near points are near each other.

    They are split at the weighted median of the coordinate with the largest spread, as in a k-d
    tree, again and again.
    """
    if not points.shape[1]:
        return np.arange(len(points))
    scale = np.sqrt(weights @ np.square(points - weights @ points))
    z = points / np.where(scale > 0, scale, np.inf)
    parts, found = [np.arange(len(z))], []
    while parts:
        part = parts.pop()
        if len(part) <= LEAF or not weights[part].any():
            found.append(part)
            continue
        along = z[part, np.ptp(z[part], axis=0).argmax()]
        part = part[np.argsort(along, kind="stable")]
        total = np.cumsum(weights[part])
        middle = int(np.searchsorted(total, total[-1] / 2))
        cut = min(max(middle, 1), len(part) - 1)
        parts += [part[cut:], part[:cut]]
    return np.concatenate(found)
