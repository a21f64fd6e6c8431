"""Values of hyperparameters, round by round: adaptive importance sampling.

The method is that of Cappé, Guillin, Marin & Robert, Population Monte Carlo, JCGS 13(4), 2004. All
values that were taken count as draws of the mixture of the distributions that they came from.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from copy import copy
from dataclasses import replace

import numpy as np

from pymc_flows.field.conditional.gaussian import FieldGaussian
from pymc_flows.field.hyper.correction import Correction, fit_correction
from pymc_flows.field.hyper.emulator import Emulator, fit_emulator
from pymc_flows.field.hyper.flow import HyperFlow
from pymc_flows.field.hyper.profile import ProfileProposal
from pymc_flows.field.hyper.proposal import ENOUGH, Proposal, mixture_log_prob, moments, tempered
from pymc_flows.field.hyper.scaled import ScaledEffects
from pymc_flows.field.marginal import Marginal, MarginalValues
from pymc_flows.field.options import FieldOptions, Progress
from pymc_flows.field.selection import spread_rows
from pymc_flows.importance import Quality, weigh

_log = logging.getLogger(__name__)

# Fewest values of a round, by which its cost per value is measured.
MIN_VALUES = 40
# Values of a round at which the correction of Laplace's approximation is evaluated; in the first
# round more, if the errors of predictions are above this share of the largest one allowed. Values
# at which an emulator is checked: of the first distribution, and of each other one.
CORRECTED, MORE_CORRECTED, CLEAR, CHECKS = 16, 24, 0.5, (8, 4)
# Values of the first round by which draws of the groups are chosen.
CHOOSING = 8
# Values are predicted if they would take longer than this, in seconds of a usual core.
SECONDS_TO_EMULATE = 1.0
# They are not if the error at values that are checked is more than this times the one allowed.
CHECKED = 2.0
# Fewest draws of a round whose k-hat is more than noise.
TELLING = 200
# Even weights have a finite variance: their k-hat counts as no more than this.
FINITE = 0.5

type Distribution = Proposal | ProfileProposal | ScaledEffects | HyperFlow


class Rounds:
    """Values of the hyperparameters, round by round.

    Parameters
    ----------
    marginal : Marginal
    reference : FieldGaussian
        At the mode of the hyperparameters.
    options : FieldOptions
    progress : Progress
    """

    def __init__(
        self,
        marginal: Marginal,
        reference: FieldGaussian,
        options: FieldOptions,
        progress: Progress,
    ):
        self.marginal, self.reference = marginal, reference
        self.options, self.progress = options, progress
        self.parts: list[tuple[Distribution, MarginalValues]] = []
        self.log_weights = np.empty(0)
        self.overall = Quality(0, -math.inf, math.nan, math.inf, 0.0, -math.inf, math.nan)
        self.correction: Correction | None = None
        self.can_emulate = True
        # Errors of predicted corrections and values where they were not known, in nats.
        self.missed = self.emulation_error = 0.0
        # Smallest k-hat of the weights of any single round.
        self.khat = math.inf
        # Seconds per value of the last round, and of the last one whose values were evaluated.
        self.seconds_each = self.seconds_evaluated = 0.0

    @property
    def hyper(self) -> np.ndarray:
        """All values so far (n, n_hyper)."""
        return np.concatenate([values.hyper for _, values in self.parts])

    @property
    def log_p(self) -> np.ndarray:
        """Log marginal (n,) of all values, in nats: evaluated or predicted."""
        return np.concatenate([self._log_p(values) for _, values in self.parts])

    def _log_p(self, values: MarginalValues) -> np.ndarray:
        if self.correction is None:
            return values.log_p
        predicted = values.laplace + self.correction(values.hyper)
        return np.where(values.is_direct | values.is_emulated, values.log_p, predicted)

    def _log_weights(self) -> np.ndarray:
        proposals = [(proposal, len(values.hyper)) for proposal, values in self.parts]
        return self.log_p - mixture_log_prob(proposals, self.hyper)

    def take(
        self,
        proposal: Distribution,
        most: int,
        rng: np.random.Generator,
        seconds: float | None = None,
    ) -> Quality:
        """Evaluate the marginal at draws of a distribution, and judge it by their weights.

        Parameters
        ----------
        proposal : Distribution
        most : int
            Number of draws; there are fewer if they would take too long.
        rng : Generator
        seconds : float, optional
            Longest that the round may take; by default as the options say.
        """
        seconds = self.options.seconds_per_round if seconds is None else seconds
        return self.take_all([(proposal, most)], rng, seconds)[-1]

    def take_all(
        self,
        wanted: Sequence[tuple[Distribution, int]],
        rng: np.random.Generator,
        seconds: float,
    ) -> list[Quality]:
        """Evaluate the marginal at draws of several distributions.

        Laplace's approximation is evaluated at all draws, its correction at some of them. At the
        others the correction is predicted or, if predictions are too wrong, evaluated. For fields
        that are far from Gaussian, all draws are corrected at once. Where many values take long
        and few tell the others, most of them are predicted altogether.

        Parameters
        ----------
        wanted : sequence of Distribution and int
            Distributions and numbers of draws, at least one of each; there are fewer draws if they
            would take too long.
        rng : Generator
        seconds : float
            Longest that it may take.
        """
        stage = f"values of the hyperparameters, round {len(self.parts) + 1}"
        n, n_draws = len(wanted), sum(most for _, most in wanted)
        draws = [proposal.draw(most, rng) for proposal, most in wanted]
        before, had_correction = self.progress.effort, self.correction is not None
        emulator = self._emulator(n_draws, seconds)
        if emulator is not None and self._emulate(emulator, wanted, draws, seconds, stage, rng):
            return self._finish(n, self.progress.effort - before)
        is_far, is_first = self.marginal.conditional.is_far, not self.parts
        before = self.progress.effort
        for (proposal, most), hyper in zip(wanted, draws, strict=True):
            allowed = seconds * most / n_draws
            if is_first and not self.marginal.is_gaussian:
                begin = self.progress.effort
                tried = hyper[:MIN_VALUES] if is_far else hyper
                values = self._evaluate(tried, allowed, stage, corrected=False)
                evaluated = self.progress.effort
                self._choose_draws(proposal, values, rng)
                before += self.progress.effort - (begin if is_far else evaluated)
            if is_far or not is_first or self.marginal.is_gaussian:
                values = self._evaluate(hyper, allowed, stage, corrected=is_far)
            self.parts.append((proposal, values))
            is_first = False
        if not self._predicts(n, stage, rng):
            self._correct_all(n, seconds, stage, had_correction=had_correction)
        found = self._finish(n, self.progress.effort - before)
        self.seconds_evaluated = self.seconds_each
        return found

    def _emulator(self, n: int, seconds: float) -> Emulator | None:
        """An emulator, if evaluations of n values would take long and its errors are small."""
        wanted = min(self.seconds_evaluated * n, seconds)
        if not self.can_emulate or wanted < SECONDS_TO_EMULATE or not self.has_enough():
            return None
        is_known = np.concatenate([~values.is_emulated for _, values in self.parts])
        weights = np.exp(self.log_weights)
        found = fit_emulator(self.hyper[is_known], self.log_p[is_known], weights[is_known])
        if found is None or found.error > self.options.emulation_error:
            return None
        _log.info("The emulated log marginal is off by %.2g nats at left-out values.", found.error)
        return found

    def _emulate(
        self,
        emulator: Emulator,
        wanted: Sequence[tuple[Distribution, int]],
        draws: Sequence[np.ndarray],
        seconds: float,
        stage: str,
        rng: np.random.Generator,
    ) -> bool:
        """Predict most values, evaluate those far out, and check some; return whether it is right.

        If not, none of these is kept, and no more is emulated. Values of earlier rounds, which were
        checked where they are, stay.
        """
        allowed = self.options.emulation_error
        predictions = [emulator(hyper) for hyper in draws]
        is_far = [~(sd <= allowed) for _, sd in predictions]
        n_far, n_draws = sum(int(far.sum()) for far in is_far), sum(map(len, draws))
        if n_far > n_draws / 2:
            return False
        share = min(1.0, seconds / max(n_far * self.seconds_evaluated, 1e-9))
        draws = [hyper[: math.ceil(share * len(hyper))] for hyper in draws]
        before, begin = list(self.parts), 0
        checks, predicted = [], []
        for k, ((proposal, _), hyper) in enumerate(zip(wanted, draws, strict=True)):
            log_p = predictions[k][0][: len(hyper)]
            far = np.flatnonzero(is_far[k][: len(hyper)])
            found = self.marginal.evaluate(
                hyper[far], self.progress, stage, corrected=self.correction is None
            )
            values = MarginalValues.emulated(hyper, log_p).replaced(far, found)
            self.parts.append((proposal, values))
            log_weights = log_p - proposal.log_prob(hyper)
            weights = tempered(np.where(values.is_emulated, log_weights, -np.inf))
            checks.append(begin + spread_rows(hyper, weights, CHECKS[k > 0], rng))
            predicted.append(log_p)
            begin += len(hyper)
        rows = np.concatenate(checks)
        found = self.marginal.evaluate(np.concatenate(draws)[rows], self.progress, stage)
        off = found.log_p - np.concatenate(predicted)[rows]
        error = float(np.sqrt(np.square(off).mean()))
        self._replace(len(wanted), rows, found)
        self.can_emulate = error <= CHECKED * allowed and self._predicts(len(wanted), stage, rng)
        if not self.can_emulate:
            self.parts = before
            return False
        self.emulation_error = max(self.emulation_error, error, emulator.error)
        return True

    def _replace(self, n: int, rows: np.ndarray, found: MarginalValues) -> None:
        """Replace some values of the last n parts."""
        values = MarginalValues.joined([values for _, values in self.parts[-n:]])
        values = values.replaced(rows, found)
        begin = 0
        for k in range(len(self.parts) - n, len(self.parts)):
            proposal, old = self.parts[k]
            end = begin + len(old.hyper)
            self.parts[k] = proposal, values.at(np.arange(begin, end))
            begin = end

    def _finish(self, n: int, seconds: float) -> list[Quality]:
        """Weigh all values; return the qualities of the last n distributions.

        The values of these took so many seconds.
        """
        self.seconds_each = seconds / sum(len(values.hyper) for _, values in self.parts[-n:])
        self.overall, self.log_weights = weigh(self._log_weights())
        found = []
        for proposal, values in self.parts[-n:]:
            quality, _ = weigh(self._log_p(values) - proposal.log_prob(values.hyper))
            if quality.n_draws >= TELLING:
                khat = min(quality.khat, FINITE) if quality.is_even else quality.khat
                self.khat = min(self.khat, khat)
            found.append(quality)
        return found

    def _choose_draws(
        self, proposal: Distribution, values: MarginalValues, rng: np.random.Generator
    ) -> None:
        """Choose the draws of groups by some of the first values."""
        weights = tempered(values.log_p - proposal.log_prob(values.hyper))
        rows = rng.permutation(spread_rows(values.hyper, weights, CHOOSING, rng))
        self.marginal.choose_draws(
            values.hyper[rows], self.reference, self.options, rng, self.progress
        )

    def _evaluate(
        self, hyper: np.ndarray, seconds: float, stage: str, *, corrected: bool
    ) -> MarginalValues:
        """Evaluate the marginal at the first of these values, as many as the time allows."""
        n, before = min(len(hyper), MIN_VALUES), self.progress.effort
        values = self.marginal.evaluate(hyper[:n], self.progress, stage, corrected=corrected)
        taken = self.progress.effort - before
        end = int(np.clip(seconds * n / taken, n, len(hyper)))
        if end == n:
            return values
        more = self.marginal.evaluate(hyper[n:end], self.progress, stage, corrected=corrected)
        return MarginalValues.joined([values, more])

    def _predicts(self, n: int, stage: str, rng: np.random.Generator) -> bool:
        """Correct some values of the last n parts; return whether they predict the others."""
        allowed = self.options.correction_error
        numbers = (CORRECTED, MORE_CORRECTED) if self.correction is None else (CORRECTED,)
        for wanted in numbers:
            values = MarginalValues.joined([values for _, values in self.parts[-n:]])
            is_open = ~(values.is_direct | values.is_emulated)
            if not is_open.any():
                return True
            # Tempered, so that values around those with the most weight are chosen, too.
            log_weights = self._log_weights()[-len(is_open) :]
            weights = tempered(np.where(is_open, log_weights, -np.inf))
            rows = spread_rows(values.hyper, weights, wanted, rng)
            self._replace(n, rows, self.marginal.evaluate(values.hyper[rows], self.progress, stage))
            self._fit_correction()
            if self.correction is not None:
                self.missed = self.correction.residual
                _log.info(
                    "The predicted correction is off by %.2g nats at left-out values.", self.missed
                )
                if self.missed <= allowed * (CLEAR if wanted != numbers[-1] else 1):
                    return True
        self.missed, self.correction = 0.0, None
        return False

    def _fit_correction(self) -> None:
        """Fit the correction to all values that were corrected."""
        known = MarginalValues.joined([values for _, values in self.parts])
        weights = tempered(self._log_weights())[known.is_direct]
        known = known.at(known.is_direct)
        with np.errstate(invalid="ignore"):  # neither is finite where there is no Gaussian
            lacking = known.log_p - known.laplace
        self.correction = fit_correction(known.hyper, lacking, weights)

    def _correct_all(self, n: int, seconds: float, stage: str, *, had_correction: bool) -> None:
        """Evaluate the last n parts in full, as far as time allows; drop those with predictions.

        What an emulator predicted stays if it had learned from values that were evaluated in full.
        """
        last = self.parts[-n:]
        n_draws = sum(len(values.hyper) for _, values in last)
        self.parts = [
            (proposal, values)
            for proposal, values in self.parts[:-n]
            if (values.is_direct | (values.is_emulated & (not had_correction))).all()
        ]
        if not any(values.is_emulated.any() for _, values in self.parts):
            self.emulation_error = 0.0
        for proposal, values in last:
            allowed = seconds * len(values.hyper) / n_draws
            found = self._evaluate(values.hyper, allowed, stage, corrected=True)
            self.parts.append((proposal, found))

    def has_enough(self) -> bool:
        """Whether there are enough effective values for a covariance."""
        return self.overall.ess >= ENOUGH * max(1, self.marginal.posterior.n_hyper)

    @property
    def error(self) -> float:
        """Standard error of the log marginal, in nats, by weights of groups and predictions."""
        values = MarginalValues.joined([values for _, values in self.parts])
        direct = np.exp(self.log_weights) * values.is_direct
        errors = np.where(direct > 0, values.error, 0.0)
        within = float(direct @ errors) / max(float(direct.sum()), 1e-300)
        return math.hypot(within, self.missed, self.emulation_error)

    def judged(self) -> Quality:
        """Quality of the weights of all values.

        Errors of predictions make the weights vary more than is seen, which lowers the effective
        number. A mixture's weights are bounded by those of each part divided by its share, so their
        tail is no heavier than that of the best part: k-hat is the smallest of all rounds.
        """
        unseen = self.missed**2 + self.emulation_error**2
        ess = self.overall.ess * math.exp(-unseen)
        return replace(self.overall, ess=ess, khat=min(self.overall.khat, self.khat))

    def copy(self) -> Rounds:
        """The same values; those that are added later are not in both."""
        found = copy(self)
        found.parts = list(self.parts)
        return found

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and covariance of the weighted values."""
        return moments(self.hyper, np.exp(self.log_weights))
