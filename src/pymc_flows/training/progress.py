"""Progress bars: PyMC's own, with loss and steps per second, and one for a search of fits."""

from __future__ import annotations

import builtins
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from pymc_flows.support.compat import CustomProgress

# Seconds between updates; rich draws ten times a second.
INTERVAL = 0.1
# The loss shown is an average over this many steps, as in PyMC.
WINDOW = 1000
# Most characters of a formula that are shown.
MAX_LABEL = 32


class FitProgress:
    """Shows the progress of a fit; costs next to nothing per call of the compiled loop.

    A bar in a terminal and in Jupyter. Where ipywidgets is missing, which rich needs for a bar in
    Jupyter, a line of text is kept up to date instead. A long label is cut.
    """

    def __init__(self, total: int, theme: Any, *, show: bool, label: str):
        console = Console(theme=theme)
        self._is_text = show and _needs_text(console)
        self._progress = CustomProgress(
            *Progress.get_default_columns(),
            TextColumn("{task.fields[loss]}"),
            TextColumn("{task.fields[speed]}"),
            console=console,
            disable=self._is_text or not show,
        )
        self._label = label if len(label) <= MAX_LABEL else label[: MAX_LABEL - 1] + "…"
        self._total = total
        self._shows = show
        self._state: tuple[int, np.ndarray] | None = None
        self._begin = self._last = 0.0

    def __enter__(self) -> FitProgress:
        """Show that compiling begins."""
        self._progress.start()
        self._task = self._progress.add_task(
            f"Compiling {self._label}:", total=self._total, loss="", speed=""
        )
        if self._is_text:
            _publish(f"Compiling {self._label}", f"fit-{id(self)}", update=False)
        return self

    def __exit__(self, *error: object) -> None:
        """Show the last state, and leave it there."""
        self._show()
        self._progress.stop()

    def begin(self) -> None:
        """Say that compiling is over; the time of the steps starts."""
        self._progress.update(self._task, description=f"Fitting {self._label}:")
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
        speed = f"{done / max(self._last - self._begin, 1e-9):,.0f} steps/s"
        recent = losses[-WINDOW:]
        recent = recent[np.isfinite(recent)]
        loss = f"Average Loss = {recent.mean():,.5g}" if len(recent) else ""
        self._progress.update(self._task, completed=done, loss=loss, speed=speed)
        if self._is_text:
            text = f"Fitting {self._label}: {done:,} of {self._total:,} steps  {loss}  {speed}"
            _publish(text, f"fit-{id(self)}", update=True)


class SearchProgress:
    """Shows the stage of a search by several fits, the gap of the last fit, and the time.

    The bar of a fit takes its place while that is trained. It leaves nothing behind. In a notebook
    without ipywidgets it is a line of text.
    """

    def __init__(self, theme: Any, *, show: bool):
        console = Console(theme=theme)
        self._is_text = show and _needs_text(console)
        self._progress = CustomProgress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=self._is_text or not show,
        )
        self._task = self._progress.add_task("", total=None)
        self._stage, self._gap = "", ""
        self._is_written = False

    def __enter__(self) -> SearchProgress:
        """Begin."""
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        """End."""
        self._progress.stop()

    def say(self, stage: str) -> None:
        """Show what is being done now."""
        self._stage = stage
        self._show()

    def reach(self, gap: float) -> None:
        """Show the gap of the last fit to the evidence, in nats."""
        self._gap = f"; gap of the last {gap:.3g} nats" if np.isfinite(gap) else ""
        self._show()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Make room for another bar."""
        self._progress.stop()
        try:
            yield
        finally:
            self._progress.start()

    def _show(self) -> None:
        text = f"{self._stage}{self._gap}"
        self._progress.update(self._task, description=text)
        if self._is_text:
            _publish(text, f"search-{id(self)}", update=self._is_written)
            self._is_written = True


def _needs_text(console: Console) -> bool:
    """Whether rich can show no bar here: in Jupyter it needs ipywidgets."""
    return bool(console.is_jupyter) and find_spec("ipywidgets") is None


def _publish(text: str, name: str, *, update: bool) -> None:
    """Show a line of text in a notebook, or change the one of this name."""
    shell = vars(builtins)["get_ipython"]()  # what IPython leaves there for code that it runs
    shell.display_pub.publish({"text/plain": text}, transient={"display_id": name}, update=update)
