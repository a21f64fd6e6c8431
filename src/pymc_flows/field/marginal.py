"""The marginal log density of hyperparameters, corrected by the weights of groups."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np

from pymc_flows.field.conditional.gaussian import FieldGaussian
from pymc_flows.field.conditional.mapping import TOLERANCE, ConditionalField
from pymc_flows.field.conditional.noise import NormalNoise
from pymc_flows.field.conditional.skew import Skew
from pymc_flows.field.conditional.tails import want_wider
from pymc_flows.field.conditional.weights import GroupWeights, weigh_groups
from pymc_flows.field.options import Progress

# Most times by which draws become more where their errors are large.
MOST_FACTOR = 4


@dataclass(frozen=True, eq=False)
class MarginalValues:
    """The marginal at some values of the hyperparameters.

    Attributes
    ----------
    hyper : ndarray, shape (n, n_hyper)
    log_p : ndarray, shape (n,)
        Log density of hyperparameters and data, in nats; −∞ where there is no Gaussian.
    laplace : ndarray, shape (n,)
        Laplace's approximation of it, in nats.
    error : ndarray, shape (n,)
        Standard errors of ``log_p``, in nats. Most of the error is the same at all values.
    is_direct : ndarray of bool, shape (n,)
        Whether ``log_p`` is corrected by weights, or needs no correction; else it is ``laplace``.
    """

    hyper: np.ndarray
    log_p: np.ndarray
    laplace: np.ndarray
    error: np.ndarray
    is_direct: np.ndarray

    def at(self, rows: np.ndarray) -> MarginalValues:
        """Select some of the values."""
        return MarginalValues(*(getattr(self, f.name)[rows] for f in fields(self)))

    def corrected(self, rows: np.ndarray, found: MarginalValues) -> MarginalValues:
        """Replace some of the values by others."""
        copies = [getattr(self, f.name).copy() for f in fields(self)]
        for copy, f in zip(copies, fields(self), strict=True):
            copy[rows] = getattr(found, f.name)
        return MarginalValues(*copies)

    @classmethod
    def joined(cls, parts: Sequence[MarginalValues]) -> MarginalValues:
        """Join the values of several evaluations."""
        names = [f.name for f in fields(cls)]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


class Marginal:
    """Evaluates the marginal of the hyperparameters.

    Parameters
    ----------
    conditional : ConditionalField
    noise : NormalNoise
        The same draws for all values, so that their noise cancels in differences.
    n_outer : int
        Number of blocks of draws that share the separator.
    is_gaussian : bool
        Whether the field is Gaussian given the hyperparameters, and Laplace's approximation exact.
    wide : ndarray of bool, shape (n_groups,), optional
        Groups whose proposal has wider tails, the same for all values; by default none.
    skew : Skew, optional
        Of the draws of the separator, the same for all values.
    """

    def __init__(
        self,
        conditional: ConditionalField,
        noise: NormalNoise,
        *,
        n_outer: int,
        is_gaussian: bool,
        wide: np.ndarray | None = None,
        skew: Skew | None = None,
    ):
        self.conditional, self.noise, self.posterior = conditional, noise, conditional.posterior
        self.n_outer, self.is_gaussian = n_outer, is_gaussian
        self.wide = np.zeros(self.posterior.n_groups, bool) if wide is None else wide
        self.skew = skew

    def gaussians(
        self, hyper: np.ndarray, *, tolerance: float = TOLERANCE
    ) -> Iterator[tuple[int, FieldGaussian | None]]:
        """Yield indices and Gaussians at values (n, n_hyper); few are held at once."""
        size = self.conditional.chunk
        for begin in range(0, len(hyper), size):
            yield from enumerate(
                self.conditional.at(hyper[begin : begin + size], tolerance=tolerance), begin
            )

    def widen(self, weights: Sequence[GroupWeights]) -> bool:
        """Give wider tails to groups that need them by one of these weights; tell if any does."""
        n_inner, groups = len(self.noise) // self.n_outer, self.posterior.groups
        wanted = [want_wider(w.ess, n_inner, groups) for w in weights]
        wide = np.any([self.wide, *wanted], axis=0)
        changed = bool((wide != self.wide).any())
        self.wide = wide
        return changed

    def take_more(self, factor: float, rng: np.random.Generator) -> bool:
        """Take more draws of the separator, or of groups if there is none: 2 or 4 times as many.

        Returns whether there are more: values from before are then of another function.
        """
        times = 2 ** round(math.log2(min(max(factor, 1.0), MOST_FACTOR)))
        if times == 1:
            return False
        self.n_outer *= times if self.n_outer > 1 else 1
        self.noise = NormalNoise.make(self.posterior.groups, times * len(self.noise), rng)
        return True

    def weigh(self, gaussian: FieldGaussian) -> GroupWeights:
        """Weigh the draws of ``noise`` by group."""
        return self.weigh_others(gaussian, self.noise, n_outer=self.n_outer)

    def weigh_others(
        self, gaussian: FieldGaussian, noise: NormalNoise, *, n_outer: int = 1, keep: bool = False
    ) -> GroupWeights:
        """Weigh other draws of the same proposal, see `weigh_groups`."""
        return weigh_groups(
            self.posterior,
            gaussian,
            noise,
            n_outer=n_outer,
            wide=self.wide,
            skew=self.skew,
            keep=keep,
        )

    def evaluate(
        self, hyper: np.ndarray, progress: Progress, stage: str, *, corrected: bool = True
    ) -> MarginalValues:
        """Evaluate at values (n, n_hyper).

        Parameters
        ----------
        hyper : ndarray
        progress : Progress
        stage : str
            Name of the stage, for the progress.
        corrected : bool
            Whether to correct Laplace's approximation by weights of groups, which costs most.
        """
        laplace, error = np.full(len(hyper), -np.inf), np.zeros(len(hyper))
        log_p = laplace.copy()
        weighs, chunk = corrected and not self.is_gaussian, self.conditional.chunk
        for i, gaussian in self.gaussians(hyper):
            if gaussian is not None:
                log_p[i] = laplace[i] = gaussian.log_marginal
                if weighs:
                    weights = self.weigh(gaussian)
                    log_p[i], error[i] = weights.log_marginal, weights.error
            if weighs or (i + 1) % chunk == 0:
                progress.tell(stage)
        progress.tell(stage)
        log_p = np.where(np.isnan(log_p), -np.inf, log_p)
        is_direct = np.full(len(hyper), corrected or self.is_gaussian)
        return MarginalValues(hyper, log_p, laplace, error, is_direct)
