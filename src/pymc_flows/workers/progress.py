"""The progress bar of tasks: PyMC's own."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn

from pymc_flows.support.compat import CustomProgress, default_progress_theme


class TaskProgress:
    """Shows how many tasks have ended.

    Parameters
    ----------
    total : int
    show : bool
    """

    def __init__(self, total: int, *, show: bool):
        self._progress = CustomProgress(
            *Progress.get_default_columns(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[now]}"),
            console=Console(theme=default_progress_theme),
            disable=not show,
        )
        self._total = total

    def __enter__(self) -> TaskProgress:
        """Show it."""
        self._progress.__enter__()
        self._task = self._progress.add_task("Fitting:", total=self._total, now="")
        return self

    def __exit__(self, *failure: Any) -> None:
        """Stop, and leave the last state visible."""
        self.show("")
        self._progress.__exit__(*failure)

    def show(self, now: str) -> None:
        """Show which tasks are running."""
        self._progress.update(self._task, now=now)

    def advance(self) -> None:
        """Count one more."""
        self._progress.advance(self._task)
