"""Ctrl-C at a moment of our choosing."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType


class DeferredInterrupt:
    """Holds a Ctrl-C back while something is done that must be done completely.

    The handler that was there before then gets the signal, when the block ends. In a thread other
    than the main one, where signals do not arrive, nothing is changed; nor where Python does not
    handle SIGINT.
    """

    def __enter__(self) -> DeferredInterrupt:
        """Take over SIGINT."""
        self._arrived: tuple[int, FrameType | None] | None = None
        self._previous = None
        if threading.current_thread() is threading.main_thread():
            previous = signal.getsignal(signal.SIGINT)
            if callable(previous):
                self._previous = previous
                signal.signal(signal.SIGINT, self._hold)
        return self

    def _hold(self, signum: int, frame: FrameType | None) -> None:
        self._arrived = (signum, frame)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give SIGINT back, and let through what was held."""
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            if self._arrived is not None:
                self._previous(*self._arrived)
