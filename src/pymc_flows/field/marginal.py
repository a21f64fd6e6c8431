"""The marginal log density of hyperparameters, corrected by the weights of groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np

from pymc_flows.field.conditional.enough import enough
from pymc_flows.field.conditional.gaussian import FieldGaussian
from pymc_flows.field.conditional.mapping import TOLERANCE, ConditionalField
from pymc_flows.field.conditional.noise import NormalNoise
from pymc_flows.field.conditional.skew import Skew
from pymc_flows.field.conditional.tails import want_wider
from pymc_flows.field.conditional.weights import GroupWeights, weigh_groups
from pymc_flows.field.options import FieldOptions, Progress

# Seconds of a usual core that so many values may take, with draws for the log evidence alone.
CHEAP, VALUES = 1.0, 40
# Draws of the separator are taken anew, so many times at most, if a smaller share is effective.
LEAST_EFFECTIVE, RENEWED = 0.25, 4
# Seconds that the choice of draws may take, and fewest values by which it is made.
CHOOSING, FEWEST = 2.0, 2


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
        Whether ``log_p`` is corrected by weights, or needs no correction; else it is ``laplace``,
        or a prediction.
    is_emulated : ndarray of bool, shape (n,)
        Whether ``log_p`` and ``laplace`` are predictions of the corrected marginal.
    """

    hyper: np.ndarray
    log_p: np.ndarray
    laplace: np.ndarray
    error: np.ndarray
    is_direct: np.ndarray
    is_emulated: np.ndarray

    def at(self, rows: np.ndarray) -> MarginalValues:
        """Select some of the values."""
        return MarginalValues(*(getattr(self, f.name)[rows] for f in fields(self)))

    def replaced(self, rows: np.ndarray, found: MarginalValues) -> MarginalValues:
        """Replace some of the values by others."""
        copies = [getattr(self, f.name).copy() for f in fields(self)]
        for copy, f in zip(copies, fields(self), strict=True):
            copy[rows] = getattr(found, f.name)
        return MarginalValues(*copies)

    @classmethod
    def emulated(cls, hyper: np.ndarray, log_p: np.ndarray) -> MarginalValues:
        """Values that are predicted."""
        no = np.zeros(len(hyper), bool)
        return cls(hyper, log_p, log_p, np.zeros(len(hyper)), no, ~no)

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

    def choose_draws(
        self,
        hyper: np.ndarray,
        reference: FieldGaussian,
        options: FieldOptions,
        rng: np.random.Generator,
        progress: Progress,
    ) -> None:
        """Choose the groups that have wider tails, and the number of draws.

        Parameters
        ----------
        hyper : ndarray, shape (n, n_hyper)
            Values of the hyperparameters by which they are chosen; fewer where weights take long.
            The mode alone would not do: there, the field is nearest to a Gaussian.
        reference : FieldGaussian
            At the value with which the others are compared.
        options : FieldOptions
        rng : Generator
        progress : Progress
        """
        groups, n_inner = self.posterior.groups, len(self.noise) // self.n_outer
        begin = progress.effort
        base = self.weigh(reference)
        seconds = max(progress.effort - begin, 1e-9)
        hyper = hyper[: max(FEWEST, int(CHOOSING / seconds))]
        gaussians = [g for _, g in self.gaussians(hyper) if g is not None]
        for is_last in (False, True):
            levels, differences, wide = [], [], self.wide
            for gaussian in gaussians:
                weights = self.weigh(gaussian)
                progress.tell("weights of groups")
                wide = wide | want_wider(weights.ess, n_inner, groups)
                levels.append(weights.variances())
                differences.append(weights.variances(base))
            has_changed = (wide != self.wide).any()
            self.wide = wide
            if is_last or not has_changed:
                break
            base = self.weigh(reference)  # wider tails change the weights
        each = VALUES * seconds / len(self.noise)
        self.n_outer, n_inner = enough(
            levels,
            differences,
            (self.n_outer, n_inner),
            options.group_error**2,
            CHEAP / each,
            options.seconds_per_round / each,
            wide=bool(self.wide.any()),
        )
        self.noise = NormalNoise.make(groups, self.n_outer * n_inner, rng)
        for _ in range(RENEWED if self.n_outer > 1 else 0):
            if self.weigh(reference).outer_ess >= LEAST_EFFECTIVE * self.n_outer:
                break
            # One draw far out would decide the marginal at all values of the hyperparameters.
            self.noise = NormalNoise.make(groups, len(self.noise), rng)

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
        return MarginalValues(hyper, log_p, laplace, error, is_direct, np.zeros(len(hyper), bool))
