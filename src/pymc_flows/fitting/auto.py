"""`formula='auto'`: richer and richer flows, until nothing is gained."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pymc as pm
from numpy.typing import ArrayLike

from pymc_flows.approximation import NormalizingFlow
from pymc_flows.backends.jax import has_jax
from pymc_flows.errors import ArgumentError, BackendError, FitError, ModelError
from pymc_flows.field.options import FieldOptions
from pymc_flows.fitting.candidates import (
    GAUSSIAN,
    ON_NUMBA,
    Candidate,
    climbed,
    closed_forms,
    counted,
    gaussian_of,
    is_large,
    learned_frame,
    plain_gaussian,
    richer,
    spread,
    units_at,
)
from pymc_flows.fitting.ladder import Ladder, Rung
from pymc_flows.fitting.nfvi import NFVI
from pymc_flows.fitting.restarts.single import SEARCH_SHARE
from pymc_flows.fitting.structured import field_of, fit_structured
from pymc_flows.fitting.tried import (
    FAR_BEHIND,
    GOOD_ENOUGH,
    LITTLE_GAINED,
    Tried,
    gains_little,
    is_behind,
    is_far,
    is_good,
)
from pymc_flows.flows.frame import Frame
from pymc_flows.model.dry_run import dry_run
from pymc_flows.model.examine import has_weights
from pymc_flows.model.streams import stream_of
from pymc_flows.start.options import MAX_DENSE
from pymc_flows.start.passes import share_for
from pymc_flows.start.search import seek_frame
from pymc_flows.start.weighted.moments import match_moments, match_significant
from pymc_flows.support.arguments import model_or_context
from pymc_flows.support.compat import default_progress_theme
from pymc_flows.support.deadline import Deadline
from pymc_flows.support.evaluations import Evaluations
from pymc_flows.support.interrupts import Interrupts
from pymc_flows.support.seeds import RandomState, integer_seed
from pymc_flows.training.config import FitConfig
from pymc_flows.training.progress import SearchProgress

_log = logging.getLogger(__name__)

# `GOOD_ENOUGH` for separate modes: all of the gap may be in their weights, and a mean is then off
# by no more than √0.01 standard deviations.
GOOD_ENOUGH_SPREAD = 0.005
# Effective values of the hyperparameters with which a field given them is good.
ENOUGH_VALUES = 100
# Share of the time that is left for a field given hyperparameters.
STRUCTURED_SHARE = 0.6
# Seconds that must be left for a flow with networks, which JAX compiles for as long.
COMPILING = 8.0
# Arguments that would do for one fit only, or change the log density, by which fits are judged.
_OF_ONE_FLOW = (
    "callbacks",
    "checkpoint",
    "more_obj_params",
    "more_updates",
    "more_replacements",
)


def climb(
    n: int,
    *,
    model: pm.Model | None = None,
    start: Mapping[str, ArrayLike] | Frame | None = None,
    random_seed: RandomState = None,
    inf_kwargs: Mapping[str, Any] | None = None,
    hyper: Sequence[str] = (),
    field: Sequence[str] = (),
    seconds: float | None = None,
    quality: str = "good",
    options: FieldOptions | None = None,
    **kwargs: Any,
) -> NormalizingFlow:
    """Fit a ladder of flows and return the best.

    For a model with a few hyperparameters and a field given them (`pymc_flows.structure`), a flow
    over the hyperparameters and a Gaussian field come first. If their weights can be trusted,
    nothing else is tried.

    Then follow distributions for which nothing is trained: the Gaussian of `find_frame`, with the
    moments of its weighted draws or, if weights cannot be trusted, improved by natural gradients of
    its ELBO; if its weights say that there is something to gain, Gaussian copulas with spline
    marginals, by quantiles of weighted draws, and mixtures of many Gaussians, which come first for
    separate modes. Unless ``quality='best'``, the search ends with the first whose draws, resampled
    by their weights, are good.

    Then flows are trained in the coordinates of the Gaussian: a Gaussian first, if neither weights
    nor natural gradients have led to one, then flows with more and more layers, each the identity
    at its start, while they gain. If trusted weights say that the posterior has separate modes or
    follows a curve, these are flows for that, with annealing. In more than 300 dimensions, with all
    rows in memory, the first Gaussian does without these coordinates, and training ends after 45
    seconds, unless ``seconds`` or ``quality='best'`` say otherwise.

    The fit with the best ELBO is taken, or a simpler one within the noise of the difference. A
    Ctrl-C or a fit that fails ends the search, and the best fit until then is returned.

    Parameters
    ----------
    n : int
        Steps of each fit.
    model, start, random_seed, inf_kwargs, hyper, field, seconds, quality, **kwargs
        As for `fit`.
    options : FieldOptions, optional
        Bounds of the fit of a field given hyperparameters.

    Returns
    -------
    NormalizingFlow
        Its attribute ``ladder`` is the table of what was tried.
    """
    model = model_or_context(model)
    _check_arguments(n, inf_kwargs or {}, kwargs)
    seeds = iter(np.random.SeedSequence(integer_seed(random_seed)).generate_state(64))
    theme = kwargs.get("progressbar_theme", default_progress_theme)
    with SearchProgress(theme, show=kwargs.get("progressbar", True)) as bar:
        tried = Tried(seeds, Deadline.after(seconds), bar, resamples=quality == "good")
        roles = {"hyper": hyper, "field": field}
        how = {"random_seed": random_seed, "options": options}
        if not isinstance(start, Frame) and _structured(tried, model, start, roles, how):
            return tried.best("")
        tried.start_rung()
        with Interrupts(deferred=False):
            approx = _gaussian(model, start, seeds, tried)
        frame = approx.flow.frame
        candidates, enough = [Candidate(GAUSSIAN), *richer(len(frame.center))], GOOD_ENOUGH
        if not isinstance(start, Frame) and frame.scale is None:
            tried.notes.append("The search for a start found nothing.")
        if not isinstance(start, Frame) and has_weights(approx.density):
            candidates, enough, approx = _cheap(tried, approx, seeds)
            frame = approx.flow.frame
            if candidates and len(frame.center) > MAX_DENSE and is_behind(tried.rungs):
                tried.notes.append(f"Left out: trained flows, since {FAR_BEHIND}.")
                return tried.best("")
            if candidates and is_large(approx):
                tried.limit_training()
        point = None if isinstance(start, Frame) else start
        trainer = _Trainer(tried, model, frame, point, inf_kwargs or {}, kwargs)
        return trainer.climb(_possible(candidates, approx, kwargs, tried), n, enough, seeds)


def _possible(
    candidates: Sequence[Candidate],
    approx: NormalizingFlow,
    kwargs: Mapping[str, Any],
    tried: Tried,
) -> list[Candidate]:
    """Candidates that the backend compiles within half a minute, or a substitute for them."""
    slow = [c for c in candidates if c.is_slow_on_numba]
    if not slow or _backend(approx, kwargs) != "numba":
        return list(candidates)
    tried.notes.append(
        f"{ON_NUMBA} stands for what numba would compile for a minute and more: "
        f"{', '.join(map(str, slow))}. With JAX installed these are tried."
    )
    return [*(c for c in candidates if c not in slow), Candidate(ON_NUMBA)]


def _backend(approx: NormalizingFlow, kwargs: Mapping[str, Any]) -> str:
    given: str | None = kwargs.get("backend")
    if given is not None:
        return given
    why_not = not has_jax() or dry_run(approx.density).why_not_jax(approx.flow.frame.center)
    return "numba" if why_not else "jax"


def _cheap(
    tried: Tried, gaussian: NormalizingFlow, seeds: Iterator[Any]
) -> tuple[list[Candidate], float, NormalizingFlow]:
    """Judge fits that need no compilation: Gaussians, then copulas and mixtures by their draws.

    Returns
    -------
    candidates : list of Candidate
        Those that remain to be tried.
    enough : float
        The gap, in nats, with which a fit leaves nothing to gain.
    gaussian : NormalizingFlow
        The better one.
    """
    tried.bar.say("Judging a Gaussian")
    with Interrupts(deferred=False):
        dim, has_climbed = gaussian.ddim, False
        quality = tried.judge(gaussian, 0)
        is_spread = dim > 1 and is_far(tried.rungs)
        enough = GOOD_ENOUGH_SPREAD if is_spread else GOOD_ENOUGH
        if is_good(tried.rungs, enough):
            return [], enough, gaussian
        if not quality.is_trusted and (better := climbed(gaussian, tried, seeds)) is not None:
            gaussian, has_climbed = better, True
            tried.judge(gaussian, 0)
            if is_good(tried.rungs, enough):
                return [], enough, gaussian
        # In many dimensions, many draws at all rows take longer than training by batches of rows.
        is_cheap = stream_of(gaussian.density) is None or dim <= MAX_DENSE
        has_time = is_cheap and not tried.deadline.has_passed
        if gaussian.flow.frame.scale is not None and has_time:
            for approx in closed_forms(gaussian, tried, seeds, is_spread=is_spread):
                tried.judge(approx, 0)
                if is_good(tried.rungs, enough):
                    return [], enough, gaussian
    if tried.is_enough(enough):
        return [], enough, gaussian
    if is_spread:
        return spread(), enough, gaussian
    is_known = has_climbed or any(
        r.quality is not None and r.quality.is_trusted for r in tried.rungs
    )
    first = plain_gaussian() if is_large(gaussian) else Candidate(GAUSSIAN)
    return [*([] if is_known else [first]), *richer(dim)], enough, gaussian


class _Trainer:
    """Fits candidates by gradient steps, in the coordinates of a Gaussian."""

    def __init__(
        self,
        tried: Tried,
        model: pm.Model,
        frame: Frame,
        start: Mapping[str, ArrayLike] | None,
        inf_kwargs: Mapping[str, Any],
        kwargs: Mapping[str, Any],
    ):
        self._tried, self._model, self._frame, self._start = tried, model, frame, start
        self._inf_kwargs, self._kwargs = inf_kwargs, kwargs

    def climb(
        self, candidates: Sequence[Candidate], n: int, enough: float, seeds: Iterator[Any]
    ) -> NormalizingFlow:
        """Fit candidates in turn until one is good enough; return the best."""
        tried, ended = self._tried, ""
        for i, candidate in enumerate(candidates):
            needed = COMPILING if candidate.is_slow_on_numba else 0.0
            if tried.deadline.left <= needed and tried.rungs:
                left = ", ".join(map(str, candidates[i:]))
                is_over = tried.deadline.has_passed
                why = "the time was over" if is_over else f"less than {needed:g} s were left"
                tried.notes.append(f"Left out, since {why}: {left}.")
                break
            approx, ended = self.fit(candidate, n, int(next(seeds)))
            if approx is not None and not has_weights(approx.density):
                return approx
            if ended or tried.is_enough(enough):
                break
            if candidates[i + 1 :] and gains_little(tried.rungs):
                left = ", ".join(map(str, candidates[i + 1 :]))
                tried.notes.append(f"Left out, since {LITTLE_GAINED}: {left}.")
                break
        return tried.best(ended)

    def fit(self, candidate: Candidate, n: int, seed: int) -> tuple[NormalizingFlow | None, str]:
        """Fit and judge a candidate; also return why nothing further is tried, or ''."""
        tried, approx, ended = self._tried, None, ""
        tried.start_rung()
        tried.bar.say(f"Training {candidate}")
        try:
            inference = NFVI(
                candidate.formula,
                model=self._model,
                start=units_at(self._start, self._model, seed)
                if candidate.is_plain
                else self._frame,
                random_seed=seed,
                **self._inf_kwargs,
            )
            own = candidate.arguments(self._kwargs, n, tried.evidence)
            outcome = tried.train(inference, FitConfig(n=n, **own))
            approx = inference.approx
            if not has_weights(approx.density):
                rung = Rung(approx.formula, None, tried.seconds, outcome.steps, tried.counts)
                approx.ladder = Ladder((rung,), 0, tuple(tried.notes))
                outcome.tell(stacklevel=4)
                return approx, ""
            replace(outcome, interrupted="", warnings=()).tell(stacklevel=4)
            ended = outcome.interrupted
            tried.judge(approx, outcome.steps, outcome.warnings)
        except (KeyboardInterrupt, ArithmeticError, BackendError, MemoryError) as error:
            if not _is_left(tried.rungs, error):
                raise
            is_interrupt = isinstance(error, KeyboardInterrupt)
            why = "interrupted" if is_interrupt else f"{type(error).__name__}: {error}"
            return approx, ended or f"Fitting {str(candidate)!r} was not finished ({why})"
        if candidate.formula == GAUSSIAN and tried.last_is_best_of_its_kind:
            self._frame = learned_frame(approx)
        return approx, ended


def _structured(
    tried: Tried,
    model: pm.Model,
    start: Mapping[str, ArrayLike] | None,
    roles: Mapping[str, Sequence[str]],
    how: Mapping[str, Any],
) -> bool:
    """Try a field given hyperparameters; return whether it is good."""
    tried.bar.say("Reading the structure of the model")
    found = field_of(model, start=start, **roles)
    if found is None:
        return False
    limit = tried.deadline.share(STRUCTURED_SHARE)

    def report(stage: str, evaluations: Evaluations, _: float) -> None:
        tried.counts = evaluations.copy()
        tried.bar.say(f"Field given hyperparameters: {stage}")
        if limit.has_passed:
            raise _OutOfTimeError(f"no time was left after {stage!r}")

    try:
        with Interrupts(deferred=False):
            approx = fit_structured(model=model, start=start, found=found, report=report, **how)
            quality = tried.judge_structured(approx)
    except _OutOfTimeError as error:
        tried.notes.append(f"Left out: a field given hyperparameters; {error}.")
        return False
    except (FitError, ModelError, ArithmeticError, MemoryError, np.linalg.LinAlgError) as error:
        _log.warning("A field given hyperparameters could not be fitted: %s", error)
        return False
    return quality.is_trusted and quality.ess >= ENOUGH_VALUES


class _OutOfTimeError(Exception):
    """Ends a part of the search whose share of the time is over."""


def _check_arguments(n: int, inf_kwargs: Mapping[str, Any], kwargs: Mapping[str, Any]) -> None:
    """Refuse what `NFVI` and its `fit` would refuse, even if no rung needs them."""
    for name in _OF_ONE_FLOW:
        if kwargs.get(name):
            raise ArgumentError(f"formula='auto' fits several flows: {name}= needs one formula")
    inspect.signature(NFVI).bind(GAUSSIAN, **inf_kwargs)
    FitConfig(n=n, **kwargs)


def _gaussian(
    model: pm.Model,
    start: Mapping[str, ArrayLike] | Frame | None,
    seeds: Iterator[Any],
    tried: Tried,
) -> NormalizingFlow:
    """The Gaussian of a frame that is given, or found in half of the time."""

    def of(frame: Frame) -> NormalizingFlow:
        return gaussian_of(model, frame, int(next(seeds)))

    if isinstance(start, Frame):
        return of(start)
    tried.bar.say("Searching for modes")
    found = seek_frame(
        model,
        start=start,
        random_seed=int(next(seeds)),
        evaluations=tried.counts,
        deadline=tried.deadline.share(SEARCH_SHARE),
    )
    approx = of(found)
    has_gaussian = found.scale is not None and has_weights(approx.density)
    has_rows = stream_of(approx.density) is not None
    if not has_gaussian or tried.deadline.has_passed or (has_rows and approx.ddim > MAX_DENSE):
        return approx
    rng = np.random.default_rng(int(next(seeds)))
    tried.bar.say("Matching the moments of weighted draws")
    share, log_density = share_for(approx.density), counted(approx, tried)
    if not has_rows or share == 1:
        return of(match_moments(log_density, found, rng, share=share))
    # Draws are cheap here: see `counted`.
    return of(match_significant(log_density, match_moments(log_density, found, rng), rng))


def _is_left(rungs: Sequence[Rung], error: BaseException) -> bool:
    """Whether the ladder ends with a result instead of this error.

    A backend that is refused before anything has been trained is a wrong argument: an error.
    """
    return any(rung.steps for rung in rungs) if isinstance(error, BackendError) else bool(rungs)
