"""Workers in other processes: a pool of our own, and executors of others."""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import cloudpickle
import pytensor

from pymc_flows.support.compat import kill_workers
from pymc_flows.support.threads import BUILDING
from pymc_flows.workers.attempt import Failed, Finished, Function, attempt, portable
from pymc_flows.workers.options import Workers

# Jobs that a worker keeps unpacked, with their models and compiled functions.
KEPT_JOBS = 2


@dataclass(frozen=True)
class Job:
    """What all tasks share: a function and its first argument.

    Attributes
    ----------
    content : bytes
        Both, serialised by cloudpickle.
    float_x : str
        PyTensor's ``floatX``.
    """

    content: bytes
    float_x: str

    @classmethod
    def of(cls, function: Function, shared: Any) -> Job:
        """Pack a function and its first argument, with the settings of this process."""
        return cls(cloudpickle.dumps((function, shared)), str(pytensor.config.floatX))


@lru_cache(maxsize=KEPT_JOBS)
def _unpacked(job: Job) -> tuple[Function, Any]:
    # Functions of models are built anew here, which only one thread may do at a time.
    with BUILDING:
        found: tuple[Function, Any] = cloudpickle.loads(job.content)
    return found


def work(job: Job, task: Any) -> Finished | Failed:
    """Run a task, in the process of a worker."""
    if pytensor.config.floatX != job.float_x:
        pytensor.config.floatX = job.float_x
    try:
        function, shared = _unpacked(job)
    except Exception as error:  # such as a missing package
        return Failed(portable(error))
    return attempt(function, shared, task)


class Crew(Protocol):
    """Workers that take tasks.

    Attributes
    ----------
    width, width_after_loss : int
        Most tasks at a time, and while a task runs for the second time.
    """

    width: int
    width_after_loss: int

    def submit(self, job: Job, task: Any) -> Future[Any]:
        """Begin a task."""

    def renew(self) -> None:
        """Replace workers that died."""

    def stop(self) -> None:
        """Begin no further task."""


class Pool:
    """Processes of our own; if one dies, new ones replace all of them.

    Parameters
    ----------
    workers : Workers
    width : int
        Number of processes.
    """

    width_after_loss = 1

    def __init__(self, workers: Workers, width: int):
        self._workers, self.width = workers, width
        self._executor = self._start()

    def _start(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            self.width,
            mp_context=self._workers.context,
            initializer=_begin,
            initargs=(self._workers.blas_threads, _jax_settings()),
        )

    def submit(self, job: Job, task: Any) -> Future[Any]:
        """Begin a task."""
        return self._executor.submit(work, job, task)

    def renew(self) -> None:
        """Start new processes."""
        self.stop()
        self._executor = self._start()

    def stop(self) -> None:
        """End all processes, also those that are at work."""
        kill_workers(self._executor)


class Foreign:
    """An executor that belongs to the caller.

    Parameters
    ----------
    executor : Executor
    """

    width = width_after_loss = sys.maxsize

    def __init__(self, executor: Executor):
        self._executor = executor
        self._futures: list[Future[Any]] = []

    def submit(self, job: Job, task: Any) -> Future[Any]:
        """Begin a task."""
        future = self._executor.submit(work, job, task)
        self._futures.append(future)
        return future

    def renew(self) -> None:
        """Do nothing: the executor replaces its workers itself."""

    def stop(self) -> None:
        """Cancel the tasks that have not begun."""
        for future in self._futures:
            future.cancel()


def _begin(blas_threads: int | None, jax_settings: Mapping[str, Any]) -> None:
    """Prepare a process of a pool; only the process that waits for it handles Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if blas_threads is not None:
        from threadpoolctl import threadpool_limits

        threadpool_limits(blas_threads)
    if jax_settings:
        import jax

        for name, value in jax_settings.items():
            jax.config.update(name, value)


def _jax_settings() -> dict[str, Any]:
    """The folder of JAX's compilation cache, if this process has set one.

    All processes use the same folder for PyTensor's cache of numba anyway.
    """
    jax = sys.modules.get("jax")
    folder = None if jax is None else jax.config.jax_compilation_cache_dir
    return {} if folder is None else {"jax_compilation_cache_dir": folder}
