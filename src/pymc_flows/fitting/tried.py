"""The fits that `fit(formula='auto')` has tried, and the choice of the best."""

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
from pymc_flows.fitting.ladder import Ladder, Rung, known_qualities
from pymc_flows.fitting.nfvi import NFVI
from pymc_flows.importance import EVEN_GAP, LACKING, N_ERRORS, known_evidence
from pymc_flows.start.options import MAX_DENSE
from pymc_flows.start.passes import share_for
from pymc_flows.support.deadline import Deadline
from pymc_flows.support.evaluations import Evaluations
from pymc_flows.support.interrupts import Interrupts
from pymc_flows.training.config import FitConfig
from pymc_flows.training.progress import SearchProgress
from pymc_flows.training.trainer import Outcome

_log = logging.getLogger(__name__)

# Draws that judge a fit; fewer where evaluations are expensive.
JUDGED_BY = 4_000
# A fit this near to the evidence (nats), with weights that can be trusted, leaves nothing to gain:
# in no direction is a mean off by more than √0.04 standard deviations. The rest costs more rungs
# than it is worth: on eight schools half a minute for 0.002 nats.
GOOD_ENOUGH = 0.02
# Differences between smaller k-hats are noise.
SMALL = 0.3
# A Gaussian with trusted weights and an ELBO this far below the evidence (nats) covers separate
# modes or a curve.
SPREAD = 1.0
# If a flow closes less than this share of the gap between the best so far and the evidence, and its
# weights cannot be trusted either, more layers will not help.
LITTLE = 0.1
# Seconds of training in more than `MAX_DENSE` dimensions, where no time was given: most weights
# there cannot be trusted after minutes either.
TRAINING = 45.0
# A Gaussian is far behind if its ELBO is lower than that of a field given hyperparameters by this
# many times the gap of the field, and at least as many nats.
BEHIND = 10.0
FAR_BEHIND = "the Gaussian that they begin with is far behind a field given hyperparameters"
LITTLE_GAINED = f"the last closed less than {LITTLE:.0%} of the gap to the evidence"


class Tried:
    """The fits of a search so far.

    Parameters
    ----------
    seeds : iterator of int
        For the draws that judge.
    deadline : Deadline
    bar : SearchProgress
    resamples : bool
        Whether a fit is good enough if its draws can be resampled.

    Attributes
    ----------
    rungs : list of Rung
    notes : list of str
        What was left out or failed.
    counts : Evaluations
        Evaluations of the running rung.
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

    def limit_training(self) -> None:
        """Bound the time that is left, unless the caller has bounded it or wants the best fit."""
        if self.resamples and math.isinf(self.deadline.at):
            self.deadline = Deadline.after(TRAINING)
            self.notes.append(
                f"Training was given {TRAINING:g} s: in more than {MAX_DENSE} dimensions it seldom "
                "leads to weights that can be trusted. seconds= or quality='best' gives it more."
            )

    def train(self, inference: NFVI, config: FitConfig) -> Outcome:
        """Fit until the deadline, and count gradients."""
        with self.bar.paused():
            outcome = inference.train(config, deadline=self.deadline)
        self.counts.gradients += outcome.steps * config.obj_n_mc
        return outcome

    def judge(self, approx: NormalizingFlow, steps: int, warnings: Sequence[str] = ()) -> Quality:
        """Measure a fit, and add a rung for it; ``warnings`` are those of its convergence."""
        with Interrupts(deferred=False):
            n = int(share_for(approx.density) * JUDGED_BY)
            quality = measure(approx, n, random_seed=int(next(self._seeds)))
        self.counts.densities += n
        return self._add(approx, quality, steps, warnings)

    def judge_structured(self, approx: NormalizingFlow) -> Quality:
        """Add a rung for a field given hyperparameters, with its own weights."""
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

    @property
    def evidence(self) -> float:
        """Largest log evidence that weights tell, trusted or not, in nats; −∞ without any."""
        found = [r.quality.log_evidence for r in self.rungs if r.quality is not None]
        return max((x for x in found if math.isfinite(x)), default=-math.inf)

    def is_enough(self, enough: float) -> bool:
        """Whether the last fit has such a gap, or the draws of a fit can be resampled."""
        return is_good(self.rungs, enough) or self.has_draws

    @property
    def has_draws(self) -> bool:
        """Whether the draws of a fit can be resampled, if that is enough."""
        return self._safest is not None

    @property
    def last_is_best_of_its_kind(self) -> bool:
        """Whether no other fit with the formula of the last one has a better ELBO."""
        kind = self.rungs[-1].formula
        found = known_qualities([r for r in self.rungs if r.formula == kind and r.parts == 1])
        return best_of(found) == len(found) - 1

    @staticmethod
    def _is_near(quality: Quality) -> bool:
        """Whether draws are good as they are."""
        is_close = quality.log_evidence - quality.elbo <= EVEN_GAP
        return quality.is_trusted and (quality.is_even or is_close)

    @property
    def _safest(self) -> int | None:
        """Index of the fit whose draws are resampled, if that is enough."""
        if not self.resamples or any(isinstance(a.q, FieldState) for a, _ in self._fitted):
            return None
        return safest_of(known_qualities(self.rungs))

    def best(self, ended: str) -> NormalizingFlow:
        """Take the best fit; log what speaks against it, and why the search ``ended``, if given."""
        known = known_qualities(self.rungs)
        taken = best_of(known)
        if not self._is_near(known[taken]) and self._safest is not None:
            taken = self._safest
        (best, warnings), quality = self._fitted[taken], known[taken]
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
    """The evidence less the last ELBO, in nats.

    The evidence is the largest by trusted weights of any rung: weights of a flow that lacks mass do
    not show it.
    """
    found = known_qualities(rungs)
    last = found[-1]
    return max(last.log_evidence, known_evidence(found)) - last.elbo


def is_good(rungs: Sequence[Rung], enough: float) -> bool:
    """Whether the last fit leaves nothing to gain."""
    quality = rungs[-1].quality
    return quality is not None and quality.is_trusted and gap(rungs) < enough


def is_far(rungs: Sequence[Rung]) -> bool:
    """Whether the last fit, a Gaussian, covers the posterior and is far from it."""
    quality = rungs[-1].quality
    return quality is not None and quality.is_trusted and gap(rungs) > SPREAD


def safest_of(qualities: Sequence[Quality]) -> int | None:
    """Index of the fit whose draws are best resampled; None if there is none.

    What matters for resampling is k-hat and the share of effective draws, not the ELBO. Fits that
    lack evidence which is known by trusted weights of another are left out.
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
    """Index of the first fit whose ELBO no later one exceeds by more than noise.

    Of two equally good ones, one whose weights can be trusted.
    """
    best = 0
    for i, quality in enumerate(qualities):
        other = qualities[best]
        # The error of an ELBO that is all noise must not hide a gain.
        noise = 2 * np.hypot(quality.elbo_error, min(other.elbo_error, quality.elbo_error))
        is_better = not np.isfinite(other.elbo) or quality.elbo > other.elbo + noise
        is_as_good = quality.elbo > other.elbo - noise
        if is_better or (is_as_good and quality.is_trusted and not other.is_trusted):
            best = i
    return best


def gains_little(rungs: Sequence[Rung]) -> bool:
    """Whether the last flow is hardly nearer to the evidence than those before, and untrusted."""
    *before, last = known_qualities(rungs)
    if not before or last.is_trusted or any(q.is_trusted for q in before):
        return False
    best = max(q.elbo for q in before)
    return last.elbo - best < LITTLE * (last.log_evidence - best)


def is_behind(rungs: Sequence[Rung]) -> bool:
    """Whether the last fit is far behind a field given hyperparameters, trusted or not.

    Flows that begin there would have to find in all dimensions what Newton's method finds.
    """
    *before, last = rungs
    fields = [r.quality for r in before if r.formula.conditional is not None and r.quality]
    if not fields or last.quality is None:
        return False
    gap = fields[0].log_evidence - fields[0].elbo
    return last.quality.elbo < fields[0].elbo - BEHIND * max(gap, 1.0)
