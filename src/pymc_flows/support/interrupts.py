"""Ctrl-C at a moment of our choosing."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType


class Interrupts:
    """Sees to it that a Ctrl-C during a block takes effect, at the right moment.

    In a thread other than the main one, where signals do not arrive, it changes nothing; nor where
    Python does not handle SIGINT.

    Parameters
    ----------
    deferred : bool
        True for a block that must be done completely: the handler that was there before gets the
        signal when the block ends. False for one that may be left at any point but runs foreign
        code: should that swallow the interrupt, it comes again when the block ends. JAX has a
        function called at garbage collections, wherever Python is, and loses what is raised in
        it: all that takes long belongs into such a block, and a loop in it calls `let_through` in
        each turn.
    """

    def __init__(self, *, deferred: bool):
        self._deferred = deferred

    def __enter__(self) -> Interrupts:
        """Take over SIGINT."""
        self._arrived: tuple[int, FrameType | None] | None = None
        self._previous = None
        if threading.current_thread() is threading.main_thread():
            previous = signal.getsignal(signal.SIGINT)
            if callable(previous):
                self._previous = previous
                signal.signal(signal.SIGINT, self._handle)
        return self

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        self._arrived = (signum, frame)
        if not self._deferred and self._previous is not None:
            self._previous(signum, frame)
            self._arrived = None  # a handler that raises nothing has had its effect

    def let_through(self) -> None:
        """Let an interrupt that was swallowed come again now."""
        arrived, self._arrived = self._arrived, None
        if arrived is not None and self._previous is not None:
            self._previous(*arrived)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give SIGINT back, and let through what has not had its effect."""
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            if not isinstance(error, KeyboardInterrupt):
                self.let_through()
