"""A distribution of the hyperparameters, and weighted values of them."""

from __future__ import annotations

import math

import numpy as np

from pymc_flows.errors import FitError
from pymc_flows.field.hyper.flow import HyperFlow
from pymc_flows.field.hyper.mode import MAX_AXES, HyperMode
from pymc_flows.field.hyper.profile import ProfileProposal, follow_axes
from pymc_flows.field.hyper.proposal import Proposal, lower_factor
from pymc_flows.field.hyper.rounds import MIN_VALUES, Distribution, Rounds
from pymc_flows.field.hyper.scaled import ScaledEffects, large_scale, least_known
from pymc_flows.field.hyper.values import HyperValues
from pymc_flows.field.marginal import Marginal
from pymc_flows.field.options import FieldOptions, Progress
from pymc_flows.flows.frame import Frame
from pymc_flows.formula import Formula
from pymc_flows.importance import Quality

# Longest that the last values may take, in seconds of a usual core, and longest for those far out.
SECONDS_TO_FILL, SECONDS_FAR_OUT = 8.0, 4.0
# Degrees of freedom of the Student-t distributions, and a factor of their covariances.
DEGREES, WIDENING = 8.0, 1.1
# A distribution is good enough with this share of effective values, and with no larger difference,
# in nats, between log evidence and ELBO.
GOOD, GAP = 0.7, 0.25
# Share of effective draws with which k-hat does not matter.
EVEN = 0.9
# A distribution lacks mass if its log evidence is too low by more than this, in nats, and by more
# than this many standard errors.
LACKING, N_ERRORS = 0.02, 3.0
# Besides n draws of a distribution, the last values are n / 8 draws of the profiles, and n / 8 each
# of profiles in which fixed effects, whose standard deviations grow with scales, are wider by these
# factors.
TAILS, STRETCHED = 8, (2.0, 5.0)
# Another n / 3 have effects whose spread follows the scales, and n / 3 a large scale: with n / 8,
# single values had a tenth of the variance of the mean of five groups, or of their scale. More of
# them follow, at most so many times, until standard errors of the standard deviations of effects
# and scales are below this share of these.
SCALED, AGAIN, SPREAD_ERROR = 3, 8, 0.03


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
    rounds = Rounds(marginal, mode.gaussian, options, progress)
    loc, covariance = mode.gaussian.hyper, mode.covariance
    for i, most in enumerate(options.rounds):
        wide: Distribution
        if i == 0 and len(loc) <= MAX_AXES:
            wide = follow_axes(marginal.conditional, mode, progress)
        else:
            wide = Proposal(loc, math.sqrt(WIDENING) * lower_factor(covariance), DEGREES)
        rounds.take(wide, most, rng)
        if rounds.has_enough():
            loc, covariance = rounds.moments()
    best: Proposal | HyperFlow = Proposal(loc, lower_factor(covariance))
    flow: HyperFlow | None = None
    quality: Quality | None = None
    can_flow = options.flow_rounds and len(loc) and rounds.has_enough()
    if not can_flow or _expects(rounds, best) >= GOOD:
        quality = rounds.take(best, options.values, rng)
    for _ in range(options.flow_rounds if can_flow else 0):
        if quality and _agree(rounds, quality):
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
    rounds = _filled(rounds, best, quality, rng)
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


def _expects(rounds: Rounds, proposal: Distribution) -> float:
    """Share of effective draws that a distribution q would have.

    It is 1 / E_p[p/q], estimated from the weighted values so far instead of draws of q.
    """
    if not np.isfinite(rounds.log_weights).any():
        return 0.0
    log_p = rounds.log_p - rounds.overall.log_evidence
    ratio = rounds.log_weights + log_p - proposal.log_prob(rounds.hyper)
    top = ratio.max()
    return float(np.exp(-top) / np.exp(ratio - top).sum()) if np.isfinite(top) else 0.0


def _agree(rounds: Rounds, quality: Quality) -> bool:
    """Whether the weights of a distribution are even, and it has the mass that others found."""
    overall = rounds.overall
    # The k-hat of few and even weights is noise.
    is_even = quality.ess >= EVEN * quality.n_draws
    if not (quality.is_trusted or is_even):
        return False
    error = math.hypot(overall.log_evidence_error, quality.log_evidence_error)
    lacks = overall.log_evidence - quality.log_evidence > max(LACKING, N_ERRORS * error)
    is_close = quality.log_evidence - quality.elbo <= GAP
    return is_close and quality.ess >= GOOD * quality.n_draws and not lacks


def _filled(
    rounds: Rounds, proposal: Proposal | HyperFlow, quality: Quality, rng: np.random.Generator
) -> Rounds:
    """Add draws of a distribution, until enough of all values are effective.

    Some draws come from the first distribution, the profiles, whose tails are long enough.
    """
    options, first = rounds.options, rounds.parts[0][0]
    if not quality.ess:
        return rounds
    n = (options.effective - rounds.overall.ess) * quality.n_draws / quality.ess
    if n < MIN_VALUES:
        return rounds
    allowed = SECONDS_TO_FILL / max(rounds.seconds_each, 1e-9)
    n = int(min(n, options.most_values, max(allowed, MIN_VALUES)))
    before, begin = rounds.copy(), rounds.progress.effort
    wanted: list[tuple[Distribution, int]] = [(proposal, n)]
    if isinstance(first, ProfileProposal) and n >= TAILS:
        effects = rounds.marginal.posterior.locations
        wanted.append((first, n // TAILS))
        for factor in STRETCHED if effects.any() else ():
            wanted.append((first.stretched(effects, factor), n // TAILS))
    rounds.take_all(wanted, rng, SECONDS_TO_FILL)
    if isinstance(first, ProfileProposal):
        _fill_tails(rounds, n // SCALED, rng, begin + SECONDS_TO_FILL)
    # Fewer values are left where predictions failed, and parts were dropped.
    return before if rounds.overall.ess < before.overall.ess else rounds


def _fill_tails(rounds: Rounds, n: int, rng: np.random.Generator, end: float) -> None:
    """Add draws, n at a time, where standard deviations of effects and scales come from.

    There are some for the effects and for the worst known scale, as errors are not seen without
    values in the tails; then more for the worst of all, until its error is small.
    """
    posterior = rounds.marginal.posterior
    effects, scales = posterior.locations & ~posterior.locations.all(), posterior.scales
    both = effects | scales
    kinds = [kind for kind in (effects, scales) if kind.any()]
    if not kinds or not n:
        return
    weights = np.exp(rounds.log_weights)
    worst = [least_known(rounds.hyper, weights, scales, kind)[0] for kind in kinds]
    rounds.take_all(
        [(_far_out(rounds, which, effects), n) for which in worst], rng, SECONDS_FAR_OUT
    )
    for _ in range(AGAIN):
        which, error = least_known(rounds.hyper, np.exp(rounds.log_weights), scales, both)
        if error <= SPREAD_ERROR or rounds.progress.effort > end:
            return
        rounds.take(_far_out(rounds, which, effects), n, rng, SECONDS_FAR_OUT)


def _far_out(rounds: Rounds, which: int, effects: np.ndarray) -> Distribution:
    """A distribution for the standard deviation of one effect or scale."""
    hyper, weights = rounds.hyper, np.exp(rounds.log_weights)
    if effects[which]:
        return ScaledEffects.fit(hyper, weights, effects)
    return large_scale(hyper, weights, which)
