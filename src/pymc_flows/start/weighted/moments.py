"""A Gaussian with the mean and covariance of a posterior, by importance weights.

Near a posterior, weighted draws of a Gaussian have better moments than the Gaussian itself, so it
is replaced by the Gaussian with these (adaptive importance sampling: Cappé, Guillin, Marin &
Robert, Population Monte Carlo, JCGS 13(4), 2004). Nothing is trained or compiled for that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pymc_flows.flows.frame import Frame
from pymc_flows.importance import Quality, weigh
from pymc_flows.start.search import with_covariance

# Draws of each round.
ROUNDS = (4_000, 4_000, 16_000, 4_000)
# With fewer effective pairs of draws per dimension a covariance is noise.
ENOUGH = 5
# Least gain in the share of effective draws that is worth a further round.
GAIN = 0.01
# Factors by which a Gaussian is widened.
FACTORS = (1.5, 3.0, 6.0, 12.0, 24.0, 48.0)
# Draws of each wider Gaussian if the share of effective draws of the first is above `EVEN`.
PROBES, EVEN = 1_000, 0.5
# With fewer effective pairs there is no hope for still wider Gaussians.
HOPELESS = 2
# Further rounds after a Gaussian was widened.
WIDE_ROUNDS = 4
# In these rounds Gaussians are wider than the moments by this factor, for long tails.
DEFENSIVE = 1.25
# Standard errors by which a difference is not due to chance.
N_ERRORS = 4.0


def match_moments(
    log_density: Callable[[np.ndarray], np.ndarray],
    frame: Frame,
    rng: np.random.Generator,
    *,
    share: float = 1.0,
) -> Frame:
    """Improve a Gaussian by the moments of its weighted draws, while they make weights more even.

    It is widened first if a wider one finds mass that it lacks: further modes, or the ends of a
    curve.

    Parameters
    ----------
    log_density : callable
        Log density (n,) at points (n, dim), in nats.
    frame : Frame
        The Gaussian: its mean and a factor of its covariance.
    share : float
        Share of the usual draws that is taken, where evaluations are expensive.

    Returns
    -------
    Frame
        The Gaussian with the most even weights or, if it was widened, the one with the moments of
        its weighted draws; ``frame`` itself if k-hat says that weights cannot be trusted, or
        effective draws are too few for a covariance.
    """
    rounds = [2 * round(share * n / 2) for n in (*ROUNDS, PROBES)]
    probes = rounds.pop()
    if ENOUGH * len(frame.center) > max(rounds) // 2:  # even if all weights were equal
        return frame
    first = Weighted.draws(log_density, frame, rounds[0], rng)
    wider = _widened(log_density, first, rounds, probes, rng)
    if wider is not None:
        for _ in range(WIDE_ROUNDS):
            if not wider.has_enough:
                break
            spread = wider.matched().widened(DEFENSIVE)
            candidate = Weighted.draws(log_density, spread, max(rounds), rng)
            if wider.has_more_mass_than(candidate):
                break
            wider = candidate
        if wider.is_usable:
            return wider.matched()
    best = first
    for draws in rounds[1:]:
        if not best.is_usable or best.has_its_moments:
            break
        candidate = Weighted.draws(log_density, best.matched(), draws, rng)
        gain = candidate.share - best.share
        best = candidate if gain > 0 else best
        if gain <= GAIN:
            break
    return best.frame


def match_significant(
    log_density: Callable[[np.ndarray], np.ndarray],
    frame: Frame,
    rng: np.random.Generator,
) -> Frame:
    """Give a Gaussian the means and deviations of its weighted draws, where these are not noise.

    In many dimensions the noise of a covariance of draws exceeds the error of the Gaussian, while
    the mean of a skewed coordinate, such as a scale, stands out. Arguments are as for
    `match_moments`. If weights cannot be trusted, ``frame`` itself is returned.
    """
    if frame.scale is None:
        return frame
    draws = Weighted.draws(log_density, frame, max(ROUNDS), rng)
    if not draws.quality.is_trusted:
        return frame
    weights, noise = np.exp(draws.log_weights), (draws.share * len(draws.points)) ** -0.5
    u = frame.inverse(draws.points)
    mean = weights @ u
    sd = np.sqrt(weights @ np.square(u - mean))
    mean = np.where(np.abs(mean) > N_ERRORS * noise, mean, 0.0)
    sd = np.where(np.abs(sd - 1) > N_ERRORS * noise, sd, 1.0)
    return replace(frame, center=frame.forward(mean), scale=frame.scale * sd)


@dataclass(frozen=True, eq=False)
class Weighted:
    """Draws of a Gaussian with importance weights.

    Attributes
    ----------
    frame : Frame
    points : ndarray, shape (n, dim)
    log_weights : ndarray, shape (n,)
        Normalised: their exponentials sum to 1.
    quality : Quality
    """

    frame: Frame
    points: np.ndarray
    log_weights: np.ndarray
    quality: Quality

    @classmethod
    def draws(
        cls,
        log_density: Callable[[np.ndarray], np.ndarray],
        frame: Frame,
        n: int,
        rng: np.random.Generator,
    ) -> Weighted:
        """Draw and weigh."""
        dim = len(frame.center)
        half = rng.standard_normal((n // 2, dim))
        noise = np.concatenate([half, -half])  # means of symmetric functions are exact
        points = frame.forward(noise)
        log_q = -0.5 * (np.square(noise).sum(axis=1) + dim * math.log(2 * math.pi))
        found, log_weights = weigh(log_density(points) - log_q + frame.log_det, pairs=True)
        return cls(frame, points, log_weights, found)

    @property
    def share(self) -> float:
        """How even the weights of single draws are: 1 if all are equal."""
        return 1 / (len(self.points) * float(np.exp(2 * self.log_weights).sum() or np.inf))

    @property
    def has_enough(self) -> bool:
        """Whether there are enough effective draws for a covariance."""
        return self.quality.ess >= ENOUGH * len(self.frame.center)

    @property
    def is_usable(self) -> bool:
        """Whether the moments are of use.

        By k-hat alone: nearly equal weights are not enough, for a Gaussian at one of several modes
        has these, too.
        """
        return self.has_enough and self.quality.has_small_khat

    @property
    def has_its_moments(self) -> bool:
        """Whether the moments of the draws differ from the Gaussian's by no more than noise.

        They would then make it worse: the mean of n draws in d dimensions is d/2n nats off on
        average, and their covariance d(d + 1)/4n.
        """
        dim, found = len(self.frame.center), self.quality
        draws = self.share * len(self.points)  # not pairs of a draw and its mirror image
        if found.log_evidence - found.elbo > dim * (dim + 3) / (4 * draws):
            return False
        weights, noise = np.exp(self.log_weights), draws**-0.5
        z = (self.points - self.frame.center) / _sd(self.frame)
        mean = weights @ z
        sd = np.sqrt(weights @ np.square(z - mean))
        # The error of `sd` is that of half as many draws: mirror images have equal squares.
        return bool((np.maximum(abs(mean), abs(sd - 1)) < N_ERRORS * noise).all())

    def matched(self) -> Frame:
        """The Gaussian with the moments of the weighted draws."""
        weights = np.exp(self.log_weights)
        center = weights @ self.points
        rest = (self.points - center) * np.sqrt(weights)[:, None]
        return with_covariance(center, rest.T @ rest)

    def has_more_mass_than(self, other: Weighted) -> bool:
        """Whether log Z is larger by more than chance."""
        mine, others = self.quality, other.quality
        error = math.hypot(mine.log_evidence_error, others.log_evidence_error)
        return mine.log_evidence - others.log_evidence > N_ERRORS * error


def log_normal(frame: Frame, points: np.ndarray) -> np.ndarray:
    """Log density (n,) of the Gaussian of a frame at points (n, dim), in nats."""
    z = frame.inverse(points)
    squares = np.square(z).sum(axis=1) + z.shape[1] * math.log(2 * math.pi)
    return np.asarray(-0.5 * squares - frame.log_det)


def _sd(frame: Frame) -> np.ndarray:
    """Standard deviations (dim,) of the Gaussian's coordinates; 1 (1,) without a scale."""
    if frame.scale is None:
        return np.ones(1)
    return frame.scale if frame.is_elementwise else np.linalg.norm(frame.scale, axis=1)


def _widened(
    log_density: Callable[[np.ndarray], np.ndarray],
    first: Weighted,
    rounds: Sequence[int],
    probes: int,
    rng: np.random.Generator,
) -> Weighted | None:
    """The widest usable Gaussian, if it has more mass than the first or that is not usable."""
    draws = probes if first.share > EVEN else rounds[0]
    usable = [first] if first.is_usable else []
    for factor in FACTORS:
        wider = Weighted.draws(log_density, first.frame.widened(factor), draws, rng)
        if wider.quality.ess < HOPELESS:
            break
        if wider.quality.has_small_khat and wider.quality.ess >= ENOUGH:
            usable.append(wider)
    # A narrow proposal can look good by chance, the widest one rarely.
    whole = [x for x in usable if not any(other.has_more_mass_than(x) for other in usable)]
    if not whole or whole[0] is first:
        return None
    return Weighted.draws(log_density, whole[-1].frame, max(rounds), rng)
