"""Which formulas `fit(formula='auto')` tries, and how it fits them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pymc as pm

from pymc_flows.formula import Formula
from pymc_flows.start.options import MAX_DENSE

GAUSSIAN = "scale-loc"
# A model's variables come in an order in which the later ones depend on the earlier ones: next to
# the target, a layer that goes by this order gets the scales of a hierarchy in one.
AUTOREGRESSIVE = "iaf(clip=20, activation=silu)"
# Splines and layers with networks, which numba compiles for a minute (`nvp`, `iaf`) or minutes,
# and what is tried there instead; it compiles in 10 seconds.
SLOW_ON_NUMBA = frozenset({"spline", "nvp", "iaf", "nsf", "maf", "sylvester"})
ON_NUMBA = "planar*16-scale-loc"
# With so many steps, a fit ends once its loss has settled: a half to a fifth of 10,000 steps, for
# 0.001 to 0.004 nats.
ENOUGH_STEPS = 4_000
# Arguments that say when a fit ends, or how its step size changes.
_PLANS = {"stop", "schedule", "obj_optimizer", "anneal"}


@dataclass(frozen=True)
class Candidate:
    """A formula to try, and how it is fitted where the caller says nothing else.

    Attributes
    ----------
    formula : str
    anneal : float, optional
    draws : int, optional
        Draws per step.
    rate : float, optional
        Step size at the peak of a cosine.
    """

    formula: str
    anneal: float | None = None
    draws: int | None = None
    rate: float | None = None

    @property
    def is_slow_on_numba(self) -> bool:
        """Whether numba compiles it for more than half a minute."""
        return any(layer.word in SLOW_ON_NUMBA for layer, _ in Formula(self.formula).blocks)

    def arguments(self, given: Mapping[str, Any], n: int) -> dict[str, Any]:
        """Arguments of `NFVI.fit` besides ``n``, the number of steps, with those that are given."""
        own: dict[str, Any] = {}
        is_settled = _PLANS & set(given) or given.get("score") is False
        if self.anneal is None and n >= ENOUGH_STEPS and not is_settled:
            own["stop"] = True
        if self.anneal is not None:
            own["anneal"] = self.anneal
        if self.draws is not None:
            own["obj_n_mc"] = self.draws
        if self.rate is not None and not {"obj_optimizer", "schedule"} & set(given):
            own["obj_optimizer"] = pm.adam(learning_rate=self.rate)
            own["schedule"] = "cosine"
        return {**own, **given}


def richer(dim: int) -> list[Candidate]:
    """What is tried after Gaussians, in order."""
    if dim == 1:
        return [Candidate(f"spline*2-{GAUSSIAN}")]
    mixes = "" if dim <= MAX_DENSE else "scale-hh*10-loc-"
    return [Candidate(f"nvp*{k}-{mixes}{AUTOREGRESSIVE}-{GAUSSIAN}") for k in (4, 10)]


def spread() -> list[Candidate]:
    """What is tried where a Gaussian is far from the posterior, but covers it."""
    # With `tail` in the second k-hat is smaller, but one of nine fits to waves had a standard
    # deviation that was 13 % too large.
    return [
        richer(2)[0],
        Candidate("spline(bins=16)-nsf(hidden=64, waves=64, frequency=20)", 0.3, 128, 0.003),
        Candidate("nsf(bins=16)*4", 0.8, 256, 0.003),
    ]
