"""Adaptive importance sampling of hyperparameters, and a flow over them.

Cappé, Guillin, Marin & Robert, Population Monte Carlo, JCGS 13(4), 2004. All values that were
evaluated count, as draws of the mixture of all distributions that they came from.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import numpy as np

from pymc_flows.errors import FitError
from pymc_flows.field.hyper.flow import HyperFlow
from pymc_flows.field.hyper.mode import HyperMode
from pymc_flows.field.hyper.profile import ProfileProposal, follow_axes
from pymc_flows.field.hyper.proposal import Proposal, lower_factor, mixture_log_prob, moments
from pymc_flows.field.marginal import Marginal, MarginalValues
from pymc_flows.field.options import FieldOptions, Progress
from pymc_flows.flows.frame import Frame
from pymc_flows.formula import Formula
from pymc_flows.importance import Quality, weigh

_log = logging.getLogger(__name__)

# A covariance needs so many effective values per hyperparameter.
ENOUGH = 5

# Share of effective draws with which k-hat does not matter.
EVEN = 0.9
# A distribution lacks mass if its log evidence is lower by more than this, in nats, and by more
# than so many standard errors.
LACKING, N_ERRORS = 0.02, 3.0

type Distribution = Proposal | ProfileProposal | HyperFlow


@dataclass(frozen=True, eq=False)
class HyperValues:
    """A distribution over hyperparameters, and weighted values of these.

    Attributes
    ----------
    flow : Proposal or HyperFlow
        q(g): a Gaussian or a flow.
    quality : Quality
        Of q(g), by weights of its draws against the marginal.
    hyper : ndarray, shape (n, n_hyper)
        Values at which the marginal was evaluated, of all rounds.
    log_weights : ndarray, shape (n,)
        Their weights: logs, normalised, Pareto-smoothed.
    overall : Quality
        Of these weights; its log evidence is that of the model.
    error : float
        Standard error, in nats, of the corrected marginal itself, by which the log evidence is off
        besides.
    """

    flow: Proposal | HyperFlow
    quality: Quality
    hyper: np.ndarray
    log_weights: np.ndarray
    overall: Quality
    error: float


class _Rounds:
    """Values of the hyperparameters, round by round."""

    def __init__(self, marginal: Marginal, options: FieldOptions, progress: Progress):
        self.marginal, self.options, self.progress = marginal, options, progress
        self.parts: list[tuple[Distribution, int]] = []
        self.values: list[MarginalValues] = []
        self.log_weights = np.empty(0)
        self.overall: Quality | None = None

    @property
    def hyper(self) -> np.ndarray:
        """All values so far (n, n_hyper)."""
        return np.concatenate([v.hyper for v in self.values])

    def take(self, proposal: Distribution, most: int, rng: np.random.Generator) -> Quality:
        """Evaluate the marginal at draws of a distribution, and judge it by their weights."""
        draws = proposal.draw(most, rng)
        stage = f"values of the hyperparameters, round {len(self.parts) + 1}"
        pilot = min(most, self.options.min_values)
        before = self.progress.seconds
        values = [self.marginal.evaluate(draws[:pilot], self.progress, stage)]
        each = (self.progress.seconds - before) / pilot
        n = int(np.clip(self.options.seconds_per_round / each, pilot, most))
        if n > pilot:
            values.append(self.marginal.evaluate(draws[pilot:n], self.progress, stage))
        self.values += values
        self.parts.append((proposal, n))
        log_p = np.concatenate([v.log_p for v in self.values])
        self.overall, self.log_weights = weigh(log_p - mixture_log_prob(self.parts, self.hyper))
        quality, _ = weigh(np.concatenate([v.log_p for v in values]) - proposal.log_prob(draws[:n]))
        return quality

    def has_enough(self) -> bool:
        """Whether there are enough effective values for a covariance."""
        overall = self.overall
        return overall is not None and overall.ess >= ENOUGH * max(1, self.hyper.shape[1])

    @property
    def ess(self) -> float:
        """Effective number of all values."""
        return 0.0 if self.overall is None else self.overall.ess

    def expects(self, proposal: Distribution) -> float:
        """Share of effective draws that a distribution would have, by the values so far.

        1 / E_p[p/q], from weighted values instead of draws of q.
        """
        overall = self.overall
        if overall is None or not np.isfinite(self.log_weights).any():
            return 0.0
        log_p = np.concatenate([v.log_p for v in self.values]) - overall.log_evidence
        ratio = self.log_weights + log_p - proposal.log_prob(self.hyper)
        top = ratio.max()
        return float(np.exp(-top) / np.exp(ratio - top).sum()) if np.isfinite(top) else 0.0

    def agree(self, quality: Quality) -> bool:
        """Whether a distribution's weights are even, and it lacks no mass that others found."""
        overall, options = self.overall, self.options
        # Of few and even weights, k-hat is noise.
        is_even = quality.ess >= EVEN * quality.n_draws
        if overall is None or not (quality.is_trusted or is_even):
            return False
        error = math.hypot(overall.log_evidence_error, quality.log_evidence_error)
        lacks = overall.log_evidence - quality.log_evidence > max(LACKING, N_ERRORS * error)
        is_close = quality.log_evidence - quality.elbo <= options.gap
        return is_close and quality.ess >= options.enough * quality.n_draws and not lacks

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

    Values with the profiles along the axes come first, then those of a Student-t distribution with
    the moments of the weighted values, and of the Gaussian with these. Where that one would not do,
    a flow is fitted to the weighted values instead, as long as it gets better.
    """
    rounds = _Rounds(marginal, options, progress)
    loc, covariance = mode.gaussian.hyper, mode.covariance
    follows = len(loc) <= options.max_axes
    for i, most in enumerate(options.rounds):
        wide: Distribution
        if i == 0 and follows:
            wide = follow_axes(marginal.conditional, mode, progress)
        else:
            lower = math.sqrt(options.widening) * lower_factor(covariance)
            wide = Proposal(loc, lower, options.degrees)
        rounds.take(wide, most, rng)
        if rounds.has_enough():
            loc, covariance = rounds.moments()
    best: Proposal | HyperFlow = Proposal(loc, lower_factor(covariance))
    flow: HyperFlow | None = None
    quality: Quality | None = None
    can_flow = options.flow_rounds and len(loc) and rounds.has_enough()
    if not can_flow or rounds.expects(best) >= options.enough:
        quality = rounds.take(best, options.values, rng)
    for _ in range(options.flow_rounds if can_flow else 0):
        if quality and rounds.agree(quality):
            break
        if flow is None:
            loc, covariance = rounds.moments()
            frame = Frame(loc, lower_factor(covariance))
            flow = HyperFlow.identity(Formula(options.formula), frame)
        flow = flow.fit(rounds.hyper, np.exp(rounds.log_weights), rounds.ess)
        progress.tell("flow over the hyperparameters")
        found = rounds.take(flow, options.values, rng)
        if quality is None or found.elbo > quality.elbo:
            best, quality = flow, found
    if rounds.overall is None or quality is None or not rounds.ess:
        raise FitError(
            "the marginal of the hyperparameters is not finite at any of "
            f"{len(rounds.hyper)} values\nGive other starting values."
        )
    weights = np.exp(rounds.log_weights)
    error = float(weights @ np.concatenate([v.error for v in rounds.values]))
    return HyperValues(best, quality, rounds.hyper, rounds.log_weights, rounds.overall, error)
