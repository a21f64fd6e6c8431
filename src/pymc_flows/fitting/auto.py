"""`formula='auto'`: richer and richer flows, until nothing is gained."""

from __future__ import annotations

import inspect
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pymc as pm
from numpy.typing import ArrayLike

from pymc_flows.approximation import NormalizingFlow
from pymc_flows.diagnostics.quality import Quality, measure
from pymc_flows.errors import BackendError, StorageError
from pymc_flows.fitting.candidates import GAUSSIAN, Trial, richer, spread
from pymc_flows.fitting.nfvi import NFVI
from pymc_flows.flows.evaluate import forward_and_log_det
from pymc_flows.flows.frame import Frame
from pymc_flows.formula import Formula
from pymc_flows.importance import LACKING, N_ERRORS, known_evidence
from pymc_flows.model.log_density import LogDensity
from pymc_flows.model.logp import model_or_context
from pymc_flows.start.moments import match_moments
from pymc_flows.start.search import find_frame
from pymc_flows.support.arguments import check_integer
from pymc_flows.support.interrupts import Interrupts
from pymc_flows.support.seeds import RandomState, integer_seed
from pymc_flows.support.tables import html_table, text_table
from pymc_flows.training.optimizers import rated

_log = logging.getLogger(__name__)

# Draws that judge a fit.
JUDGED_BY = 4_000
# A fit this near to the evidence (nats), with weights that can be trusted, leaves nothing to gain.
# In no direction a mean is then off by more than √0.04 standard deviations. The rest costs more
# rungs than it is worth: on eight schools half a minute for 0.002 nats.
GOOD_ENOUGH = 0.02
COLUMNS = ("formula", "steps", "ELBO", "± error", "k-hat", "log Z", "seconds", "")
NUMBERS = range(1, 7)  # of the columns
# A Gaussian with weights that can be trusted and this much less than the evidence (nats) lies over
# modes that are apart, or over a curve.
SPREAD = 1.0
# What is left may then all be in the weights of the modes: a mean is off by no more than √0.01
# standard deviations.
GOOD_ENOUGH_SPREAD = 0.005


@dataclass(frozen=True)
class Rung:
    """One formula that was tried.

    Attributes
    ----------
    formula : Formula
    quality : Quality or None
        None where the log density is random, as with a minibatch.
    seconds : float
        Wall time of its fit, compiling included; of the first rung that of the search for a start.
    steps : int
        Of its fit; 0 for a Gaussian that has the moments of weighted draws.
    """

    formula: Formula
    quality: Quality | None
    seconds: float
    steps: int


@dataclass(frozen=True, repr=False)
class Ladder:
    """All formulas that were tried, in order, and which one was taken."""

    rungs: tuple[Rung, ...]
    taken: int

    def lacking(self, quality: Quality) -> float:
        """Share, at least, of the evidence that trusted weights of a rung know and others lack.

        Parameters
        ----------
        quality : Quality
            What the others say.
        """
        found = [rung.quality for rung in self.rungs if rung.quality is not None]
        own = quality.log_evidence + N_ERRORS * quality.log_evidence_error
        gap = known_evidence(found) - own
        return -math.expm1(-gap) if 0 < gap < math.inf else 0.0

    def record(self) -> dict[str, Any]:
        """All of it as JSON has it."""
        rungs = [
            {
                "formula": str(rung.formula),
                "quality": None if rung.quality is None else asdict(rung.quality),
                "seconds": rung.seconds,
                "steps": rung.steps,
            }
            for rung in self.rungs
        ]
        return {"rungs": rungs, "taken": self.taken}

    @classmethod
    def restored(cls, record: Any) -> Ladder | None:
        """Make it from a `record`; None of None.

        Raises
        ------
        StorageError
            If it is no record of a ladder.
        """
        if record is None:
            return None
        try:
            rungs = tuple(
                Rung(
                    Formula(rung["formula"]),
                    None if rung["quality"] is None else Quality(**rung["quality"]),
                    float(rung["seconds"]),
                    int(rung["steps"]),
                )
                for rung in record["rungs"]
            )
            taken = record["taken"]
            if taken not in range(len(rungs)):
                raise ValueError(f"rung {taken!r} of {len(rungs)}")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise StorageError(f"the ladder in the file is malformed: {error!r}") from error
        return cls(rungs, taken)

    def rows(self) -> list[tuple[str, ...]]:
        """The table, as text."""
        rows: list[tuple[str, ...]] = []
        for i, rung in enumerate(self.rungs):
            q = rung.quality
            numbers = ("–",) * 4
            if q is not None:
                numbers = (
                    f"{q.elbo:,.3f}",
                    f"{q.elbo_error:.3f}",
                    f"{q.khat:.2f}",
                    f"{q.log_evidence:,.3f}",
                )
            mark = "taken" if i == self.taken else ""
            steps = f"{rung.steps:,}"
            rows.append((str(rung.formula), steps, *numbers, f"{rung.seconds:.1f}", mark))
        return rows

    def __str__(self) -> str:
        """Aligned columns."""
        return text_table([COLUMNS, *self.rows()], right=NUMBERS, indent="")

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """An HTML table."""
        return html_table(self.rows(), header=COLUMNS, right=NUMBERS)


def climb(
    n: int,
    *,
    model: pm.Model | None = None,
    start: Mapping[str, ArrayLike] | Frame | None = None,
    random_seed: RandomState = None,
    inf_kwargs: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> NormalizingFlow:
    """Fit a ladder of flows and return the best.

    First a Gaussian that nothing is trained for: that of `find_frame`, with the moments of its
    weighted draws. If its importance weights say that there is something to gain, flows follow, in
    its coordinates; the first of them a Gaussian again, if the weights cannot be trusted, and then
    others with more layers, each the identity at its start. Where weights that can be trusted say
    that the posterior has modes that are apart, or follows a curve, these are flows for that, with
    annealing. The one with the best ELBO is taken, the simpler one where the difference is within
    the noise. A Ctrl-C, or a fit that fails, ends the search for a better one: what was fitted
    until then is not lost.

    Parameters
    ----------
    n : int
        Steps of each fit.
    model, start, random_seed, inf_kwargs, **kwargs
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
    with Interrupts(deferred=False):
        approx = _gaussian(model, start, seeds)
    frame, is_found = approx.flow.frame, not isinstance(start, Frame)
    dim, enough = len(frame.center), GOOD_ENOUGH
    trials = [Trial(GAUSSIAN), *richer(dim)]
    if is_found and not approx.density.is_random:
        quality = tried.judge(approx, 0, [])
        if quality.is_trusted:
            is_spread = _gap(tried.rungs) > SPREAD and dim > 1
            trials = spread() if is_spread else richer(dim)
            enough = GOOD_ENOUGH_SPREAD if is_spread else GOOD_ENOUGH
            if _is_good(tried.rungs, enough):
                trials = []
    ended = ""
    for trial in trials:
        tried.begin = time.perf_counter()
        seed = int(next(seeds))
        concerns: list[str] | None = None if approx.density.is_random else []
        name = str(Formula(trial.formula))
        try:
            inference = NFVI(
                trial.formula, model=model, start=frame, random_seed=seed, **(inf_kwargs or {})
            )
            inference.concerns = concerns
            approx = inference.fit(n, **trial.arguments(kwargs))
            steps = inference.state.done
            if concerns is None:
                approx.ladder = Ladder((Rung(approx.formula, None, tried.seconds, steps),), 0)
                return approx
            if inference.state.is_interrupted:
                ended = f"Interrupted after {steps:,} of {n:,} steps of {name!r}"
            tried.judge(approx, steps, concerns)
        except (KeyboardInterrupt, ArithmeticError, BackendError, MemoryError) as error:
            if not _is_left(tried.rungs, error):
                raise
            is_interrupt = isinstance(error, KeyboardInterrupt)
            why = "interrupted" if is_interrupt else f"{type(error).__name__}: {error}"
            ended = ended or f"Fitting {name!r} was not finished ({why})"
        if ended or _is_good(tried.rungs, enough):
            break
        if trial.formula == GAUSSIAN:
            frame = _learned(approx, frame)
    return tried.best(ended)


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
        self._fitted: list[tuple[NormalizingFlow, list[str]]] = []
        self._seeds = seeds

    @property
    def seconds(self) -> float:
        """Wall time of the running rung so far."""
        return time.perf_counter() - self.begin

    def judge(self, approx: NormalizingFlow, steps: int, concerns: list[str]) -> Quality:
        """Measure a fit of which its inference had these concerns."""
        with Interrupts(deferred=False):
            quality = measure(approx, JUDGED_BY, random_seed=int(next(self._seeds)))
        self._fitted.append((approx, concerns))
        self.rungs.append(Rung(approx.formula, quality, self.seconds, steps))
        _log.info("%s: ELBO %.5g, k-hat %.2f", approx.formula, quality.elbo, quality.khat)
        return quality

    def best(self, ended: str) -> NormalizingFlow:
        """Take the best, and say what speaks against it and why the search ended early, if so."""
        qualities = [rung.quality for rung in self.rungs if rung.quality is not None]
        taken = _best(qualities)
        (best, concerns), quality = self._fitted[taken], qualities[taken]
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
        for concern in concerns:
            _log.warning("%s", concern)
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
    rated(kwargs.get("obj_optimizer"), n, kwargs.get("schedule"))
    check_integer("obj_n_mc", 1 if kwargs.get("obj_n_mc") is None else kwargs["obj_n_mc"])


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
