"""Control of the moment when Ctrl-C takes effect."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class Interrupts:
    """Context in which Ctrl-C takes effect at the right moment.

    It has no effect outside the main thread, where signals do not arrive, or if Python does not
    handle SIGINT.

    Parameters
    ----------
    deferred : bool
        True for a block that must not be left halfway: the previous handler gets the signal when
        the block ends. False for a block that may be left anywhere but runs foreign code: if that
        code swallows the interrupt, it is raised again when the block ends. JAX, for example,
        swallows what is raised in its function for garbage collections. So run everything that
        takes long in such a block, and call `let_through` in each turn of a loop.
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
            self._arrived = None  # the handler raised nothing, so nothing can be swallowed

    def let_through(self) -> None:
        """Raise an interrupt that was deferred or swallowed now."""
        arrived, self._arrived = self._arrived, None
        if arrived is not None and self._previous is not None:
            self._previous(*arrived)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Restore the handler of SIGINT, and let a deferred or swallowed interrupt through."""
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            if not isinstance(error, KeyboardInterrupt):
                self.let_through()
