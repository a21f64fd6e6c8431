"""Python's search for cyclic garbage, less often while graphs are built."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

# Some megabytes of new objects.
NEW_OBJECTS = 20_000

_LOCK = Lock()
_BEFORE: list[tuple[int, int, int]] = []  # of each block that threads are in


@contextmanager
def fewer_collections() -> Iterator[None]:
    """Let Python look for garbage each time that there are `NEW_OBJECTS` more, not 700 or 2,000.

    A graph is many small objects that refer to each other, and a process that has imported PyMC
    holds about a million more, which are gone through again and again: a quarter of the time of
    building the loop of a fit. The threshold is that of the process, and the last block to end puts
    it back. One that is higher, or 0, which is never, stays.
    """
    with _LOCK:
        before = gc.get_threshold()
        _BEFORE.append(_BEFORE[0] if _BEFORE else before)
        if 0 < before[0] < NEW_OBJECTS:
            gc.set_threshold(NEW_OBJECTS, *before[1:])
    try:
        yield
    finally:
        with _LOCK:
            before = _BEFORE.pop()
            if not _BEFORE:
                gc.set_threshold(*before)
