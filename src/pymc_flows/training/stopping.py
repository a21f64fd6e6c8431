"""The rule by which a fit ends early: its loss no longer falls."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pymc_flows.errors import ArgumentError
from pymc_flows.support.arguments import check_integer

# Blocks of losses whose means give the trend; 95 % point of Student's t with two degrees less.
BLOCKS, T_95 = 16, 1.76
# Checks of the loss per window.
LOOKS = 4


@dataclass(frozen=True)
class Plateau:
    """Stop once the loss has settled, by a confidence bound of the gain that is left.

    A straight line is fitted to the mean losses of 16 blocks of the last ``window`` steps. Once the
    upper 95 % confidence bound of its fall over as many further steps is below ``tolerance``, the
    step size decays like a cosine for ``decay`` steps, which is the end of the fit. Noise makes
    the bound larger, so that a noisy loss leads to a longer fit and not to an early stop: the
    number of steps is the upper bound.

    Parameters
    ----------
    tolerance : float
        In nats.
    window : int
        In steps; at least 160.
    decay : int
        In steps.
    """

    tolerance: float = 0.02
    window: int = 2_000
    decay: int = 1_000

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not (
            isinstance(self.tolerance, int | float | np.number) and 0 < self.tolerance < np.inf
        ):
            raise ArgumentError(f"tolerance of Plateau must be positive, got {self.tolerance!r}")
        check_integer("window of Plateau", self.window, minimum=10 * BLOCKS)
        check_integer("decay of Plateau", self.decay, minimum=1)

    @property
    def every(self) -> int:
        """Steps between checks of the loss."""
        return self.window // LOOKS

    def has_settled(self, losses: np.ndarray) -> bool:
        """Whether losses (steps,) of a fit at a constant step size hardly fall any more."""
        if len(losses) < self.window:
            return False
        recent = losses[-self.window :]
        return bool(self.bound(recent) < self._least_gain(recent))

    def _least_gain(self, losses: np.ndarray) -> float:
        """Fall over the next ``window`` steps, in nats, for which it is worth going on."""
        return float(self.tolerance)

    def bound(self, losses: np.ndarray) -> float:
        """Upper 95 % bound of the fall over the next ``window`` steps, in nats."""
        finite = [part[np.isfinite(part)] for part in np.array_split(losses, BLOCKS)]
        if not all(len(part) for part in finite):
            return np.inf
        means = np.array([part.mean() for part in finite])
        time = (np.arange(BLOCKS) - (BLOCKS - 1) / 2) / BLOCKS  # in windows
        slope = time @ means / (time @ time)
        rest = means - means.mean() - slope * time
        error = np.sqrt(rest @ rest / (BLOCKS - 2) / (time @ time))
        return float(-slope + T_95 * error)


def as_plateau(value: bool | Plateau | None) -> Plateau | None:  # noqa: FBT001 - a switch
    """Read the argument ``stop=``."""
    if value is None or value is False:
        return None
    if value is True:
        return Plateau()
    if isinstance(value, Plateau):
        return value
    raise ArgumentError(f"stop must be True, False or a Plateau, got {value!r}")
