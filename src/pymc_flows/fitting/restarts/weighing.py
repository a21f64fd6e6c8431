"""Weights of several approximations of one posterior, by multiple importance sampling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pymc_flows.flows.state import FlowState
from pymc_flows.importance import Quality, quality, weigh

# Two parts with a larger overlap (see `overlaps`) are at one mode.
OVERLAP = 0.05
# A part is left out if the mixture loses less than this without it, in nats.
WORTH = 1e-3
# Most rounds of the search for weights; a round that gains less than the tolerance, in nats, is
# last.
MOST_ROUNDS, TOLERANCE = 2_000, 1e-9


@dataclass(frozen=True, eq=False)
class Weighing:
    """Densities of all parts at draws of all parts.

    Attributes
    ----------
    log_q : ndarray, shape (parts, parts, n)
        Log density of part k at draw i of part j: ``log_q[k, j, i]``, in nats.
    log_p : ndarray, shape (parts, n)
        Log density of the model at draw i of part j.
    """

    log_q: np.ndarray
    log_p: np.ndarray

    @classmethod
    def of(
        cls,
        parts: Sequence[FlowState],
        log_density: Callable[[np.ndarray], np.ndarray],
        n: int,
        rngs: Sequence[np.random.Generator],
    ) -> Weighing:
        """Draw n points from each part, and evaluate all densities there.

        Raises
        ------
        NotInvertibleError
            If a part has no inverse.
        """
        log_q, log_p = np.empty((len(parts), len(parts), n)), np.empty((len(parts), n))
        for j, (part, rng) in enumerate(zip(parts, rngs, strict=True)):
            points, log_q[j, j] = part.draw(n, rng)
            log_p[j] = log_density(points)
            for k, other in enumerate(parts):
                if k != j:
                    log_q[k, j] = other.log_prob(points)
        # A part has no draws where its inverse overflows.
        return cls(np.where(np.isnan(log_q), -np.inf, log_q), log_p)

    @property
    def n_parts(self) -> int:
        """Number of parts."""
        return len(self.log_p)

    def qualities(self) -> list[Quality]:
        """The quality of each part, by its own draws."""
        return [quality(self.log_p[k] - self.log_q[k, k]) for k in range(self.n_parts)]

    # --------------------------------------------------------------------------- all draws at once

    def _flat(self) -> np.ndarray:
        return self.log_q.reshape(self.n_parts, -1)

    def together(self) -> tuple[Quality, np.ndarray]:
        """Quality and smoothed log weights (parts · n,) of all draws, as those of the even mixture.

        The deterministic mixture of Veach & Guibas (1995); Owen & Zhou, Safe and Effective
        Importance Sampling, JASA 95(449), 2000.
        """
        even = np.logaddexp.reduce(self._flat(), axis=0) - math.log(self.n_parts)
        return weigh(self.log_p.ravel() - even)

    def overlaps(self) -> np.ndarray:
        """∫ 2 qⱼ qₖ / (qⱼ + qₖ) of all pairs (parts, parts): 1 if equal, 0 if separate."""
        own = np.stack([self.log_q[j, j] for j in range(self.n_parts)])
        shares = 2 * np.exp(self.log_q - np.logaddexp(self.log_q, own)).mean(axis=2)
        return np.asarray(0.5 * (shares + shares.T))

    def modes(self) -> list[list[int]]:
        """Groups of parts at one mode: those that overlap, directly or through others."""
        near = self.overlaps() > OVERLAP
        left, modes = set(range(self.n_parts)), []
        while left:
            mode, new = set[int](), {min(left)}
            while new:
                mode |= new
                left -= new
                new = {k for k in left if any(near[j, k] for j in mode)}
            modes.append(sorted(mode))
        return modes

    def masses(self, modes: Sequence[Sequence[int]]) -> list[tuple[float, float]]:
        """Log evidence of each mode, and its standard error, in nats.

        A draw counts for modes in proportion to the densities of their parts there.
        """
        flat = self._flat()
        total = np.logaddexp.reduce(flat, axis=0)
        log_weights = self.log_p.ravel() - (total - math.log(self.n_parts))
        top = float(np.max(log_weights[np.isfinite(log_weights)], initial=-math.inf))
        if not math.isfinite(top):
            return [(-math.inf, math.nan)] * len(modes)
        weights, found = np.exp(log_weights - top), []
        for mode in modes:
            terms = weights * np.exp(np.logaddexp.reduce(flat[list(mode)], axis=0) - total)
            mean = float(terms.mean())
            # The number of draws of each part is fixed: only the variance within parts counts.
            by_part = terms.reshape(self.n_parts, -1)
            error = float(np.sqrt(by_part.var(axis=1, ddof=1).sum() / by_part.shape[1]))
            log_mass = top + math.log(mean) if mean > 0 else -math.inf
            found.append((log_mass, error / self.n_parts / mean if mean > 0 else math.nan))
        return found

    def mixture_weights(self) -> np.ndarray:
        """Weights (parts,) of the mixture nearest to the posterior; 0 for parts without a gain.

        They maximise E_p[log Σ wₖ qₖ], which is concave, by the EM updates of population Monte
        Carlo (Cappé, Douc, Guillin, Marin & Robert, Statistics and Computing 18, 2008). For
        separate parts they are the shares of the evidence. Parts without a gain for the mixture are
        dropped, the lightest first.
        """
        _, log_weights = self.together()
        kept = np.flatnonzero(log_weights > -np.inf)
        if not len(kept):
            return np.zeros(self.n_parts)
        draws = np.exp(log_weights[kept])
        log_q = self._flat()[:, kept]
        weights, value = _best_weights(log_q, draws, np.full(self.n_parts, 1 / self.n_parts))
        for k in np.argsort(weights, kind="stable"):
            rest = np.where(np.arange(self.n_parts) == k, 0.0, weights)
            if not (rest > 0).any():
                break
            rest, without = _best_weights(log_q, draws, rest / rest.sum())
            if value - without < WORTH:
                weights, value = rest, without
        return weights


def _best_weights(
    log_q: np.ndarray, draws: np.ndarray, start: np.ndarray
) -> tuple[np.ndarray, float]:
    """Weights (parts,), and E_p[log q] of their mixture in nats; weights of 0 stay 0."""
    is_in = start > 0
    log_q, weights, last = log_q[is_in], start[is_in], -math.inf
    # Relative to the largest at each draw, so that nothing overflows.
    top = log_q.max(axis=0)
    with np.errstate(invalid="ignore"):
        relative = np.where(np.isfinite(top), np.exp(log_q - top), 0.0)
    for _ in range(MOST_ROUNDS):
        density = weights @ relative
        with np.errstate(divide="ignore"):
            value = float(draws @ (np.log(density) + top)) if (density > 0).all() else -math.inf
        if not math.isfinite(value) or value - last < TOLERANCE:
            break
        last = value
        weights = weights * (relative @ (draws / density))
        weights = weights / weights.sum()
    found = np.zeros(len(start))
    found[is_in] = weights
    return found, value
