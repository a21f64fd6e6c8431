"""Processes of their own for measurements: one core, one thread, empty caches."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from benchmarks._common import ROOT, Row

# Read when the libraries are imported, so a process gets them from the one that starts it.
SINGLE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}
# Of a process on a busy machine.
PATIENCE = 10


@contextmanager
def one_core() -> Iterator[int | None]:
    """Let the processes that are started inside run on one core; None where that cannot be set."""
    if not hasattr(os, "sched_setaffinity"):
        yield None
        return
    before = os.sched_getaffinity(0)
    core = max(before)
    os.sched_setaffinity(0, {core})
    try:
        yield core
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def empty_caches() -> Iterator[dict[str, str]]:
    """Environment variables of processes that share caches, empty at first."""
    with tempfile.TemporaryDirectory() as cache:
        flags = f"{os.environ.get('PYTENSOR_FLAGS', '')},base_compiledir={cache}/pytensor"
        yield {
            "PYTENSOR_FLAGS": flags.strip(","),
            "NUMBA_CACHE_DIR": f"{cache}/numba",
            "JAX_ENABLE_COMPILATION_CACHE": "false",
        }


class ChildError(RuntimeError):
    """A benchmark's process that gave no result.

    Attributes
    ----------
    is_late : bool
        Whether it was ended because it took too long.
    """

    def __init__(self, message: str, *, is_late: bool = False):
        super().__init__(message)
        self.is_late = is_late


def run_child(
    module: str,
    arguments: Sequence[object],
    environment: Mapping[str, str],
    *,
    cpu_seconds: int | None = None,
) -> Row:
    """Run a benchmark with arguments under which it prints JSON on its last line; return that.

    Parameters
    ----------
    module : str
        Name of the benchmark.
    arguments : sequence
    environment : mapping of str to str
        Variables besides those of this process.
    cpu_seconds : int, optional
        The process ends after that much work, or after `PATIENCE` times that many seconds without.

    Raises
    ------
    ChildError
        If it fails, or ends late.
    """
    command = [sys.executable, "-m", f"benchmarks.{module}", *map(str, arguments)]
    pipe, env = subprocess.PIPE, {**os.environ, **environment}
    with subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=pipe, stderr=pipe, text=True
    ) as process:
        timeout = None
        if cpu_seconds is not None:
            # From here, since a function that runs in the child before the command needs a fork.
            resource.prlimit(process.pid, resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))
            timeout = PATIENCE * cpu_seconds
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired as error:
            process.kill()
            raise ChildError(f"not done after {error.timeout:g} s", is_late=True) from error
    if cpu_seconds is not None and process.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        raise ChildError(f"not done after {cpu_seconds} CPU s", is_late=True)
    if process.returncode:
        raise ChildError(f"{' '.join(command[2:])} failed ({process.returncode})\n{err.strip()}")
    return json.loads(out.splitlines()[-1])
