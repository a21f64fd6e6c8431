"""Processes of their own for measurements: one core, one thread, empty caches."""

from __future__ import annotations

import json
import os
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


def run_child(module: str, arguments: Sequence[object], environment: Mapping[str, str]) -> Row:
    """Run a benchmark with arguments under which it prints JSON on its last line; return that."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *map(str, arguments)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[2:])} failed\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])
