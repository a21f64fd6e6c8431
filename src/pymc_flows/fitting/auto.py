"""`formula='auto'`: richer and richer flows, until nothing is gained."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pymc as pm
from numpy.typing import ArrayLike

from pymc_flows.approximation import NormalizingFlow
from pymc_flows.diagnostics.quality import Quality, measure
from pymc_flows.errors import ArgumentError, BackendError, FitError, ModelError
from pymc_flows.field.state import FieldState
from pymc_flows.fitting.candidates import GAUSSIAN, Candidate, richer, spread
from pymc_flows.fitting.ladder import Ladder, Rung
from pymc_flows.fitting.nfvi import NFVI
from pymc_flows.fitting.structured import fit_structured
from pymc_flows.flows.evaluate import forward_and_log_det
from pymc_flows.flows.frame import Frame
from pymc_flows.formula import Formula
from pymc_flows.importance import LACKING, known_evidence
from pymc_flows.model.examine import check_has_weights
from pymc_flows.model.log_density import LogDensity
from pymc_flows.model.logp import density_of, model_or_context
from pymc_flows.model.structure import structure
from pymc_flows.start.moments import match_moments
from pymc_flows.start.search import find_frame
from pymc_flows.support.interrupts import Interrupts
from pymc_flows.support.seeds import RandomState, integer_seed
from pymc_flows.training.config import FitConfig

_log = logging.getLogger(__name__)

# Draws that judge a fit.
JUDGED_BY = 4_000
# A fit this near to the evidence (nats), with weights that can be trusted, leaves nothing to gain.
# In no direction a mean is then off by more than √0.04 standard deviations. The rest costs more
# rungs than it is worth: on eight schools half a minute for 0.002 nats.
GOOD_ENOUGH = 0.02
# A Gaussian with weights that can be trusted and this much less than the evidence (nats) lies over
# modes that are apart, or over a curve.
SPREAD = 1.0
# Effective values of the hyperparameters with which a field given them is good.
ENOUGH_VALUES = 100
# What is left may then all be in the weights of the modes: a mean is off by no more than √0.01
# standard deviations.
GOOD_ENOUGH_SPREAD = 0.005


def climb(
    n: int,
    *,
    model: pm.Model | None = None,
    start: Mapping[str, ArrayLike] | Frame | None = None,
    random_seed: RandomState = None,
    inf_kwargs: Mapping[str, Any] | None = None,
    hyper: Sequence[str] = (),
    field: Sequence[str] = (),
    **kwargs: Any,
) -> NormalizingFlow:
    """Fit a ladder of flows and return the best.

    Of a model with a few hyperparameters and a field given them (`pymc_flows.structure`), a flow
    over these and a Gaussian over the field come first; if their weights can be trusted, nothing
    else is tried. Otherwise a Gaussian comes first that nothing is trained for: that of
    `find_frame`, with the moments of its weighted draws. If its importance weights say that there
    is something to gain, flows follow, in its coordinates; the first of them a Gaussian again, if
    the weights cannot be trusted, and then others with more layers, each the identity at its start.
    Where weights that can be trusted say that the posterior has modes that are apart, or follows a
    curve, these are flows for that, with annealing. The one with the best ELBO is taken, the
    simpler one where the difference is within the noise. A Ctrl-C, or a fit that fails, ends the
    search for a better one: what was fitted until then is not lost.

    Parameters
    ----------
    n : int
        Steps of each fit.
    model, start, random_seed, inf_kwargs, hyper, field, **kwargs
        As for `fit`.

    Returns
    -------
    NormalizingFlow
        Its attribute ``ladder`` is the table of what was tried.
    """
    model = model_or_context(model)
    _check_arguments(n, inf_kwargs or {}, kwargs)
    seeds = iter(np.random.SeedSequence(integer_seed(random_seed)).generate_state(16))
    tried = _Tried(seeds)
    roles = {"hyper": hyper, "field": field}
    if not isinstance(start, Frame) and _structured(tried, model, start, roles, random_seed):
        return tried.best("")
    tried.begin = time.perf_counter()
    with Interrupts(deferred=False):
        approx = _gaussian(model, start, seeds)
    frame, is_found = approx.flow.frame, not isinstance(start, Frame)
    dim, enough = len(frame.center), GOOD_ENOUGH
    candidates = [Candidate(GAUSSIAN), *richer(dim)]
    if is_found and not approx.density.is_random:
        quality = tried.judge(approx, 0)
        if quality.is_trusted:
            is_spread = _gap(tried.rungs) > SPREAD and dim > 1
            candidates = spread() if is_spread else richer(dim)
            enough = GOOD_ENOUGH_SPREAD if is_spread else GOOD_ENOUGH
            if _is_good(tried.rungs, enough):
                candidates = []
    ended = ""
    for candidate in candidates:
        tried.begin = time.perf_counter()
        seed = int(next(seeds))
        name = str(Formula(candidate.formula))
        try:
            inference = NFVI(
                candidate.formula, model=model, start=frame, random_seed=seed, **(inf_kwargs or {})
            )
            config = FitConfig(n=n, **candidate.arguments(kwargs))
            outcome, approx = inference.train(config), inference.approx
            if approx.density.is_random:
                rung = Rung(approx.formula, None, tried.seconds, outcome.steps)
                approx.ladder = Ladder((rung,), 0)
                outcome.tell(stacklevel=3)
                return approx
            replace(outcome, interrupted="", warnings=()).tell(stacklevel=3)
            ended = outcome.interrupted
            tried.judge(approx, outcome.steps, outcome.warnings)
        except (KeyboardInterrupt, ArithmeticError, BackendError, MemoryError) as error:
            if not _is_left(tried.rungs, error):
                raise
            is_interrupt = isinstance(error, KeyboardInterrupt)
            why = "interrupted" if is_interrupt else f"{type(error).__name__}: {error}"
            ended = ended or f"Fitting {name!r} was not finished ({why})"
        if ended or _is_good(tried.rungs, enough):
            break
        if candidate.formula == GAUSSIAN:
            frame = _learned(approx, frame)
    return tried.best(ended)


def _structured(
    tried: _Tried,
    model: pm.Model,
    start: Mapping[str, ArrayLike] | None,
    roles: Mapping[str, Sequence[str]],
    random_seed: RandomState,
) -> bool:
    """Try a field given hyperparameters; return whether it is good."""
    try:
        check_has_weights(density_of(model))
    except ModelError:  # it is random
        return False
    try:
        found = structure(model, **roles)
    except ArgumentError:
        raise
    except Exception as error:  # a graph of any kind; there are other ways to go on
        _log.warning("The structure of the model could not be read: %s", error)
        return False
    if found.why_not is not None:
        _log.info("No field given hyperparameters: %s", found.why_not)
        return False
    try:
        with Interrupts(deferred=False):
            approx = fit_structured(model=model, start=start, found=found, random_seed=random_seed)
            quality = tried.judge_structured(approx)
    except (FitError, ArithmeticError, MemoryError, np.linalg.LinAlgError) as error:
        _log.warning("A field given hyperparameters could not be fitted: %s", error)
        return False
    return quality.is_trusted and quality.ess >= ENOUGH_VALUES


class _Tried:
    """What a search has fitted so far.

    Parameters
    ----------
    seeds : iterator of int
        Of the draws that judge.

    Attributes
    ----------
    rungs : list of Rung
    begin : float
        When the running one began.
    """

    def __init__(self, seeds: Iterator[Any]):
        self.rungs: list[Rung] = []
        self.begin = time.perf_counter()
        self._fitted: list[tuple[NormalizingFlow, Sequence[str]]] = []
        self._seeds = seeds

    @property
    def seconds(self) -> float:
        """Wall time of the running rung so far."""
        return time.perf_counter() - self.begin

    def judge(self, approx: NormalizingFlow, steps: int, warnings: Sequence[str] = ()) -> Quality:
        """Measure a fit with these convergence warnings."""
        with Interrupts(deferred=False):
            quality = measure(approx, JUDGED_BY, random_seed=int(next(self._seeds)))
        return self._add(approx, quality, steps, warnings)

    def judge_structured(self, approx: NormalizingFlow) -> Quality:
        """Take what the weights of a field given hyperparameters say."""
        assert isinstance(approx.q, FieldState)
        return self._add(approx, approx.q.quality, 0, ())

    def _add(
        self, approx: NormalizingFlow, quality: Quality, steps: int, warnings: Sequence[str]
    ) -> Quality:
        self._fitted.append((approx, warnings))
        self.rungs.append(Rung(approx.formula, quality, self.seconds, steps))
        _log.info("%s: ELBO %.5g, k-hat %.2f", approx.formula, quality.elbo, quality.khat)
        return quality

    def best(self, ended: str) -> NormalizingFlow:
        """Take the best, and say what speaks against it and why the search ended early, if so."""
        qualities = [rung.quality for rung in self.rungs if rung.quality is not None]
        taken = _best(qualities)
        (best, warnings), quality = self._fitted[taken], qualities[taken]
        best.ladder = Ladder(tuple(self.rungs), taken)
        _log.info("Tried:\n%s", best.ladder)
        if (lacking := best.ladder.lacking(quality)) > LACKING:
            _log.warning(
                "%s lacks %.0f %% or more of the evidence that another formula knew of: perhaps a"
                " mode is missing.\n"
                "Try anneal=0.5, or draws of MCMC as the reference of pymc_flows.report.",
                best.formula,
                100 * lacking,
            )
        if ended:
            _log.warning(
                "%s: nothing further is tried. Taken is %r, the best so far; it can be used as it "
                "is.",
                ended,
                str(best.formula),
            )
        for text in warnings:
            _log.warning("%s", text)
        if not quality.is_trusted:
            _log.warning(
                "The best of %d flows has k-hat %.2f: look at pymc_flows.report(approx) before you "
                "use it, and try more steps or a formula of your own.",
                len(self.rungs),
                quality.khat,
            )
        return best


def _check_arguments(n: int, inf_kwargs: Mapping[str, Any], kwargs: Mapping[str, Any]) -> None:
    """Refuse what `NFVI` and its `fit` would refuse, also where no rung needs it.

    Names of the arguments of `NFVI.fit` have been checked by `pymc_flows.fit`.
    """
    inspect.signature(NFVI).bind(GAUSSIAN, **inf_kwargs)
    checked = ("obj_optimizer", "schedule", "obj_n_mc")
    FitConfig(n=n, **{name: kwargs[name] for name in checked if name in kwargs})


def _gaussian(
    model: pm.Model, start: Mapping[str, ArrayLike] | Frame | None, seeds: Iterator[Any]
) -> NormalizingFlow:
    """The Gaussian of a frame: the one given, or one that is found."""

    def of(frame: Frame) -> NormalizingFlow:
        return NormalizingFlow(
            GAUSSIAN, model=model, start=frame, jitter=0.0, random_seed=int(next(seeds))
        )

    if isinstance(start, Frame):
        return of(start)
    approx = of(find_frame(model, start=start, random_seed=int(next(seeds))))
    if approx.density.is_random:
        return approx
    rng = np.random.default_rng(int(next(seeds)))
    return of(match_moments(LogDensity(approx.density).value, approx.flow.frame, rng))


def _gap(rungs: Sequence[Rung]) -> float:
    """How much less than the evidence the last ELBO is, in nats.

    The evidence is the largest that trusted weights of any rung tell: a flow that lacks mass does
    not know of it.
    """
    found = [rung.quality for rung in rungs if rung.quality is not None]
    last = found[-1]
    return max(last.log_evidence, known_evidence(found)) - last.elbo


def _is_good(rungs: Sequence[Rung], enough: float) -> bool:
    """Whether the last leaves nothing to gain."""
    quality = rungs[-1].quality
    return quality is not None and quality.is_trusted and _gap(rungs) < enough


def _best(qualities: Sequence[Quality]) -> int:
    """The first whose ELBO no later one exceeds by more than the noise of their difference.

    Of two that are as good, one whose weights can be trusted.
    """
    best = 0
    for i, quality in enumerate(qualities):
        other = qualities[best]
        # Of an ELBO that is all noise, the error must not hide a gain.
        noise = 2 * np.hypot(quality.elbo_error, min(other.elbo_error, quality.elbo_error))
        is_better = not np.isfinite(other.elbo) or quality.elbo > other.elbo + noise
        is_as_good = quality.elbo > other.elbo - noise
        if is_better or (is_as_good and quality.is_trusted and not other.is_trusted):
            best = i
    return best


def _is_left(rungs: Sequence[Rung], error: BaseException) -> bool:
    """Whether something is worth more than the error that ends the ladder.

    A backend that is refused before anything has been trained is an argument to be corrected.
    """
    return any(rung.steps for rung in rungs) if isinstance(error, BackendError) else bool(rungs)


def _learned(approx: NormalizingFlow, frame: Frame) -> Frame:
    """The coordinates of ``frame`` after a fitted ``scale-loc``."""
    ends = np.stack([np.zeros(approx.ddim), np.ones(approx.ddim)])
    (loc, stop), _ = forward_and_log_det(approx.chain, ends, approx.flow.values())
    scale = stop - loc
    if frame.scale is None:
        return Frame(frame.center + loc, scale)
    return Frame(frame.forward(loc), frame.scale * scale)
