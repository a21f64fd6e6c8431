"""A quick look at a posterior before a fit: where it is, and how wide.

A mode search with a Gaussian fitted at the mode (Laplace's approximation). It is no more than a
start: what is chosen is the candidate with the best ELBO, and a flow is fitted in its coordinates.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pymc as pm
from numpy.typing import ArrayLike

from pymc_flows.flows.frame import Frame
from pymc_flows.model.layout import sizes
from pymc_flows.model.log_density import LogDensity
from pymc_flows.model.logp import density_of, model_or_context
from pymc_flows.start.point import find_start
from pymc_flows.support.interrupts import Interrupts
from pymc_flows.support.seeds import RandomState, integer_seed

_log = logging.getLogger(__name__)

# Starting points of the mode search after the first: around the initial point with these standard
# deviations in turn, and as often around the first mode, with these multiples of its own.
SPREADS = (1.0, 3.0)
MULTIPLES = (10.0, 30.0, 3.0)
N_STARTS = 10
MAX_ITERATIONS = 300
# Above this dimension only the diagonal of the Hessian is computed, and above the second nothing.
MAX_DENSE = 300
MAX_DIAGONAL = 3_000
# Draws behind the ELBO by which candidates are compared.
ELBO_DRAWS = 200
# Modes nearer than this, in standard deviations of the better one (the root of their mean square
# over the coordinates), are one.
SAME_MODE = 3.0
# One with a smaller share of the mass, judged by ELBOs, is left out.
MIN_SHARE = 0.01
# Searches of one mode, each in the coordinates that the last one found.
MAX_CLIMBS = 4
# A Gaussian whose typical draws are this much lower than the log density at the start, in nats per
# dimension, is no place to begin.
LOST = 10.0
# Points on the way to the first mode that are candidates too.
WAY_POINTS = 5
# A Gaussian is narrowed by no more than this many powers of 2.
MAX_HALVINGS = 4
# Of the curvature in units of its diagonal: below it, a direction is flat.
MIN_CURVATURE = 1e-8


def find_frame(
    model: pm.Model | None = None,
    *,
    start: Mapping[str, ArrayLike] | None = None,
    dense: bool = True,
    random_seed: RandomState = None,
) -> Frame:
    """Find coordinates in which a posterior has about mean 0 and covariance I.

    From several starting points the modes of the log density are sought (L-BFGS). A Gaussian is
    fitted at each, and at points on the way to the first, because a hierarchical model may have
    its mode where there is no mass. The one with the best ELBO is taken; if modes are apart, the
    Gaussian that covers them all.

    Parameters
    ----------
    model : pymc.Model, optional
        Defaults to the model on the context stack.
    start : dict of str to array-like, optional
        Starting point of the search; defaults to ``model.initial_point()``, or a point near it
        where the log density is finite.
    dense : bool
        Whether the scale may mix coordinates. Without it, a mean-field flow in these coordinates is
        one in the model's own.
    random_seed : int, Generator, RandomState, optional
        Seeds the further starting points and the ELBOs.

    Returns
    -------
    Frame
        Without a scale, around the starting point, if no Gaussian is better than the standard
        normal there.

    Raises
    ------
    ModelError
        If the log density is not finite at the start, or has no gradient.
    """
    with Interrupts(deferred=False):
        density = density_of(model_or_context(model))
        rng = np.random.default_rng(integer_seed(random_seed))
        center = find_start(density, start, rng)
        frame = search(LogDensity(density).value_and_grad, center, rng, dense=dense)
    return replace(frame, variables=sizes(density.slots))


type Evaluate = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True, eq=False)
class Candidate:
    """A Gaussian, its ELBO, and the same with the median log density; in nats."""

    frame: Frame
    elbo: float
    typical: float

    @classmethod
    def of(cls, evaluate: Evaluate, frame: Frame, noise: np.ndarray) -> Candidate:
        """Estimate the ELBO from base noise (n, dim); −∞ if any draw has none."""
        log_p, _ = evaluate(frame.forward(noise))
        entropy = 0.5 * noise.shape[1] * math.log(2 * math.pi * math.e) + frame.log_det
        elbo, typical = float(log_p.mean()) + entropy, float(np.median(log_p)) + entropy
        return cls(frame, *(x if math.isfinite(x) else -math.inf for x in (elbo, typical)))


def search(
    evaluate: Evaluate,
    start: np.ndarray,
    rng: np.random.Generator,
    *,
    dense: bool = True,
    n_starts: int = N_STARTS,
) -> Frame:
    """Return the best Gaussian, see `find_frame`.

    Parameters
    ----------
    evaluate : callable
        Log density (n,) and its gradient (n, dim) at points (n, dim).
    start : ndarray, shape (dim,)
    rng : numpy.random.Generator
    dense : bool
    n_starts : int
    """
    half = rng.standard_normal((ELBO_DRAWS // 2, len(start)))
    noise = np.concatenate([half, -half])  # with mean 0: no Gaussian is better for being off
    found = [Candidate.of(evaluate, Frame(start), noise)]
    for point in _ascend(evaluate, start):
        found.append(Candidate.of(evaluate, _laplace(evaluate, point, dense=dense), noise))
    found.append(Candidate.of(evaluate, _climb(evaluate, found[-1].frame, dense=dense), noise))
    around = [Frame(start), found[-1].frame]
    for i in range(1, n_starts):
        spread = (SPREADS[i // 2 % len(SPREADS)], MULTIPLES[i // 2 % len(MULTIPLES)])[i % 2]
        point = around[i % 2].forward(spread * rng.standard_normal(len(start)))
        path = _ascend(evaluate, point)
        if path and all(_distance(c.frame, path[-1]) > SAME_MODE for c in found[1:]):
            frame = _climb(evaluate, _laplace(evaluate, path[-1], dense=dense), dense=dense)
            found.append(Candidate.of(evaluate, frame, noise))
    apart: list[Candidate] = []
    for candidate in sorted(found, key=lambda c: -c.elbo):
        if all(_distance(c.frame, candidate.frame.center) > SAME_MODE for c in apart):
            apart.append(candidate)
    [log_density], _ = evaluate(start[None])
    # Nowhere, or somewhere far off. Few draws in a tail may make any ELBO small, though.
    is_lost = apart[0].typical < log_density - LOST * len(start)
    if is_lost or not math.isfinite(apart[0].elbo):
        return Frame(start)
    share = np.exp([c.elbo - apart[0].elbo for c in apart])
    kept = [c.frame for c, w in zip(apart, share, strict=True) if w > MIN_SHARE]
    _log.info(
        "Start: ELBO %.5g of the best of %d Gaussians; %d apart from each other.",
        apart[0].elbo,
        len(found),
        len(kept),
    )
    if len(kept) > 1:
        return _cover(kept, share[share > MIN_SHARE], dense=dense)
    return _shrink(evaluate, apart[0], noise).frame


def _ascend(evaluate: Evaluate, start: np.ndarray) -> list[np.ndarray]:
    """Points on the way to a mode, the last one there; none if the start is no start."""
    path: list[np.ndarray] = []

    from scipy import optimize  # slow to import

    def negative(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = evaluate(x[None])
        if not (np.isfinite(value).all() and np.isfinite(gradient).all()):
            return np.inf, np.zeros_like(x)
        return -value[0], -gradient[0]

    if not np.isfinite(negative(start)[0]):
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # differences of infinities in the line search
        result = optimize.minimize(
            negative,
            start,
            jac=True,
            method="L-BFGS-B",
            callback=lambda x: path.append(x.copy()),
            # No absolute bound of the gradient: it has units.
            options={"maxiter": MAX_ITERATIONS, "maxcor": 20, "ftol": 1e-10, "gtol": 0.0},
        )
    on_the_way = np.linspace(0, max(len(path) - 1, 0), WAY_POINTS + 1)[1:-1].astype(int).tolist()
    points = [*(path[i] for i in dict.fromkeys(on_the_way) if path), result.x]
    return [point for point in points if np.isfinite(point).all()]


def _climb(evaluate: Evaluate, frame: Frame, *, dense: bool) -> Frame:
    """Seek the mode again in the coordinates of a Gaussian, where it is easier to find."""

    def inside(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        value, gradient = evaluate(frame.forward(z))
        return value, frame.pullback(gradient)

    for _ in range(MAX_CLIMBS):
        path = _ascend(inside, np.zeros(len(frame.center)))
        if not path or np.abs(path[-1]).max() < 0.01:
            break
        frame = _laplace(evaluate, frame.forward(path[-1]), dense=dense)
    return frame


def _laplace(evaluate: Evaluate, point: np.ndarray, *, dense: bool) -> Frame:
    """The Gaussian with the curvature of the log density at a point."""
    dim = len(point)
    if dim > MAX_DIAGONAL:
        return Frame(point)
    sd = 0.1 * np.maximum(1.0, np.abs(point))
    for _ in range(2):  # the first time finds the scale of the differences for the second
        steps = 0.02 * sd
        _, gradients = evaluate(np.concatenate([point + np.diag(steps), point - np.diag(steps)]))
        with np.errstate(all="ignore"):  # what is not finite is not used
            curvature = (gradients[dim:] - gradients[:dim]) / (2 * steps[:, None])
        diagonal = np.diagonal(curvature)
        is_peak = np.isfinite(curvature).all(axis=1) & (diagonal > 0)
        sd = np.where(is_peak, 1 / np.sqrt(np.where(is_peak, diagonal, 1.0)), 1.0)
    if not dense or dim > MAX_DENSE:
        return Frame(point, sd)
    scaled = np.where(np.isfinite(curvature), curvature, 0.0) * sd * sd[:, None]
    scaled[~is_peak] = scaled[:, ~is_peak] = 0.0
    scaled[~is_peak, ~is_peak] = 1.0
    values, vectors = np.linalg.eigh((scaled + scaled.T) / 2)
    # In a direction without a peak: the scale of the coordinates.
    values = np.where(values > MIN_CURVATURE, values, 1.0)
    root = sd[:, None] * vectors / np.sqrt(values)
    return Frame(point, _cholesky(root @ root.T))


def _cholesky(cov: np.ndarray) -> np.ndarray:
    sd = np.sqrt(np.diagonal(cov))
    correlation = cov / sd / sd[:, None]
    jitter = 1e-12 * len(cov) * np.eye(len(cov))
    return sd[:, None] * np.linalg.cholesky(correlation + jitter)


def _cover(frames: Sequence[Frame], weights: np.ndarray, *, dense: bool) -> Frame:
    """The Gaussian with the moments of a mixture."""
    weights = weights / weights.sum()
    center = sum(w * f.center for w, f in zip(weights, frames, strict=True))
    cov = np.zeros((len(center), len(center)))
    for w, f in zip(weights, frames, strict=True):
        scale = f.forward(np.eye(len(center))) - f.center  # rows are the columns of the scale
        cov += w * (scale.T @ scale + np.outer(f.center - center, f.center - center))
    return with_covariance(center, cov, dense=dense)


def with_covariance(center: np.ndarray, cov: np.ndarray, *, dense: bool = True) -> Frame:
    """The Gaussian with a mean and a covariance; without correlations in high dimensions."""
    if not dense or len(center) > MAX_DENSE:
        return Frame(center, np.sqrt(np.diagonal(cov)))
    return Frame(center, _cholesky(cov))


def _shrink(evaluate: Evaluate, best: Candidate, noise: np.ndarray) -> Candidate:
    """Narrow a Gaussian as long as its ELBO gains: its curvature says nothing of walls nearby."""
    for _ in range(MAX_HALVINGS):
        narrower = Candidate.of(evaluate, best.frame.widened(0.5), noise)
        if narrower.elbo <= best.elbo:
            break
        best = narrower
    return best


def _distance(frame: Frame, point: np.ndarray) -> float:
    """Distance of a point from the centre per root of the dimension, in standard deviations."""
    return float(np.sqrt(np.mean(frame.inverse(point) ** 2)))
