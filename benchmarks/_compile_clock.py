"""Seconds that a fit spends compiling, whichever library asks for it."""

from __future__ import annotations

import bisect
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any
from unittest import mock

import pytensor
from numba.core import event

from benchmarks._common import Seconds
from pymc_flows.training.loop import TrainingLoop

type Span = tuple[float, float]
NUMBA_EVENT = "numba:compile"
BETWEEN_LOOKS = 0.02  # seconds


class CompileClock:
    """Collects spans of time; what overlaps counts once."""

    def __init__(self) -> None:
        self._wall: list[Span] = []
        self._cpu: list[Span] = []

    @property
    def seconds(self) -> Seconds:
        """Time so far."""
        return Seconds(covered(self._wall), covered(self._cpu))

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the block."""
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self._wall.append((wall, time.perf_counter()))
            self._cpu.append((cpu, time.process_time()))

    def add(self, seconds: float, course: Course) -> None:
        """Count the last so many wall seconds, and the CPU time that went by in them."""
        wall, cpu = time.perf_counter(), time.process_time()
        self._wall.append((wall - seconds, wall))
        self._cpu.append((course.cpu_at(wall - seconds), cpu))


class Course:
    """Looks at the CPU time of this process now and then, to say what it was at a wall time.

    On a busy machine a wall second may hold little CPU time, and others tell only wall seconds.
    """

    def __init__(self) -> None:
        self.looks: list[tuple[float, float]] = []
        self._ends = threading.Event()

    def look(self) -> None:
        """Remember the times of now."""
        self.looks.append((time.perf_counter(), time.process_time()))

    def cpu_at(self, wall: float) -> float:
        """CPU time at a wall time, between the looks around it."""
        after = bisect.bisect(self.looks, (wall,))
        if after == 0 or after == len(self.looks):
            return self.looks[min(after, len(self.looks) - 1)][1]
        (wall_0, cpu_0), (wall_1, cpu_1) = self.looks[after - 1 : after + 1]
        return cpu_0 + (cpu_1 - cpu_0) * (wall - wall_0) / (wall_1 - wall_0)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Look while the block runs."""

        def watch() -> None:
            while not self._ends.wait(BETWEEN_LOOKS):
                self.look()

        self.look()
        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ends.set()
            thread.join()


@contextmanager
def compile_clock() -> Iterator[CompileClock]:
    """Count what compiles in the block.

    That is: `pytensor.function`, the first call of a training loop (in which the backend
    compiles), and whatever numba and JAX say of themselves, in particular in first calls of other
    functions.
    """
    clock = CompileClock()
    with ExitStack() as stack:
        for place, name in ((pytensor, "function"), (TrainingLoop, "compile")):
            counted = _counted(getattr(place, name), clock)
            stack.enter_context(mock.patch.object(place, name, counted))
        stack.enter_context(event.install_listener(NUMBA_EVENT, _NumbaListener(clock)))
        stack.enter_context(_jax_listener(clock))
        yield clock


def covered(spans: list[Span]) -> float:
    """Length of the union of some spans."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


def _counted(function: Callable[..., Any], clock: CompileClock) -> Callable[..., Any]:
    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with clock.running():
            return function(*args, **kwargs)

    return call


class _NumbaListener(event.Listener):
    def __init__(self, clock: CompileClock):
        self._clock = clock
        self._open: list[ExitStack] = []

    def on_start(self, event: event.Event) -> None:
        stack = ExitStack()
        stack.enter_context(self._clock.running())
        self._open.append(stack)

    def on_end(self, event: event.Event) -> None:
        self._open.pop().close()


@contextmanager
def _jax_listener(clock: CompileClock) -> Iterator[None]:
    try:
        from jax import monitoring
    except ImportError:
        yield
        return

    course = Course()

    def hear(name: str, seconds: float, **_: object) -> None:
        # Tracing, lowering and compiling; other durations are not under this name.
        if name.startswith("/jax/core/compile/"):
            clock.add(seconds, course)

    monitoring.register_event_duration_secs_listener(hear)
    try:
        with course.running():
            yield
    finally:
        monitoring.unregister_event_duration_listener(hear)
