"""Fit of a posterior by a distribution over hyperparameters and a Gaussian field given them."""

from __future__ import annotations

import logging
import math

import numpy as np

from pymc_flows.field.conditional.judge import GroupQuality, judge
from pymc_flows.field.conditional.mapping import ConditionalField, Surface
from pymc_flows.field.conditional.newton import FieldModes
from pymc_flows.field.conditional.noise import NormalNoise, quadrature
from pymc_flows.field.conditional.skew import Skew
from pymc_flows.field.conditional.tails import want_wider
from pymc_flows.field.conditional.weights import GroupWeights
from pymc_flows.field.factors import factoring
from pymc_flows.field.hyper.mode import HyperMode, find_mode
from pymc_flows.field.hyper.sample import sample_hyper
from pymc_flows.field.hyper.values import HyperValues
from pymc_flows.field.marginal import Marginal
from pymc_flows.field.options import FieldOptions, Progress, Report
from pymc_flows.field.posterior import Posterior
from pymc_flows.field.result import FieldApproximation
from pymc_flows.importance import systematic

_log = logging.getLogger(__name__)

# First number of draws behind the weights of groups. With a separator, draws of it, and the factor
# by which each of these has fewer draws of the groups.
GROUP_DRAWS, SEPARATOR_DRAWS, SHARED = 64, 8, 4
# A separator is skewed where the variance of its log weights is above this, in nats². Most draws
# by which that is done; fewer where they would take more than so many seconds of a usual core.
UNEVEN, SKEW_DRAWS, SKEW_EACH, SKEW_SECONDS = 0.1, 1_024, 64, 4.0
# Shares of the skew that are tried, by so many draws of the separator, fewest and most, with so
# many of the groups, and within the same time.
SHARES, FEWEST_TRIED, MOST_TRIED, TRIED_INNER = (0.0, 0.5, 1.0), 16, 64, 8
# Values of the hyperparameters at which groups are judged.
JUDGED = 4
# Groups that cannot be trusted are judged again with this many times as many draws.
MORE = 8


def fit_field(
    posterior: Posterior,
    *,
    start: np.ndarray | None = None,
    options: FieldOptions | None = None,
    random_seed: int | None = None,
    report: Report | None = None,
) -> FieldApproximation:
    """Fit a flow over the hyperparameters, and the Gaussian field given them.

    It is the method of Rue, Martino & Chopin (Approximate Bayesian inference for latent Gaussian
    models by using integrated nested Laplace approximations, JRSS B 71(2), 2009), with importance
    sampling in place of a grid.

    Parameters
    ----------
    posterior : Posterior
    start : ndarray, shape (dim,), optional
        Point of the unconstrained space to begin at; by default the start of the posterior.
    options : FieldOptions, optional
    random_seed : int, optional
    report : callable, optional
        Called with stage, evaluations and CPU seconds after each unit of work.

    Returns
    -------
    FieldApproximation

    Raises
    ------
    FitError
        If the field has no mode at the start, or the marginal no finite values.
    """
    options = options or FieldOptions()
    rng = np.random.default_rng(random_seed)
    progress = Progress(posterior.evaluations, posterior.sizes, posterior.factor_products, report)
    start = posterior.start if start is None else np.asarray(start, dtype=float)
    conditional = _conditional(posterior, start, options, rng)
    mode = find_mode(conditional, start[posterior.hyper], start[posterior.field], progress)
    marginal = _marginal(conditional, mode, rng, progress)
    values = sample_hyper(marginal, mode, options, rng, progress)
    return FieldApproximation(
        marginal=marginal,
        mode=mode,
        values=values,
        groups=_groups(marginal, values, options, rng, progress),
        evaluations=posterior.evaluations.copy(),
        history=tuple(progress.history),
    )


def _conditional(
    posterior: Posterior, start: np.ndarray, options: FieldOptions, rng: np.random.Generator
) -> ConditionalField:
    """The Gaussian over the field, whose mode is sought from the start: none is predicted yet."""
    groups = posterior.groups
    modes = FieldModes(posterior, factoring(posterior.pattern, groups, posterior.rows))
    points = quadrature(groups, options.quadrature_pairs, rng)
    return ConditionalField(modes, Surface(start[posterior.hyper], start[posterior.field]), points)


def _marginal(
    conditional: ConditionalField,
    mode: HyperMode,
    rng: np.random.Generator,
    progress: Progress,
) -> Marginal:
    """The corrected marginal, with modes and means that are predicted around the mode."""
    groups = conditional.posterior.groups
    around = ConditionalField(
        conditional.modes,
        mode.surface,
        conditional.points,
        is_far=conditional.is_far,
        shift=mode.shift,
    )
    n_outer, n_inner = 1, GROUP_DRAWS
    if (groups < 0).any():
        n_outer, n_inner = SEPARATOR_DRAWS, GROUP_DRAWS // SHARED
    noise = NormalNoise.make(groups, n_outer * n_inner, rng)
    marginal = Marginal(around, noise, n_outer=n_outer, is_gaussian=False)
    weights = marginal.weigh(mode.gaussian)
    progress.tell("weights of groups")
    marginal.is_gaussian = weights.is_even
    if not weights.is_even:
        marginal.wide = want_wider(weights.ess, n_inner, groups)
        if n_outer > 1:
            marginal.skew = _skew(marginal, mode, rng, progress)
    around.corrects = not marginal.is_gaussian
    _log.info(
        "Field of %d given %d hyperparameters: %s.",
        len(groups),
        len(mode.gaussian.hyper),
        "Gaussian"
        if marginal.is_gaussian
        else f"not Gaussian, smallest ESS {weights.ess.min():.0f}",
    )
    return marginal


def _skew(
    marginal: Marginal,
    mode: HyperMode,
    rng: np.random.Generator,
    progress: Progress,
) -> Skew | None:
    """Tell the skewness of the separator at the mode, if weights are uneven."""
    posterior, gaussian = marginal.posterior, mode.gaussian
    weights = marginal.weigh(gaussian)
    progress.tell("weights of groups")
    finite = np.isfinite(weights.outer).all()
    if not finite or weights.outer.var(ddof=1) - weights.variances()[0] < UNEVEN:
        return None
    separator = posterior.groups < 0
    noise = NormalNoise.make(posterior.groups, SKEW_DRAWS, rng)
    found: list[tuple[np.ndarray, np.ndarray]] = []
    begin = progress.effort
    while len(found) < SKEW_DRAWS // SKEW_EACH and progress.effort - begin < SKEW_SECONDS:
        white = noise.rows(len(found) * SKEW_EACH, (len(found) + 1) * SKEW_EACH)
        points = posterior.join(gaussian.hyper, gaussian.place(white))
        gradients = posterior.value_and_grad(points)[1][:, posterior.field]
        scores = gaussian.factor.whiten(gaussian.factor.solve(gradients))
        found.append((white[:, separator], scores[:, separator]))
        progress.tell("skewness")
    each = (progress.effort - begin) / (len(found) * SKEW_EACH)
    allowed = SKEW_SECONDS / (each * TRIED_INNER * len(SHARES))
    n = 2 ** int(math.log2(np.clip(allowed, 1, MOST_TRIED)))
    whole = Skew.fit(*(np.concatenate(parts) for parts in zip(*found, strict=True)))
    if whole is None or n < FEWEST_TRIED:
        return None
    noise, variances = NormalNoise.make(posterior.groups, n * TRIED_INNER, rng), []
    for share in SHARES:
        marginal.skew = whole.times(share)
        outer = marginal.weigh_others(gaussian, noise, n_outer=n).outer
        variances.append(outer.var(ddof=1) if np.isfinite(outer).all() else np.inf)
        progress.tell("skewness")
    best = SHARES[int(np.argmin(variances))]
    _log.info(
        "Log weights of the separator have a variance of %.2g, skewed %.2g.",
        variances[0],
        min(variances),
    )
    return whole.times(best) if best else None


def _groups(
    marginal: Marginal,
    values: HyperValues,
    options: FieldOptions,
    rng: np.random.Generator,
    progress: Progress,
) -> GroupQuality:
    """Judge groups at values of the hyperparameters that are drawn by their weights."""
    posterior = marginal.posterior
    if marginal.is_gaussian:
        n = options.judge_draws
        return GroupQuality(
            n, np.full(posterior.n_groups, float(n)), np.full(posterior.n_groups, -np.inf)
        )
    hyper = values.hyper[systematic(np.exp(values.log_weights), JUDGED, rng)]
    before = progress.effort
    found = judge(_weights_of_groups(marginal, hyper, options.judge_draws, rng, progress))
    seconds = MORE * (progress.effort - before)
    if not found.is_trusted and seconds <= options.judge_seconds:
        # With few draws k-hat is noisy, and some of 1,000 good groups seem bad.
        n_draws = MORE * options.judge_draws
        found = judge(_weights_of_groups(marginal, hyper, n_draws, rng, progress))
    return found


def _weights_of_groups(
    marginal: Marginal,
    hyper: np.ndarray,
    n_draws: int,
    rng: np.random.Generator,
    progress: Progress,
) -> list[GroupWeights]:
    """Weights of groups at values of the hyperparameters."""
    posterior = marginal.posterior
    noise, found = NormalNoise.make(posterior.groups, n_draws, rng), []
    for _, gaussian in marginal.gaussians(hyper):
        if gaussian is not None:
            found.append(marginal.weigh_others(gaussian, noise))
            progress.tell("groups")
    return found
