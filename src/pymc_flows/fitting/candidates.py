"""Which formulas `fit(formula='auto')` tries, and how it fits them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pymc as pm
from numpy.typing import ArrayLike

from pymc_flows.approximation import MixtureState, NormalizingFlow
from pymc_flows.fitting.restarts.single import SEARCH_SHARE
from pymc_flows.fitting.tried import Tried
from pymc_flows.flows.evaluate import forward_and_log_det
from pymc_flows.flows.frame import Frame
from pymc_flows.formula import Formula
from pymc_flows.model.log_density import LogDensity
from pymc_flows.model.logp import density_of
from pymc_flows.model.streams import stream_of
from pymc_flows.start.natural import climb_elbo
from pymc_flows.start.options import MAX_DENSE
from pymc_flows.start.passes import nearly, share_for
from pymc_flows.start.point import find_start
from pymc_flows.start.target import Target
from pymc_flows.start.weighted.copula import DRAWS, WIDER, copulas
from pymc_flows.start.weighted.cover import cover
from pymc_flows.start.weighted.moments import Weighted, match_moments
from pymc_flows.training.stopping import Plateau

GAUSSIAN = "scale-loc"
# A model's variables come in an order in which the later ones depend on the earlier ones: next to
# the target, a layer that goes by this order gets the scales of a hierarchy in one.
AUTOREGRESSIVE = "iaf(clip=20, activation=silu)"
# Splines and layers with networks, which numba compiles for a minute (`nvp`, `iaf`) or longer, and
# the formula that is tried there instead, which it compiles in 10 seconds.
SLOW_ON_NUMBA = frozenset({"spline", "nvp", "iaf", "nsf", "maf", "sylvester"})
ON_NUMBA = "planar*16-scale-loc"
# A fit of at least so many steps ends once its loss has settled: after a half to a fifth of 10,000
# steps, at a cost of 0.001 to 0.004 nats.
ENOUGH_STEPS = 4_000
# Arguments by which the caller plans the end of a fit or its step sizes.
_PLANS = {"stop", "schedule", "obj_optimizer", "anneal"}


# A step is worth its time if what it may still gain is more than this share of the distance to the
# evidence, per window of the plateau rule.
WORTH = 0.025


@dataclass(frozen=True)
class WorthwhilePlateau(Plateau):
    """Stop once the loss has settled, or hardly falls compared with how much it lacks.

    Far from the evidence, hundredths of a nat decide nothing, and noise hides them: a flow that
    does not lead there would take all its steps.

    Parameters
    ----------
    evidence : float
        Log evidence, as weights tell it, in nats.
    """

    evidence: float = -math.inf

    def _least_gain(self, losses: np.ndarray) -> float:
        finite = losses[np.isfinite(losses)]
        lacks = self.evidence + float(finite.mean()) if len(finite) else 0.0
        return max(super()._least_gain(losses), WORTH * lacks)


@dataclass(frozen=True)
class Candidate:
    """A formula to try, with arguments of its fit that the caller may override.

    Attributes
    ----------
    formula : str
    anneal : float, optional
    draws : int, optional
        Draws per step.
    rate : float, optional
        Step size at the peak of a cosine.
    is_plain : bool
        Whether it begins at the point where the search began, in the units of the variables.
    """

    formula: str
    anneal: float | None = None
    draws: int | None = None
    rate: float | None = None
    is_plain: bool = False

    def __str__(self) -> str:
        """The formula in its canonical form."""
        return str(Formula(self.formula))

    @property
    def is_slow_on_numba(self) -> bool:
        """Whether numba compiles it for more than half a minute."""
        return any(layer.word in SLOW_ON_NUMBA for layer, _ in Formula(self.formula).blocks)

    def arguments(
        self, given: Mapping[str, Any], n: int, evidence: float = -math.inf
    ) -> dict[str, Any]:
        """Arguments of `NFVI.fit` besides the number of steps ``n``; given ones take precedence."""
        own: dict[str, Any] = {}
        is_settled = _PLANS & set(given) or given.get("score") is False
        if self.anneal is None and self.rate is None and n >= ENOUGH_STEPS and not is_settled:
            own["stop"] = WorthwhilePlateau(evidence=evidence)
        if self.anneal is not None:
            own["anneal"] = self.anneal
        if self.draws is not None:
            own["obj_n_mc"] = self.draws
        if self.rate is not None and not {"obj_optimizer", "schedule"} & set(given):
            own["obj_optimizer"] = pm.adam(learning_rate=self.rate)
            own["schedule"] = "cosine"
        return {**own, **given}


def plain_gaussian() -> Candidate:
    """A Gaussian in the units of the variables, since coordinates at a mode may mislead.

    Around the mode of a regularised horseshoe with 2,003 latents, scales are 1e-4 of those of the
    posterior: 10,000 steps with 64 draws in its coordinates lead to an ELBO of −5,064 nats, with 8
    draws in the units of the variables to −423.
    """
    return Candidate(GAUSSIAN, draws=8, rate=0.1, is_plain=True)


def units_at(start: Mapping[str, ArrayLike] | None, model: pm.Model, seed: int) -> Frame:
    """The units of the variables, at the point where a search begins."""
    point = find_start(density_of(model), start, np.random.default_rng(seed))
    return Frame(point, np.ones(len(point)))


def is_large(approx: NormalizingFlow) -> bool:
    """Whether there are many dimensions, and all rows in memory."""
    return approx.ddim > MAX_DENSE and stream_of(approx.density) is None


def richer(dim: int) -> list[Candidate]:
    """Candidates after Gaussians, in order."""
    if dim == 1:
        return [Candidate(f"spline*2-{GAUSSIAN}")]
    mixes = "" if dim <= MAX_DENSE else "scale-hh*10-loc-"
    return [Candidate(f"nvp*{k}-{mixes}{AUTOREGRESSIVE}-{GAUSSIAN}") for k in (4, 10)]


def spread() -> list[Candidate]:
    """Candidates where a Gaussian covers the posterior but is far from it."""
    # With `tail` in the second, k-hat is smaller, but one of nine fits to waves had a standard
    # deviation that was 13 % too large.
    return [
        richer(2)[0],
        Candidate("spline(bins=16)-nsf(hidden=64, waves=64, frequency=20)", 0.3, 128, 0.003),
        Candidate("nsf(bins=16)*4", 0.8, 256, 0.003),
    ]


# ---------------------------------------------------------------------------- without compilation


def climbed(
    gaussian: NormalizingFlow, tried: Tried, seeds: Iterator[Any]
) -> NormalizingFlow | None:
    """A Gaussian with a larger ELBO, by natural gradients; None if there is none.

    Curvatures must be exact and of all rows, so there is none for rows that come batch by batch.
    """
    frame = gaussian.flow.frame
    is_streamed = stream_of(gaussian.density) is not None
    if frame.scale is None or is_streamed or tried.deadline.has_passed:
        return None
    tried.start_rung()
    tried.bar.say("Climbing the ELBO of a Gaussian")
    target = Target.of(gaussian.density, frame.center, tried.counts)
    if not target.is_exact:
        return None
    rng = np.random.default_rng(int(next(seeds)))
    deadline = tried.deadline.share(SEARCH_SHARE)
    found = climb_elbo(target, frame, rng, deadline=deadline)
    if found is None:
        return None
    found = match_moments(counted(gaussian, tried), found, rng)
    found = replace(found, variables=frame.variables)
    return gaussian_of(gaussian.model, found, int(next(seeds)))


def closed_forms(
    gaussian: NormalizingFlow, tried: Tried, seeds: Iterator[Any], *, is_spread: bool
) -> Iterator[NormalizingFlow]:
    """Fit copulas and mixtures of Gaussians to weighted draws of a wider Gaussian.

    Mixtures come first if the posterior ``is_spread``: follows a curve, or has separate modes.
    """
    tried.start_rung()
    tried.bar.say("Fitting copulas to weighted draws")
    rng = np.random.default_rng(int(next(seeds)))
    log_density = counted(gaussian, tried)
    draws = Weighted.draws(log_density, gaussian.flow.frame.widened(WIDER), DRAWS, rng)
    model = gaussian.model
    kinds: list[Callable[[], Iterator[NormalizingFlow]]] = [partial(_copulas, model, draws, seeds)]
    if tried.resamples:  # with wide Gaussians in it, a mixture is never the posterior itself
        mixture = partial(_mixture, model, draws, seeds, log_density, tried)
        kinds.insert(0 if is_spread else 1, mixture)
    for i, fit in enumerate(kinds):
        if i and tried.has_draws:
            break
        for approx in fit():
            yield approx
            tried.start_rung()


def counted(approx: NormalizingFlow, tried: Tried) -> Callable[[np.ndarray], np.ndarray]:
    """The log density (n,) of the model at points (n, dim), in nats, with a count of evaluations.

    The likelihood of many rows that come in batches is expanded to second order at the centre of
    the Gaussian.
    """
    density, frame = approx.density, approx.flow.frame
    if share_for(density) < 1 and stream_of(density) is not None and len(frame.center) <= MAX_DENSE:
        return nearly(density, frame, tried.counts)
    log_density = LogDensity(density)

    def value(points: np.ndarray) -> np.ndarray:
        tried.counts.densities += len(points)
        return log_density.value(points)

    return value


def _copulas(model: pm.Model, draws: Weighted, seeds: Iterator[Any]) -> Iterator[NormalizingFlow]:
    """Splines of single coordinates and a matrix."""
    for copula in copulas(draws):
        yield NormalizingFlow(
            copula.formula,
            model=model,
            start=copula.frame,
            params=copula.params,
            jitter=0.0,
            random_seed=int(next(seeds)),
        )


def _mixture(
    model: pm.Model,
    draws: Weighted,
    seeds: Iterator[Any],
    log_density: Callable[[np.ndarray], np.ndarray],
    tried: Tried,
) -> Iterator[NormalizingFlow]:
    """Many Gaussians."""
    tried.bar.say("Fitting a mixture to weighted draws")
    found = cover(log_density, draws, np.random.default_rng(int(next(seeds))))
    if found is not None:
        seed = int(next(seeds))
        parts = [gaussian_of(model, frame, seed) for frame in found.frames]
        yield NormalizingFlow.of(
            MixtureState([part.flow for part in parts], found.weights), model, seed
        )


def gaussian_of(model: pm.Model, frame: Frame, seed: int) -> NormalizingFlow:
    """The Gaussian that a frame is."""
    return NormalizingFlow(GAUSSIAN, model=model, start=frame, jitter=0.0, random_seed=seed)


def learned_frame(approx: NormalizingFlow) -> Frame:
    """The frame of a ``scale-loc`` that was fitted in the coordinates of another."""
    frame = approx.flow.frame
    ends = np.stack([np.zeros(approx.ddim), np.ones(approx.ddim)])
    (loc, stop), _ = forward_and_log_det(approx.chain, ends, approx.flow.values())
    scale = stop - loc
    if frame.scale is None:
        return Frame(frame.center + loc, scale)
    return Frame(frame.forward(loc), frame.scale * scale)
