"""The progress bar of a fit: PyMC's own, with loss and steps per second."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

import numpy as np
from pymc.progress_bar import CustomProgress
from rich.console import Console
from rich.progress import Progress, TextColumn

# Seconds between updates; rich draws ten times a second.
INTERVAL = 0.1
# The loss shown is an average over this many steps, as in PyMC.
WINDOW = 1000


class FitProgress:
    """Shows how far a fit is; costs next to nothing per call of the compiled loop.

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
        self._shows = show
        self._state: tuple[int, np.ndarray] | None = None
        self._begin = self._last = 0.0

    def __enter__(self) -> FitProgress:
        """Show an empty bar."""
        self._progress.__enter__()
        self._task = self._progress.add_task("Compiling:", total=self._total, loss="", speed="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Show the last state, and leave the bar there."""
        self._show()
        self._progress.__exit__(kind, error, trace)

    def begin(self) -> None:
        """Say that compiling is over; the time of the steps starts."""
        self._progress.update(self._task, description="Fitting:")
        self._begin = time.perf_counter()

    def update(self, done: int, losses: np.ndarray) -> None:
        """Show ``done`` steps, the average of their last losses in nats, and the speed."""
        self._state = (done, losses)
        if time.perf_counter() - self._last >= INTERVAL:
            self._show()

    def _show(self) -> None:
        if self._state is None or not self._shows:
            return
        done, losses = self._state
        self._last = time.perf_counter()
        speed = done / max(self._last - self._begin, 1e-9)
        recent = losses[-WINDOW:]
        recent = recent[np.isfinite(recent)]
        loss = f"Average Loss = {recent.mean():,.5g}" if len(recent) else ""
        self._progress.update(self._task, completed=done, loss=loss, speed=f"{speed:,.0f} steps/s")
