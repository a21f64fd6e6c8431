"""A time until which work may go on."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from pymc_flows.support.arguments import check_positive


@dataclass(frozen=True)
class Deadline:
    """A moment on the wall clock, after which no new unit of work begins.

    Attributes
    ----------
    at : float
        In seconds of `time.perf_counter`; ∞ for no limit.
    """

    at: float = math.inf

    @classmethod
    def after(cls, seconds: float | None) -> Deadline:
        """The moment this many seconds from now; no limit for None."""
        return cls() if seconds is None else cls(time.perf_counter() + seconds)

    @property
    def left(self) -> float:
        """Seconds until then; negative afterwards."""
        return self.at - time.perf_counter()

    @property
    def has_passed(self) -> bool:
        """Whether the moment is over."""
        return self.left <= 0

    def share(self, part: float) -> Deadline:
        """The moment when this share of the time that is left is over."""
        return self if math.isinf(self.at) else Deadline.after(part * self.left)


def check_seconds(seconds: object) -> float | None:
    """Return a number of seconds, or None for no limit.

    Raises
    ------
    ArgumentError
        If it is not a positive number.
    """
    return None if seconds is None else check_positive("seconds", seconds)
