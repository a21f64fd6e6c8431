"""A quick look at a posterior before a fit: where it is, and how wide.

Modes are searched for, and Gaussians fitted there (Laplace's approximation). The one with the best
ELBO is a start: a flow is fitted in its coordinates.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pymc as pm
from numpy.typing import ArrayLike

from pymc_flows.flows.frame import Frame
from pymc_flows.model.layout import sizes
from pymc_flows.model.logp import density_of
from pymc_flows.model.streams import stream_of
from pymc_flows.start.ascent import Path, ascend
from pymc_flows.start.options import (
    FEW_IN_A_ROW,
    LARGE,
    LEAST_INSIDE,
    MAX_DENSE,
    SEARCH,
    SearchOptions,
    share_of_draws,
)
from pymc_flows.start.passes import distance, on_all_rows
from pymc_flows.start.point import find_start
from pymc_flows.start.target import Target
from pymc_flows.start.target import dense as dense_array
from pymc_flows.support.arguments import model_or_context
from pymc_flows.support.deadline import Deadline
from pymc_flows.support.evaluations import Evaluations
from pymc_flows.support.interrupts import Interrupts
from pymc_flows.support.seeds import RandomState, integer_seed

_log = logging.getLogger(__name__)


def find_frame(
    model: pm.Model | None = None,
    *,
    start: Mapping[str, ArrayLike] | None = None,
    dense: bool = True,
    random_seed: RandomState = None,
) -> Frame:
    """Find coordinates in which a posterior has about mean 0 and covariance I.

    Modes of the log density are searched for from several starting points: by Newton's method in a
    trust region, or by L-BFGS where Hessians are expensive. A Gaussian is fitted at each with one
    exact Hessian, and at points on the way to the first, because a hierarchical model may have its
    mode where there is no mass. The Gaussian with the best ELBO is taken; if modes are apart, the
    one with the moments of their mixture. `SearchOptions` has all bounds.

    Parameters
    ----------
    model : pymc.Model, optional
        Defaults to the model on the context stack.
    start : dict of str to array-like, optional
        Starting point of the search; defaults to ``model.initial_point()``, or a point near it
        where the log density is finite.
    dense : bool
        Whether the scale may mix coordinates. If not, a mean-field flow in these coordinates is
        also one in the model's own.
    random_seed : int, Generator, RandomState, optional
        Seeds the further starting points and the ELBOs.

    Returns
    -------
    Frame
        Without a scale, around the starting point, if the search has found nothing: no Gaussian has
        a finite ELBO or is near the posterior. The log then warns.

    Raises
    ------
    ModelError
        If the log density is not finite at the start, or has no gradient.
    """
    return seek_frame(model, start=start, dense=dense, random_seed=random_seed)


def seek_frame(
    model: pm.Model | None = None,
    *,
    start: Mapping[str, ArrayLike] | None = None,
    dense: bool = True,
    random_seed: RandomState = None,
    evaluations: Evaluations | None = None,
    deadline: Deadline | None = None,
) -> Frame:
    """Do what `find_frame` does; count evaluations, and end when a deadline has passed."""
    with Interrupts(deferred=False):
        density = density_of(model_or_context(model))
        rng = np.random.default_rng(integer_seed(random_seed))
        center = find_start(density, start, rng)
        target = Target.of(density, center, evaluations)
        frame = search(target, center, rng, dense=dense, deadline=deadline)
        if stream_of(density) is not None:
            frame = on_all_rows(density, frame, evaluations, deadline)
    if frame.scale is None:
        _log.warning(
            "No start was found: no Gaussian at a mode, or around the initial point, is near the "
            "posterior. A fit begins there, in the units of the unconstrained variables.\n"
            "Give start= a point nearer to the posterior, or priors to flat directions."
        )
    return replace(frame, variables=sizes(density.slots))


@dataclass(frozen=True, eq=False)
class Candidate:
    """A Gaussian, its ELBO, and the ELBO with the median for the mean log density; in nats.

    If some draws have no density, as beyond a constraint, both are those of the Gaussian restricted
    to the others: importance weights restrict it in the same way.
    """

    frame: Frame
    elbo: float
    typical: float

    @classmethod
    def of(cls, target: Target, frame: Frame, noise: np.ndarray) -> Candidate:
        """Estimate the ELBO from base noise (n, dim); −∞ if few draws have a density."""
        log_p = target.value(frame.forward(noise))
        entropy = 0.5 * noise.shape[1] * math.log(2 * math.pi * math.e) + frame.log_det
        inside = np.isfinite(log_p)
        share = inside.mean()
        if share < LEAST_INSIDE:
            return cls(frame, -math.inf, -math.inf)
        if share < 1:
            # −log of the restricted density is smaller by the log of the mass that is kept.
            log_p, noise = log_p[inside], noise[inside]
            squares = np.square(noise).sum(axis=1).mean() - noise.shape[1]
            entropy += 0.5 * squares + math.log(share)
        elbo, typical = float(log_p.mean()) + entropy, float(np.median(log_p)) + entropy
        return cls(frame, *(x if math.isfinite(x) else -math.inf for x in (elbo, typical)))


def search(
    target: Target,
    start: np.ndarray,
    rng: np.random.Generator,
    *,
    dense: bool = True,
    options: SearchOptions = SEARCH,
    deadline: Deadline | None = None,
) -> Frame:
    """Return the best Gaussian of a search from ``start`` (dim,), see `find_frame`.

    It has no scale if none is found. When the deadline has passed, the best so far is taken.
    """
    seeker = Seeker(target, rng, options, deadline or Deadline(), dense=dense)
    seeker.from_start(start)
    seeker.from_elsewhere(start)
    return seeker.best(start)


class Seeker:
    """Collects Gaussians at modes, and chooses from them."""

    def __init__(
        self,
        target: Target,
        rng: np.random.Generator,
        options: SearchOptions,
        deadline: Deadline,
        *,
        dense: bool,
    ):
        self._target, self._rng, self._options = target, rng, options
        self._deadline, self._dense = deadline, dense
        self._found: list[Candidate] = []
        self._at_modes: list[Candidate] = []

    def from_start(self, start: np.ndarray) -> None:
        """Add the first mode, and Gaussians at points on the way there."""
        draws = int(share_of_draws(self._target.n_data) * self._options.elbo_draws)
        half = self._rng.standard_normal((draws // 2, len(start)))
        # With mean 0, so that no Gaussian gains by a displaced centre.
        self._noise = np.concatenate([half, -half])
        self._add(Frame(start, np.ones(len(start))))
        path = self._ascend(start)
        for size in self._options.nudges:
            if path or self._deadline.has_passed:
                break
            path = self._ascend(start + self._rng.uniform(-size, size, len(start)))
        for point in self._way(path):
            self._add(self._laplace(point))
        self._add(self._climb(self._found[-1].frame))
        self._at_modes.append(self._found[-1])

    def from_elsewhere(self, start: np.ndarray) -> None:
        """Search for modes from other points, while time and evaluations are left."""
        options, counts = self._options, self._target.evaluations
        in_a_row = options.same_in_a_row
        if self._target.n_data > LARGE:
            in_a_row = min(in_a_row, FEW_IN_A_ROW)
        around, n_known = [self._found[0].frame, self._found[-1].frame], 0
        n_starts = options.n_starts
        if len(start) > MAX_DENSE:
            n_starts = min(n_starts, options.n_starts_in_many)
        for i in range(1, n_starts):
            if n_known == in_a_row:
                break
            if (
                self._deadline.has_passed
                or counts.curvatures > options.max_curvatures
                or counts.gradients > options.max_gradients
            ):
                _log.info("%d of %d starting points were left out.", n_starts - i, n_starts)
                break
            spreads = (options.spreads, options.multiples)[i % 2]
            spread = spreads[i // 2 % len(spreads)]
            point = around[i % 2].forward(spread * self._rng.standard_normal(len(start)))
            path = self._ascend(point)
            # Not compared with Gaussians on the way to a mode: wide ones may cover other modes.
            if path and all(
                distance(c.frame, path[-1]) > options.same_mode for c in self._at_modes
            ):
                self._add(self._climb(self._laplace(path[-1])))
                self._at_modes.append(self._found[-1])
                n_known = 0
            else:
                n_known += 1

    def best(self, start: np.ndarray) -> Frame:
        """The best Gaussian, or one over those that are apart; without a scale if there is none."""
        options = self._options
        apart = self._apart(self._found)
        [log_density] = self._target.value(start[None])
        # The median tells whether a Gaussian is far off: few draws in a tail make any ELBO small.
        is_lost = apart[0].typical < log_density - options.lost * len(start)
        if is_lost or not math.isfinite(apart[0].elbo):
            return Frame(start)
        share = np.exp([c.elbo - apart[0].elbo for c in apart])
        kept = [c.frame for c, w in zip(apart, share, strict=True) if w > options.min_share]
        _log.info(
            "Start: ELBO %.5g of the best of %d Gaussians, %d apart from each other; %s.",
            apart[0].elbo,
            len(self._found),
            len(kept),
            self._target.evaluations,
        )
        if len(kept) > 1:
            return _cover(kept, share[share > options.min_share], dense=self._dense)
        return self._shrink(apart[0]).frame

    def modes(self) -> list[Frame]:
        """Gaussians at all modes that were found, those with the most mass first."""
        apart = [c for c in self._apart(self._at_modes) if math.isfinite(c.elbo)]
        least = apart[0].elbo + math.log(self._options.min_share) if apart else 0.0
        return [self._shrink(c).frame for c in apart if c.elbo > least]

    def _apart(self, found: Sequence[Candidate]) -> list[Candidate]:
        """Candidates that are not at the mode of a better one; the best first."""
        apart: list[Candidate] = []
        for candidate in sorted(found, key=lambda c: -c.elbo):
            center = candidate.frame.center
            if all(distance(c.frame, center) > self._options.same_mode for c in apart):
                apart.append(candidate)
        return apart

    def _add(self, frame: Frame) -> None:
        self._found.append(Candidate.of(self._target, frame, self._noise))

    def _ascend(self, point: np.ndarray) -> Path:
        """The way to a mode; Newton steps are in the units of the curvature at its start."""
        scale = self._units(point) if self._target.takes_newton_steps else None
        return ascend(self._target, Frame(point, scale), self._options, self._deadline)

    def _units(self, point: np.ndarray) -> np.ndarray:
        matrix = self._target.curved(point)[2]
        with np.errstate(all="ignore"):
            sd = 1 / np.sqrt(np.abs(matrix.diagonal()))
        return np.where(np.isfinite(sd) & (sd > 0), sd, 1.0)

    def _way(self, path: Path) -> Path:
        """Some points of the way, and its end."""
        points = self._options.way_points + 1
        steps = np.linspace(0, max(len(path) - 1, 0), points)[1:-1].astype(int).tolist()
        return [*(path[i] for i in dict.fromkeys(steps) if path), *path[-1:]]

    def _climb(self, frame: Frame) -> Frame:
        """Search for the mode again in the coordinates of a Gaussian, where it is easier."""
        for _ in range(self._options.max_climbs):
            if self._deadline.has_passed:
                break
            path = ascend(self._target, frame, self._options, self._deadline)
            if not path or np.abs(frame.inverse(path[-1])).max() < self._options.at_mode:
                break
            frame = self._laplace(path[-1])
        return frame

    def _laplace(self, point: np.ndarray) -> Frame:
        """The Gaussian with the curvature of the log density at a point.

        Without correlations, as always in high dimensions, its standard deviations are the
        conditional ones: of all Gaussians without correlations it has the largest ELBO.
        """
        matrix = self._target.curved(point)[2]
        diagonal = matrix.diagonal()
        is_peak = np.isfinite(diagonal) & (diagonal > 0)
        sd = np.where(is_peak, 1 / np.sqrt(np.where(is_peak, diagonal, 1.0)), 1.0)
        if not self._dense or len(point) > MAX_DENSE:
            return Frame(point, sd)
        full = dense_array(matrix)
        is_peak &= np.isfinite(full).all(axis=1)
        scaled = np.where(np.isfinite(full), full, 0.0) * sd * sd[:, None]
        scaled[~is_peak] = scaled[:, ~is_peak] = 0.0
        scaled[~is_peak, ~is_peak] = 1.0
        values, vectors = np.linalg.eigh((scaled + scaled.T) / 2)
        # A direction without a peak gets the scale of the coordinates.
        values = np.where(values > self._options.flat, values, 1.0)
        root = sd[:, None] * vectors / np.sqrt(values)
        return Frame(point, _cholesky(root @ root.T))

    def _shrink(self, best: Candidate) -> Candidate:
        """Halve the width of a Gaussian while its ELBO gains: curvature does not see boundaries."""
        for _ in range(self._options.max_halvings):
            narrower = Candidate.of(self._target, best.frame.widened(0.5), self._noise)
            if narrower.elbo <= best.elbo:
                break
            best = narrower
        return best


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
