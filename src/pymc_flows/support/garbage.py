"""Fewer searches for cyclic garbage while graphs are built."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

# Some megabytes of new objects.
NEW_OBJECTS = 20_000

_LOCK = Lock()
_BEFORE: list[tuple[int, int, int]] = []  # thresholds before, one for each block that is open


@contextmanager
def fewer_collections() -> Iterator[None]:
    """Let Python search for garbage after `NEW_OBJECTS` new objects, instead of 700 or 2,000.

    A graph is many small objects that refer to each other, and a process that has imported PyMC
    holds about a million more, which every full search visits: a quarter of the time of building
    the loop of a fit. The threshold belongs to the process; the last block to end restores it. A
    higher threshold, or 0 (never), stays.
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
