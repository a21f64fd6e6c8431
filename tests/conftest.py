"""Settings that every test shares."""

import gc
import importlib
import os
import signal
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import hypothesis
import numpy as np
import pytest

pytest_plugins = ["skips", "needs_jax"]

# These are read when PyTensor, JAX and matplotlib are first imported. A developer's own settings
# must not change what is tested; the device that JAX runs on may be chosen. Where a variable of a
# graph was made is shown in errors alone, and takes half of the time of making it. PyMC folds the
# constants of its densities in C, which takes a second or two for each new Op; here NumPy does.
FLAGS = "floatX=float64,traceback__limit=0,cxx="
os.environ["PYTENSOR_FLAGS"] = f"{os.environ.get('PYTENSOR_FLAGS', '')},{FLAGS}"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["MPLBACKEND"] = "Agg"

# Workers, kernels and programs import the same libraries. Each would compile them anew where
# Python is told to write no bytecode, which takes ten seconds in a process that imports them all.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# The first example that compiles a graph is slow, so a deadline would say nothing. A run in
# continuous integration repeats itself exactly; a local one explores.
hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")

_FILE = [""]  # of the test that runs


def pytest_collection_finish() -> None:
    """Keep the garbage collector from what stays: it took a fifth of the time of making graphs."""
    gc.freeze()
    gc.set_threshold(20_000, 1_000, 1_000)


def pytest_runtest_logstart(nodeid: str, location: tuple[str, int | None, str]) -> None:
    """Collect once a file what young collections leave, and keep the rest: imports and caches."""
    if location[0] != _FILE[0]:
        _FILE[0] = location[0]
        gc.collect()
        gc.freeze()


def pytest_sessionfinish() -> None:
    """Let the end of the process clear what was kept: a frozen graph outlived what it refers to."""
    gc.unfreeze()


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """A generator of the test's own: its stream depends on the names of file and test alone."""
    name = request.node.nodeid.rpartition("/")[2]
    return np.random.default_rng(zlib.crc32(name.encode()))


@pytest.fixture(scope="module")
def bench() -> Iterator[SimpleNamespace]:
    """The modules of the benchmarks by name; the one that needs an optional library is left out."""
    root = Path(__file__).parents[1]
    names = {path.stem for path in (root / "benchmarks").glob("*.py")}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(root))
        modules = {
            name: importlib.import_module(f"benchmarks.{name}")
            for name in sorted(names - {"__init__", "jax_by_hand"})
        }
        yield SimpleNamespace(**modules)


@pytest.fixture(autouse=True)
def _close_figures() -> Iterator[None]:
    """Leave no figure open for the next test; never the reason that matplotlib is imported."""
    yield
    if (pyplot := sys.modules.get("matplotlib.pyplot")) is not None:
        pyplot.close("all")


@pytest.fixture(scope="session", autouse=True)
def _interrupts_are_heard() -> Iterator[None]:
    """Shells start background jobs deaf to SIGINT; the tests that send one need it."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
