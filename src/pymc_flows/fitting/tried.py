"""What `fit(formula='auto')` has tried so far, and which of it is best."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pymc_flows.approximation import MixtureState, NormalizingFlow
from pymc_flows.diagnostics.quality import Quality, measure
from pymc_flows.field.state import FieldState
from pymc_flows.fitting.ladder import Ladder, Rung
from pymc_flows.fitting.nfvi import NFVI
from pymc_flows.importance import EVEN_GAP, LACKING, N_ERRORS, known_evidence
from pymc_flows.start.passes import share_for
from pymc_flows.support.deadline import Deadline
from pymc_flows.support.evaluations import Evaluations
from pymc_flows.support.interrupts import Interrupts
from pymc_flows.training.config import FitConfig
from pymc_flows.training.progress import SearchProgress
from pymc_flows.training.trainer import Outcome

_log = logging.getLogger(__name__)

# Draws that judge a fit; fewer where an evaluation is dear.
JUDGED_BY = 4_000
# Differences between smaller k-hats are noise.
SMALL = 0.3
# A Gaussian with weights that can be trusted and this much less than the evidence (nats) lies over
# modes that are apart, or over a curve.
SPREAD = 1.0
# A flow that closes less than this share of the gap between the best so far and the evidence, and
# whose weights cannot be trusted either, will not be saved by more layers.
LITTLE = 0.1
# So many times what a field given hyperparameters lacks, and at least as many nats.
BEHIND = 10.0
FAR_BEHIND = "the Gaussian that they begin with is far behind a field given hyperparameters"
LITTLE_GAINED = f"the last closed less than {LITTLE:.0%} of the gap to the evidence"


class Tried:
    """What a search has fitted so far.

    Parameters
    ----------
    seeds : iterator of int
        Of the draws that judge.
    deadline : Deadline
    bar : SearchProgress
    resamples : bool
        Whether a fit whose draws can be resampled is good enough.

    Attributes
    ----------
    rungs : list of Rung
    notes : list of str
        What was left out, and what failed.
    counts : Evaluations
        Of the running rung.
    resamples : bool
    """

    def __init__(
        self,
        seeds: Iterator[Any],
        deadline: Deadline,
        bar: SearchProgress,
        *,
        resamples: bool = True,
    ):
        self.rungs: list[Rung] = []
        self.notes: list[str] = []
        self.deadline, self.bar = deadline, bar
        self.start_rung()
        self._fitted: list[tuple[NormalizingFlow, Sequence[str]]] = []
        self._seeds, self.resamples = seeds, resamples

    @property
    def seconds(self) -> float:
        """Wall time of the running rung so far."""
        return time.perf_counter() - self._begin

    def start_rung(self) -> None:
        """Count time and evaluations of the next rung."""
        self._begin, self.counts = time.perf_counter(), Evaluations()

    def train(self, inference: NFVI, config: FitConfig) -> Outcome:
        """Fit until the deadline, and count gradients."""
        limited = {"deadline": self.deadline} if math.isfinite(self.deadline.at) else {}
        with self.bar.paused():
            outcome = inference.train(config, **limited)
        self.counts.gradients += outcome.steps * config.obj_n_mc
        return outcome

    def judge(self, approx: NormalizingFlow, steps: int, warnings: Sequence[str] = ()) -> Quality:
        """Measure a fit with these convergence warnings."""
        with Interrupts(deferred=False):
            n = int(share_for(approx.density) * JUDGED_BY)
            quality = measure(approx, n, random_seed=int(next(self._seeds)))
        self.counts.densities += n
        return self._add(approx, quality, steps, warnings)

    def judge_structured(self, approx: NormalizingFlow) -> Quality:
        """Take what the weights of a field given hyperparameters say."""
        assert isinstance(approx.q, FieldState)
        self.counts = approx.q.found.evaluations.copy()
        return self._add(approx, approx.q.quality, 0, ())

    def _add(
        self, approx: NormalizingFlow, quality: Quality, steps: int, warnings: Sequence[str]
    ) -> Quality:
        self._fitted.append((approx, warnings))
        parts = len(approx.q.parts) if isinstance(approx.q, MixtureState) else 1
        counts = self.counts.copy()
        self.rungs.append(Rung(approx.formula, quality, self.seconds, steps, counts, parts))
        self.bar.reach(gap(self.rungs))
        _log.info(
            "%s: ELBO %.5g, k-hat %.2f; %s in %.1f s.",
            approx.formula,
            quality.elbo,
            quality.khat,
            self.counts,
            self.seconds,
        )
        return quality

    def is_enough(self, enough: float) -> bool:
        """Whether the last fit has that gap, or one of them draws that can be resampled."""
        return is_good(self.rungs, enough) or self.has_draws

    @property
    def has_draws(self) -> bool:
        """Whether one of them has draws that can be resampled, if that is enough."""
        return self._safest is not None

    @staticmethod
    def _is_near(quality: Quality) -> bool:
        """Whether draws are good as they are."""
        gap = quality.log_evidence - quality.elbo
        return quality.is_trusted and (quality.is_even or gap <= EVEN_GAP)

    @property
    def _safest(self) -> int | None:
        """The flow whose draws are resampled, if that is enough."""
        if not self.resamples or any(isinstance(a.q, FieldState) for a, _ in self._fitted):
            return None
        return safest_of([rung.quality for rung in self.rungs if rung.quality is not None])

    def best(self, ended: str) -> NormalizingFlow:
        """Take the best, and say what speaks against it and why the search ended early, if so."""
        qualities = [rung.quality for rung in self.rungs if rung.quality is not None]
        taken = best_of(qualities)
        if not self._is_near(qualities[taken]) and self._safest is not None:
            taken = self._safest
        (best, warnings), quality = self._fitted[taken], qualities[taken]
        resamples = (
            not isinstance(best.q, FieldState)
            and quality.can_be_resampled
            and not self._is_near(quality)
        )
        best.ladder = Ladder(tuple(self.rungs), taken, tuple(self.notes), resamples)
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
                "%s: nothing further is tried. Taken is %r, the best so far%s.",
                ended,
                str(best.formula),
                "; it can be used as it is" if quality.is_trusted else "",
            )
        for text in warnings:
            _log.warning("%s", text)
        if not quality.is_usable:
            _log.warning(
                "None of %d flows can be used: the best has ELBO %.5g and k-hat %.2f.\n"
                "Give start= a point nearer to the posterior or a formula of your own, look at "
                "pymc_flows.report(approx), or use MCMC.",
                len(self.rungs),
                quality.elbo,
                quality.khat,
            )
        elif not quality.is_trusted:
            _log.warning(
                "The best of %d flows has k-hat %.2f: look at pymc_flows.report(approx) before you "
                "use it, and try more steps or a formula of your own.",
                len(self.rungs),
                quality.khat,
            )
        return best


def gap(rungs: Sequence[Rung]) -> float:
    """How much less than the evidence the last ELBO is, in nats.

    The evidence is the largest that trusted weights of any rung tell: a flow that lacks mass does
    not know of it.
    """
    found = [rung.quality for rung in rungs if rung.quality is not None]
    last = found[-1]
    return max(last.log_evidence, known_evidence(found)) - last.elbo


def is_good(rungs: Sequence[Rung], enough: float) -> bool:
    """Whether the last leaves nothing to gain."""
    quality = rungs[-1].quality
    return quality is not None and quality.is_trusted and gap(rungs) < enough


def is_far(rungs: Sequence[Rung]) -> bool:
    """Whether the last, a Gaussian, covers the posterior and is far from it."""
    quality = rungs[-1].quality
    return quality is not None and quality.is_trusted and gap(rungs) > SPREAD


def safest_of(qualities: Sequence[Quality]) -> int | None:
    """The one whose draws are the best to be resampled; None if there is none.

    Where weights decide, the ELBO does not matter: few heavy ones do, and how many draws count.
    Those that lack evidence which trusted weights of another know are out.
    """
    known = known_evidence(qualities)
    able = [
        i
        for i, q in enumerate(qualities)
        if q.can_be_resampled and known <= q.log_evidence + N_ERRORS * q.log_evidence_error
    ]
    return min(
        able, key=lambda i: (max(qualities[i].khat, SMALL), -qualities[i].share), default=None
    )


def best_of(qualities: Sequence[Quality]) -> int:
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


def gains_little(rungs: Sequence[Rung]) -> bool:
    """Whether the last flow is hardly nearer to the evidence than those before, and not good."""
    *before, last = [rung.quality for rung in rungs if rung.quality is not None]
    if not before or last.is_trusted or any(q.is_trusted for q in before):
        return False
    best = max(q.elbo for q in before)
    return last.elbo - best < LITTLE * (last.log_evidence - best)


def is_behind(rungs: Sequence[Rung]) -> bool:
    """Whether the last one lacks far more than a field given hyperparameters does, trusted or not.

    Flows that begin there would have to find in all dimensions what Newton's method knows.
    """
    *before, last = [rung for rung in rungs if rung.quality is not None]
    fields = [r.quality for r in before if r.formula.conditional is not None and r.quality]
    if not fields or last.quality is None:
        return False
    gap = fields[0].log_evidence - fields[0].elbo
    return last.quality.elbo < fields[0].elbo - BEHIND * max(gap, 1.0)
