"""A time until which work may go on."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from pymc_flows.errors import ArgumentError


@dataclass(frozen=True)
class Deadline:
    """A moment on the wall clock; work that has a next unit asks before it begins one.

    Attributes
    ----------
    at : float
        In seconds of `time.perf_counter`; ∞ for no end.
    """

    at: float = math.inf

    @classmethod
    def after(cls, seconds: float | None) -> Deadline:
        """The moment in so many seconds from now; none of None."""
        return cls() if seconds is None else cls(time.perf_counter() + seconds)

    @property
    def left(self) -> float:
        """Seconds until then; negative afterwards."""
        return self.at - time.perf_counter()

    @property
    def has_passed(self) -> bool:
        """Whether it is later than that."""
        return self.left <= 0

    def share(self, part: float) -> Deadline:
        """The moment when this part of the time that is left will have passed."""
        return self if math.isinf(self.at) else Deadline.after(part * self.left)


def check_seconds(seconds: object) -> float | None:
    """Return a number of seconds, or None for no bound.

    Raises
    ------
    ArgumentError
        If it is no positive number.
    """
    if seconds is None:
        return None
    if isinstance(seconds, int | float) and not isinstance(seconds, bool):
        if 0 < seconds < math.inf:
            return float(seconds)
    raise ArgumentError(f"seconds must be a positive number or None, got {seconds!r}")
