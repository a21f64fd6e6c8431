"""Annealing: the target is flattened at the start of a fit, so that no mode is lost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pymc_flows.errors import ArgumentError

type Curve = Literal["linear", "geometric", "cosine"]

CURVES = ("linear", "geometric", "cosine")


@dataclass(frozen=True)
class Anneal:
    """Inverse temperatures: a fit to p^β, where β grows from ``start`` to 1.

    Only the gradient is annealed: recorded losses are always those of the target itself.

    Parameters
    ----------
    share : float
        Share of the steps of the fit after which β is 1, in (0, 1].
    start : float
        β at the first step, in (0, 1].
    curve : {'linear', 'geometric', 'cosine'}
        How β grows: linearly, as in [1]_, section 6.1; geometrically, which stays longer at high
        temperatures; or as a cosine, which begins and ends gently.

    References
    ----------
    .. [1] Rezende & Mohamed, Variational Inference with Normalizing Flows, ICML 2015,
       arXiv:1505.05770.
    """

    share: float = 0.5
    start: float = 0.01
    curve: Curve = "linear"

    def __post_init__(self) -> None:
        """Check share, temperature and curve."""
        for name in ("share", "start"):
            value = getattr(self, name)
            if not _is_share(value):
                raise ArgumentError(f"{name} of Anneal must be in (0, 1], got {value!r}")
        if self.curve not in CURVES:
            raise ArgumentError(
                f"curve of Anneal must be one of {', '.join(CURVES)}, got {self.curve!r}"
            )

    def over(self, n: int) -> Ramp:
        """Return the inverse temperatures of a fit of ``n`` steps."""
        return Ramp(max(1, round(self.share * n)), float(self.start), self.curve)


@dataclass(frozen=True)
class Ramp:
    """Inverse temperatures by step: from ``start`` at the first to 1 after ``steps``."""

    steps: int
    start: float
    curve: Curve

    def values(self, first: int, n: int) -> np.ndarray:
        """Return β (n,) of the steps after the first ``first``."""
        done = np.minimum(np.arange(first, first + n) / self.steps, 1.0)
        if self.curve == "geometric":
            return np.exp((1 - done) * math.log(self.start))
        if self.curve == "cosine":
            done = 0.5 * (1 - np.cos(np.pi * done))
        return self.start + (1 - self.start) * done


def as_anneal(value: float | Anneal | None) -> Anneal | None:
    """Read the argument ``anneal=``: None, a share of the steps, or an `Anneal`."""
    if value is None or isinstance(value, Anneal):
        return value
    if _is_share(value):
        return Anneal(float(value))
    raise ArgumentError(
        "anneal must be the share of the steps after which the target is no longer flattened, in "
        f"(0, 1], or an Anneal, got {value!r}"
    )


def _is_share(value: object) -> bool:
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    return is_number and bool(0 < value <= 1)  # type: ignore[operator]
