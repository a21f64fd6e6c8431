"""Adaptive importance sampling of hyperparameters, and a flow over them.

The method is that of Cappé, Guillin, Marin & Robert, Population Monte Carlo, JCGS 13(4), 2004. All
values that were evaluated count as draws of the mixture of the distributions that they came from.
"""

from __future__ import annotations

import logging
import math
from dataclasses import replace

import numpy as np

from pymc_flows.errors import FitError
from pymc_flows.field.hyper.correction import Correction, fit_correction
from pymc_flows.field.hyper.flow import HyperFlow
from pymc_flows.field.hyper.mode import MAX_AXES, HyperMode
from pymc_flows.field.hyper.profile import ProfileProposal, follow_axes
from pymc_flows.field.hyper.proposal import (
    ENOUGH,
    Proposal,
    lower_factor,
    mixture_log_prob,
    moments,
    tempered,
)
from pymc_flows.field.hyper.scaled import ScaledEffects, large_scale, least_known
from pymc_flows.field.hyper.values import HyperValues
from pymc_flows.field.marginal import Marginal, MarginalValues
from pymc_flows.field.options import FieldOptions, Progress
from pymc_flows.flows.frame import Frame
from pymc_flows.formula import Formula
from pymc_flows.importance import Quality, systematic, weigh

_log = logging.getLogger(__name__)

# Fewest values of a round, by which its cost per value is measured. In the first round, the
# correction of Laplace's approximation is evaluated at as many values; in later rounds at fewer.
MIN_VALUES, CHECK_VALUES = 40, 16
# Longest that the last round may take, in seconds of a usual core. Nothing is added to it later.
SECONDS_TO_FILL = 8.0
# Degrees of freedom of the Student-t distributions, and a factor of their covariances.
DEGREES, WIDENING = 8.0, 1.1
# A distribution is good enough with this share of effective values, and with no larger difference,
# in nats, between log evidence and ELBO.
GOOD, GAP = 0.7, 0.25
# Besides n draws of a distribution, the last values are n / 8 draws of the profiles, and n / 8 each
# of profiles in which fixed effects, whose standard deviations grow with scales, are wider by these
# factors.
TAILS, STRETCHED = 8, (2.0, 5.0)
# Another n / 3 have effects whose spread follows the scales, and n / 3 a large scale: with n / 8,
# single values had a tenth of the variance of the mean of five groups, or of their scale. More of
# them follow, at most so many times, until standard errors of the standard deviations of effects
# and scales are below this share of these.
SCALED, AGAIN, SPREAD_ERROR = 3, 3, 0.03
# Values of the first round at which groups show whether they need wider tails.
WIDENED = 8
# Fewest draws of a round whose k-hat is more than noise.
TELLING = 200
# Share of effective draws with which k-hat does not matter.
EVEN = 0.9
# Even weights have a finite variance: their k-hat counts as no more than this.
FINITE = 0.5
# A distribution lacks mass if its log evidence is too low by more than this, in nats, and by more
# than this many standard errors.
LACKING, N_ERRORS = 0.02, 3.0

type Distribution = Proposal | ProfileProposal | ScaledEffects | HyperFlow


class _Rounds:
    """Values of the hyperparameters, round by round."""

    def __init__(self, marginal: Marginal, options: FieldOptions, progress: Progress):
        self.marginal, self.options, self.progress = marginal, options, progress
        self.parts: list[tuple[Distribution, MarginalValues]] = []
        self.log_weights = np.empty(0)
        self.overall = Quality(0, -math.inf, math.nan, math.inf, 0.0, -math.inf, math.nan)
        self.correction: Correction | None = None
        # Error of the predicted correction at values that it had not seen, in nats.
        self.missed = 0.0
        # Smallest k-hat of the weights of any single round.
        self.khat = math.inf
        # Seconds per value of the last round.
        self.seconds_each = 0.0

    @property
    def hyper(self) -> np.ndarray:
        """All values so far (n, n_hyper)."""
        return np.concatenate([values.hyper for _, values in self.parts])

    @property
    def log_p(self) -> np.ndarray:
        """Log marginal (n,) of all values, in nats: evaluated, or with a predicted correction."""
        return np.concatenate([self._log_p(values) for _, values in self.parts])

    def _log_p(self, values: MarginalValues) -> np.ndarray:
        if self.correction is None:
            return values.log_p
        predicted = values.laplace + self.correction(values.hyper)
        return np.where(values.is_direct, values.log_p, predicted)

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

        Laplace's approximation is evaluated at all draws, its correction at some of them. At the
        others the correction is predicted or, if predictions are too wrong, evaluated. For fields
        that are far from Gaussian, all draws are corrected at once.

        Parameters
        ----------
        proposal : Distribution
        most : int
            Number of draws; there are fewer if they would take too long.
        rng : Generator
        seconds : float, optional
            Longest that the round may take; by default as the options say.
        """
        stage = f"values of the hyperparameters, round {len(self.parts) + 1}"
        before, is_far = self.progress.effort, self.marginal.conditional.is_far
        if seconds is None:
            seconds = self.options.seconds_per_round
        values = self._evaluate(proposal.draw(most, rng), seconds, stage, corrected=is_far)
        self.parts.append((proposal, values))
        if not values.is_direct.all() and not self._predicts(stage, rng):
            self._correct_all(stage)
        self.overall, self.log_weights = weigh(self._log_weights())
        values = self.parts[-1][1]
        self.seconds_each = (self.progress.effort - before) / len(values.hyper)
        quality, _ = weigh(self._log_p(values) - proposal.log_prob(values.hyper))
        if quality.n_draws >= TELLING:
            khat = min(quality.khat, FINITE) if quality.is_even else quality.khat
            self.khat = min(self.khat, khat)
        return quality

    def restart_finer(self, rng: np.random.Generator) -> bool:
        """Drop all values if the marginal gets more draws or wider tails, where it needs them.

        At the mode, by which both were chosen, the field is nearest to a Gaussian.
        """
        if self.marginal.is_gaussian or not self.overall.ess:
            return False
        rows = np.unique(systematic(tempered(self._log_weights()), WIDENED, rng))
        found = [g for _, g in self.marginal.gaussians(self.hyper[rows]) if g is not None]
        changed = self.marginal.widen([self.marginal.weigh(g) for g in found])
        seconds = self.seconds_each * len(self.hyper)
        allowed = self.options.seconds_per_round / max(seconds, 1e-9)
        factor = (self.within / self.options.group_error) ** 2
        if math.isfinite(factor):
            changed |= self.marginal.take_more(min(factor, allowed), rng)
        if not changed:
            return False
        self.parts, self.correction, self.missed = [], None, 0.0
        self.khat = math.inf
        return True

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

    def fill(self, proposal: Distribution, quality: Quality, rng: np.random.Generator) -> None:
        """Evaluate more draws of a distribution, until enough of all values are effective.

        Some draws come from the first distribution, the profiles, whose tails are long enough.
        """
        options, first = self.options, self.parts[0][0]
        if not quality.ess:
            return
        n = (options.effective - self.overall.ess) * quality.n_draws / quality.ess
        if n < MIN_VALUES:
            return
        allowed = SECONDS_TO_FILL / max(self.seconds_each, 1e-9)
        n = int(min(n, options.most_values, max(allowed, MIN_VALUES)))
        before, begin = {**vars(self), "parts": list(self.parts)}, self.progress.effort
        if isinstance(first, ProfileProposal):
            self.take(first, n // TAILS, rng, math.inf)
            effects = self.marginal.posterior.locations
            for factor in STRETCHED if effects.any() else ():
                self.take(first.stretched(effects, factor), n // TAILS, rng, math.inf)
        self.take(proposal, n, rng, math.inf)
        if isinstance(first, ProfileProposal):
            self._fill_tails(n // SCALED, rng, begin + SECONDS_TO_FILL)
        if self.overall.ess < before["overall"].ess:  # predictions failed, and parts were dropped
            vars(self).update(before)

    def _fill_tails(self, n: int, rng: np.random.Generator, end: float) -> None:
        """Evaluate draws, n at a time, where standard deviations of effects and scales come from.

        There are some for the effects and for the worst known scale, as errors are not seen without
        values in the tails; then more for the worst of all, until its error is small.
        """
        posterior = self.marginal.posterior
        effects, scales = posterior.locations & ~posterior.locations.all(), posterior.scales
        both = effects | scales
        for kind in (effects, scales):
            if kind.any():
                worst, _ = least_known(self.hyper, np.exp(self.log_weights), scales, kind)
                self._take_far_out(worst, effects, n, rng)
        for _ in range(AGAIN if both.any() else 0):
            worst, error = least_known(self.hyper, np.exp(self.log_weights), scales, both)
            if error <= SPREAD_ERROR or self.progress.effort > end:
                return
            self._take_far_out(worst, effects, n, rng)

    def _take_far_out(
        self, which: int, effects: np.ndarray, n: int, rng: np.random.Generator
    ) -> None:
        """Evaluate n draws where the standard deviation of one effect or scale comes from."""
        hyper, weights = self.hyper, np.exp(self.log_weights)
        far: Distribution = (
            ScaledEffects.fit(hyper, weights, effects)
            if effects[which]
            else large_scale(hyper, weights, which)
        )
        self.take(far, n, rng, math.inf)

    def _predicts(self, stage: str, rng: np.random.Generator) -> bool:
        """Evaluate the correction where there is weight; return whether it can be predicted."""
        proposal, values = self.parts[-1]
        n, first = len(values.hyper), self.correction is None
        # Tempered, so that values around those with the most weight are chosen, too.
        weights = tempered(self._log_weights()[-n:])
        wanted = MIN_VALUES if first else CHECK_VALUES
        rows = np.unique(systematic(weights, wanted, rng))
        found = self.marginal.evaluate(values.hyper[rows], self.progress, stage)
        self.parts[-1] = proposal, values.corrected(rows, found)
        known = MarginalValues.joined([values for _, values in self.parts])
        weights = tempered(self._log_weights())[known.is_direct]
        known = known.at(known.is_direct)
        with np.errstate(invalid="ignore"):  # neither is finite where there is no Gaussian
            lacking = known.log_p - known.laplace
        self.correction = fit_correction(known.hyper, lacking, weights)
        if self.correction is not None:
            self.missed = self.correction.residual
            _log.info(
                "The predicted correction is off by %.2g nats at left-out values.", self.missed
            )
            if self.missed <= self.options.correction_error:
                return True
        self.missed, self.correction = 0.0, None
        return False

    def _correct_all(self, stage: str) -> None:
        """Evaluate the last values in full, as many as time allows; drop parts with predictions."""
        proposal, values = self.parts.pop()
        self.parts = [part for part in self.parts if part[1].is_direct.all()]
        seconds = self.options.seconds_per_round
        found = self._evaluate(values.hyper, seconds, stage, corrected=True)
        self.parts.append((proposal, found))

    def has_enough(self) -> bool:
        """Whether there are enough effective values for a covariance."""
        return self.overall.ess >= ENOUGH * max(1, self.marginal.posterior.n_hyper)

    def expects(self, proposal: Distribution) -> float:
        """Share of effective draws that a distribution q would have.

        It is 1 / E_p[p/q], estimated from the weighted values so far instead of draws of q.
        """
        if not np.isfinite(self.log_weights).any():
            return 0.0
        log_p = self.log_p - self.overall.log_evidence
        ratio = self.log_weights + log_p - proposal.log_prob(self.hyper)
        top = ratio.max()
        return float(np.exp(-top) / np.exp(ratio - top).sum()) if np.isfinite(top) else 0.0

    def agree(self, quality: Quality) -> bool:
        """Whether the weights of a distribution are even, and it has the mass that others found."""
        overall = self.overall
        # The k-hat of few and even weights is noise.
        is_even = quality.ess >= EVEN * quality.n_draws
        if not (quality.is_trusted or is_even):
            return False
        error = math.hypot(overall.log_evidence_error, quality.log_evidence_error)
        lacks = overall.log_evidence - quality.log_evidence > max(LACKING, N_ERRORS * error)
        is_close = quality.log_evidence - quality.elbo <= GAP
        return is_close and quality.ess >= GOOD * quality.n_draws and not lacks

    @property
    def within(self) -> float:
        """Standard error of the log marginal, in nats, by the noise of weights of groups."""
        values = MarginalValues.joined([values for _, values in self.parts])
        direct = np.exp(self.log_weights) * values.is_direct
        errors = np.where(direct > 0, values.error, 0.0)
        return float(direct @ errors) / max(float(direct.sum()), 1e-300)

    @property
    def error(self) -> float:
        """Standard error of the log marginal, in nats, by weights of groups and predictions."""
        return math.hypot(self.within, self.missed)

    def judged(self) -> Quality:
        """Quality of the weights of all values.

        Errors of predictions make the weights vary more than is seen, which lowers the effective
        number. A mixture's weights are bounded by those of each part divided by its share, so their
        tail is no heavier than that of the best part: k-hat is the smallest of all rounds.
        """
        ess = self.overall.ess * math.exp(-(self.missed**2))
        return replace(self.overall, ess=ess, khat=min(self.overall.khat, self.khat))

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and covariance of the weighted values."""
        return moments(self.hyper, np.exp(self.log_weights))


def sample_hyper(
    marginal: Marginal,
    mode: HyperMode,
    options: FieldOptions,
    rng: np.random.Generator,
    progress: Progress,
) -> HyperValues:
    """Sample the marginal of the hyperparameters, and describe it by a Gaussian or a flow.

    The first values come from the profiles along the axes, the next from a Student-t distribution
    with the moments of the weighted values, then some from the Gaussian with these moments. Where
    the Gaussian is not good enough, a flow is fitted to the weighted values while it improves.

    Raises
    ------
    FitError
        If the marginal is finite at none of the values.
    """
    rounds = _Rounds(marginal, options, progress)
    loc, covariance = mode.gaussian.hyper, mode.covariance
    for i, most in enumerate(options.rounds):
        wide: Distribution
        if i == 0 and len(loc) <= MAX_AXES:
            wide = follow_axes(marginal.conditional, mode, progress)
        else:
            wide = Proposal(loc, math.sqrt(WIDENING) * lower_factor(covariance), DEGREES)
        rounds.take(wide, most, rng)
        if i == 0 and rounds.restart_finer(rng):
            rounds.take(wide, most, rng)
        if rounds.has_enough():
            loc, covariance = rounds.moments()
    best: Proposal | HyperFlow = Proposal(loc, lower_factor(covariance))
    flow: HyperFlow | None = None
    quality: Quality | None = None
    can_flow = options.flow_rounds and len(loc) and rounds.has_enough()
    if not can_flow or rounds.expects(best) >= GOOD:
        quality = rounds.take(best, options.values, rng)
    for _ in range(options.flow_rounds if can_flow else 0):
        if quality and rounds.agree(quality):
            break
        if flow is None:
            loc, covariance = rounds.moments()
            frame = Frame(loc, lower_factor(covariance))
            flow = HyperFlow.identity(Formula(options.formula), frame)
        flow = flow.fit(rounds.hyper, np.exp(rounds.log_weights), rounds.overall.ess)
        progress.tell("flow over the hyperparameters")
        found = rounds.take(flow, options.values, rng)
        if quality is None or found.elbo > quality.elbo:
            best, quality = flow, found
    if quality is None or not rounds.overall.ess:
        raise FitError(
            f"the marginal of the hyperparameters is finite at none of {len(rounds.hyper)} values\n"
            "Give other starting values."
        )
    rounds.fill(best, quality, rng)
    # Draws are in the order of the values: no part of them is from one distribution alone.
    order = rng.permutation(len(rounds.log_weights))
    return HyperValues(
        best,
        quality,
        rounds.hyper[order],
        rounds.log_weights[order],
        rounds.judged(),
        rounds.error,
    )
