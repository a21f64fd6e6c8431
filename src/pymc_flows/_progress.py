"""The progress bar of a fit: PyMC's own, with loss and steps per second."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

import numpy as np
from pymc.progress_bar import CustomProgress
from rich.console import Console
from rich.progress import Progress, TextColumn


class FitProgress:
    """Shows how far a fit is; costs one update per call of the compiled loop.

    Parameters
    ----------
    total : int
        Steps.
    theme : rich.theme.Theme
    show : bool
    """

    def __init__(self, total: int, theme: Any, *, show: bool):
        self._progress = CustomProgress(
            *Progress.get_default_columns(),
            TextColumn("{task.fields[loss]}"),
            TextColumn("{task.fields[speed]}"),
            console=Console(theme=theme),
            disable=not show,
        )
        self._total = total
        self._last = -1.0

    def __enter__(self) -> FitProgress:
        """Start the bar."""
        self._progress.__enter__()
        self._task = self._progress.add_task("Fitting:", total=self._total, loss="", speed="")
        self._begin: float | None = None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the bar as it is."""
        self._progress.__exit__(kind, error, trace)

    def update(self, done: int, losses: np.ndarray) -> None:
        """Show ``done`` steps, their recent average loss in nats, and the speed after the first call."""
        now = time.perf_counter()
        if self._begin is None:  # the first call compiles
            self._begin, self._first = now, done
        elif now - self._last < 0.1 and done < self._total:
            return
        self._last = now
        elapsed = now - self._begin
        speed = f"{(done - self._first) / elapsed:,.0f} steps/s" if elapsed > 0.0 else ""
        recent = losses[-1000:]
        recent = recent[np.isfinite(recent)]
        loss = f"Average Loss = {recent.mean():,.5g}" if len(recent) else ""
        self._progress.update(self._task, completed=done, loss=loss, speed=speed)
