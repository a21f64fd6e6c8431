"""`fit(restarts=)`: several fits of one posterior, on any workers, and their comparison."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pymc as pm
from numpy.typing import ArrayLike

from pymc_flows.approximation import MixtureState, NormalizingFlow, contents
from pymc_flows.diagnostics.quality import measure
from pymc_flows.errors import ArgumentError
from pymc_flows.fitting.restarts.batch import fit_together
from pymc_flows.fitting.restarts.disagreement import LIMIT, disagreement, worst
from pymc_flows.fitting.restarts.gaussians import Gaussians
from pymc_flows.fitting.restarts.legs import Fits, Fitted, fit_one
from pymc_flows.fitting.restarts.race import race
from pymc_flows.fitting.restarts.record import Mode, Restart, Restarts
from pymc_flows.fitting.restarts.starts import Begin, begins
from pymc_flows.fitting.restarts.weighing import Weighing
from pymc_flows.fitting.resume import restored
from pymc_flows.fitting.tried import JUDGED_BY, best_of
from pymc_flows.flows.frame import Frame
from pymc_flows.flows.state import FlowState
from pymc_flows.formula import Formula
from pymc_flows.importance import N_ERRORS, Quality
from pymc_flows.model.log_density import LogDensity
from pymc_flows.model.logp import density_of
from pymc_flows.support.arguments import check_integer
from pymc_flows.support.seeds import RandomState, integer_seed
from pymc_flows.workers import Failed, Finished, Tally, Workers, run_tasks

_log = logging.getLogger(__name__)

type Combine = Literal["mixture", "best"] | None

# Draws of all restarts together that are evaluated under each, and the least number from each one.
DRAWS_TOGETHER, FEWEST_DRAWS = 16_000, 500
# A mixture is taken by default if its ELBO is larger by this many nats, and by more than noise.
WORTH_IT = 0.02
# Losses that judge a fit whose log density is random.
LAST_LOSSES = 1_000
# Number of variables that a warning names.
NAMED = 3


def fit_restarts(
    fit: Callable[..., NormalizingFlow],
    n: int,
    *,
    model: pm.Model,
    restarts: int,
    workers: Workers,
    combine: Combine = None,
    batched: bool = False,
    is_race: bool = False,
    formula: Formula | None = None,
    start: Mapping[str, ArrayLike] | Frame | None = None,
    random_seed: RandomState = None,
    arguments: Mapping[str, Any],
) -> NormalizingFlow:
    """Fit several times, compare, and return the best fit or the mixture of all.

    Arguments are those of ``fit``, which is `pymc_flows.fit`; ``arguments`` are its further ones.
    The formula is None for ``'auto'``.
    """
    restarts = check_integer("restarts", restarts)
    if combine not in (None, "mixture", "best"):
        raise ArgumentError(f"combine must be 'mixture', 'best' or None, got {combine!r}")
    for name in ("callbacks", "checkpoint", "more_replacements"):
        if arguments.get(name):
            raise ArgumentError(f"restarts= fits several flows: {name}= is for one")
    if is_race:
        _check_race(formula, arguments, batched=batched)
    # Seeds depend on one number and the index of a restart, not on the process that runs it.
    sequence = np.random.SeedSequence(integer_seed(random_seed))
    search_seed, judge_seed, match_seed = (int(s) for s in sequence.generate_state(3))
    seeds = [int(s.generate_state(1)[0]) for s in sequence.spawn(restarts)]
    places = begins(model, formula, start, restarts, search_seed, arguments)
    if formula is None:
        gaussians = Gaussians.at(model, places, match_seed)
        if gaussians is not None and gaussians.are_good:
            return _of_gaussians(gaussians, model, seeds, judge_seed).result(combine)
        if gaussians is not None:
            places[: len(gaussians.places)] = gaussians.places
    tasks = [(seed, place.start) for seed, place in zip(seeds, places, strict=True)]
    given = {**arguments, "progressbar": False}
    names, ended = [f"restart {i}" for i in range(restarts)], dict[int, int]()
    fits = None if formula is None else Fits(n, model, formula, given)
    tally = fit_together(fits, tasks, show=workers.progressbar) if batched else None
    if is_race and fits is not None:
        tally, ended = race(fits, tasks, workers, names)
    if tally is None:
        shared = (fit, n, {**given, "model": model, "formula": formula})
        tally = run_tasks(fit_one, shared, tasks, workers, names)
    return _Together(tally, model, seeds, places, judge_seed, ended).result(combine)


def _check_race(formula: Formula | None, arguments: Mapping[str, Any], *, batched: bool) -> None:
    """Refuse arguments with which losses cannot be compared step by step."""
    if formula is None or formula.conditional is not None:
        raise ArgumentError(
            "race= compares fits step by step: give a formula that is trained step by step"
        )
    names = [name for name in ("stop", "seconds") if arguments.get(name)]
    names += ["score"] if arguments.get("score") not in (None, True) else []
    names += ["batched"] if batched else []
    if names:
        raise ArgumentError(f"race= cannot be used with {', '.join(f'{x}=' for x in names)}")


def _of_gaussians(
    gaussians: Gaussians, model: pm.Model, seeds: Sequence[int], judge_seed: int
) -> _Together:
    """Gaussians at modes as finished restarts, without training."""
    fits = gaussians.fits(model, seeds)
    tally = Tally([Finished(Fitted(contents(fit), 0.0)) for fit in fits])
    together = _Together(tally, model, seeds[: len(fits)], gaussians.places, judge_seed)
    if len(fits) < len(seeds):
        together.note(
            f"The Gaussians at the modes are enough: {len(seeds) - len(fits)} further restarts "
            "were left out."
        )
    return together


class _Together:
    """Finished restarts, compared with each other."""

    def __init__(
        self,
        tally: Tally,
        model: pm.Model,
        seeds: Sequence[int],
        places: Sequence[Begin],
        judge_seed: int,
        ended: Mapping[int, int] | None = None,
    ):
        self._tally, self._model = tally, model
        self._density = density_of(model)  # held, so that all fits find it again
        self._notes: list[str] = []
        self._runs = [
            Restart(seed, place.label, "", None, 0.0, 0.0, ended=(ended or {}).get(i, 0))
            for i, (seed, place) in enumerate(zip(seeds, places, strict=True))
        ]
        self._fits: dict[int, NormalizingFlow] = {}
        for i, result in enumerate(tally.results):
            self._take(i, result)
        if not self._fits:
            self._raise()
        self._judge = np.random.SeedSequence(judge_seed)

    def _take(self, i: int, result: Finished | Failed | None) -> None:
        if isinstance(result, Finished):
            fitted: Fitted = result.value
            self._fits[i] = restored(fitted.content, self._model)
            self._runs[i] = replace(
                self._runs[i],
                formula=fitted.content.formula,
                seconds=fitted.seconds,
                messages=result.messages,
            )
            return
        error = "not finished"
        if isinstance(result, Failed):
            error = f"{type(result.error).__name__}: {result.error}"
            _log.warning("Restart %d failed: %s", i, error)
        self._runs[i] = replace(self._runs[i], error=error)
        self._notes.append(f"Restart {i} has no result: {error.splitlines()[0]}")

    def note(self, text: str) -> None:
        """Add a line below the table."""
        self._notes.append(text)

    def _raise(self) -> None:
        """Raise the error because of which no restart has a result."""
        if self._tally.is_interrupted:
            raise KeyboardInterrupt
        raise next(r.error for r in self._tally.results if isinstance(r, Failed))

    def _seeds(self, n: int) -> list[int]:
        return [int(s.generate_state(1)[0]) for s in self._judge.spawn(n)]

    # ----------------------------------------------------------------------------------- result

    def result(self, combine: Combine) -> NormalizingFlow:
        """Compare the fits, choose the result, and log the comparison."""
        kept = list(self._fits)
        fits = [self._fits[i] for i in kept]
        apart = disagreement(fits, self._seeds(len(fits))) if len(fits) > 1 else None
        weighing = self._weigh(fits)
        qualities = self._qualities(fits, weighing)
        modes: tuple[Mode, ...] = ()
        weights = np.zeros(len(fits))
        if weighing is not None:
            modes, weights = _modes(weighing, kept), weighing.mixture_weights()
        for i, quality, weight in zip(kept, qualities, weights, strict=True):
            self._runs[i] = replace(self._runs[i], quality=quality, weight=float(weight))
        best = _best(fits, qualities)
        approx, taken, quality = self._choose(fits, best, weights, combine)
        found = Restarts(
            tuple(self._runs), modes, apart, kept[best], taken, quality, tuple(self._notes)
        )
        approx.restarts = found
        _log.info("Restarts:\n%s", found)
        self._tell(found)
        return approx

    def _weigh(self, fits: Sequence[NormalizingFlow]) -> Weighing | None:
        """Densities of all fits at the draws of all, or None if they are not known."""
        why = ""
        if self._density.is_random:
            why = "the log density is random"
        elif not all(isinstance(fit.q, FlowState) for fit in fits):
            why = "densities of a field given hyperparameters take too long"
        elif not all(fit.chain.has_inverse for fit in fits):
            why = "a layer has no inverse"
        if why:
            self._notes.append(f"Modes and mixtures were not looked at: {why}.")
            return None
        n = int(np.clip(DRAWS_TOGETHER // len(fits), FEWEST_DRAWS, JUDGED_BY))
        rngs = [np.random.default_rng(seed) for seed in self._seeds(len(fits))]
        value = LogDensity(self._density).value
        return Weighing.of([fit.flow for fit in fits], value, n, rngs)

    def _qualities(
        self, fits: Sequence[NormalizingFlow], weighing: Weighing | None
    ) -> Sequence[Quality | None]:
        if weighing is not None:
            return weighing.qualities()
        if self._density.is_random:
            return [None] * len(fits)
        seeds = self._seeds(len(fits))
        return [_quality(fit, seed) for fit, seed in zip(fits, seeds, strict=True)]

    def _choose(
        self, fits: Sequence[NormalizingFlow], best: int, weights: np.ndarray, combine: Combine
    ) -> tuple[NormalizingFlow, str, Quality | None]:
        approx = fits[best]
        judge, approx_seed = self._seeds(2)
        if self._density.is_random:
            return approx, "best", None
        quality, is_in = _quality(approx, judge), weights > 0
        if combine == "best" or is_in.sum() < 2:
            return approx, "best", quality
        parts = [fit.flow for fit, used in zip(fits, is_in, strict=True) if used]
        state = MixtureState(parts, weights[is_in])
        mixture = NormalizingFlow.of(state, self._model, approx_seed)
        mixed = measure(mixture, JUDGED_BY, random_seed=judge)
        noise = N_ERRORS * float(np.hypot(quality.elbo_error, mixed.elbo_error))
        is_better = mixed.elbo - quality.elbo > max(noise, WORTH_IT)
        if combine == "mixture" or is_better or not np.isfinite(quality.elbo):
            return mixture, "mixture", mixed
        return approx, "best", quality

    # --------------------------------------------------------------------------------- messages

    def _tell(self, found: Restarts) -> None:
        """Log warnings about the result."""
        if self._tally.is_interrupted:
            _log.warning(
                "Interrupted: %d of %d restarts have a result, and one of them may be unfinished.",
                len(self._fits),
                len(self._runs),
            )
        if found.disagreement is not None and found.worst > LIMIT:
            named = ", ".join(
                f"{name} {value:.2f}" for name, value in worst(found.disagreement)[:NAMED]
            )
            _log.warning(
                "Restarts disagree: R-hat is %.2f (%s).%s\n%s",
                found.worst,
                named,
                f" They found {len(found.modes)} modes." if len(found.modes) > 1 else "",
                "Taken is their mixture, weighted by evidence; see approx.restarts."
                if found.taken == "mixture"
                else f"Taken is restart {found.best}, the best of them; see approx.restarts.",
            )
        q = found.quality
        if q is not None and not q.is_trusted:
            _log.warning(
                "What was taken of %d restarts has k-hat %.2f: look at pymc_flows.report(approx) "
                "before you use it.",
                len(self._fits),
                q.khat,
            )
        if found.taken == "best" and q is None:
            for text in found.runs[found.best].messages:
                _log.warning("%s", text)


def _quality(fit: NormalizingFlow, seed: int) -> Quality:
    if isinstance(fit.q, FlowState | MixtureState):
        return measure(fit, JUDGED_BY, random_seed=seed)
    return fit.q.quality  # type: ignore[attr-defined]


def _best(fits: Sequence[NormalizingFlow], qualities: Sequence[Quality | None]) -> int:
    known = [quality for quality in qualities if quality is not None]
    if known:
        return best_of(known)
    losses = [np.nanmean(fit.hist[-LAST_LOSSES:]) if len(fit.hist) else np.inf for fit in fits]
    return int(np.argmin(np.nan_to_num(losses, nan=np.inf)))


def _modes(weighing: Weighing, kept: Sequence[int]) -> tuple[Mode, ...]:
    groups = weighing.modes()
    masses = weighing.masses(groups)
    logs = np.array([mass for mass, _ in masses])
    total = np.logaddexp.reduce(logs)
    shares = np.exp(logs - total) if np.isfinite(total) else np.full(len(logs), np.nan)
    found = [
        Mode(tuple(kept[k] for k in group), mass, error, float(share))
        for group, (mass, error), share in zip(groups, masses, shares, strict=True)
    ]
    return tuple(sorted(found, key=lambda mode: -mode.log_evidence))
