"""Which backend compiles a fit, and how repeats of a layer enter its graph."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from pytensor.compile.mode import get_mode

from pymc_flows.backends.jax import has_jax
from pymc_flows.errors import BackendError
from pymc_flows.flows.chain import Chain, Loop
from pymc_flows.model.dry_run import dry_run
from pymc_flows.model.examine import check_backend
from pymc_flows.model.logp import ModelDensity, Replacements

_log = logging.getLogger(__name__)


def requested_backend(backend: str | None, compile_kwargs: Mapping[str, Any]) -> str | None:
    """Return the backend that was asked for, by name or by a PyTensor mode; None if none was.

    Raises
    ------
    BackendError
        If it is unknown, not installed, or asked for in both ways.
    """
    check_backend(backend)
    if "mode" not in compile_kwargs:
        return backend
    if backend is not None:
        raise BackendError("give backend= or compile_kwargs['mode'], not both")
    linker = get_mode(compile_kwargs["mode"]).linker
    return "jax" if type(linker).__name__ == "JAXLinker" else "numba"


def choose_backend(
    backend: str | None,
    chain: Chain,
    density: ModelDensity,
    n_draws: int,
    replacements: Replacements = None,
    *,
    start: np.ndarray | None = None,
) -> str:
    """Choose the backend of a fit, and log the choice.

    A given backend is taken. Otherwise it is JAX, if that is installed and can run the model, since
    it compiles in seconds where numba takes 10 and more, and runs a step at least as fast; else
    numba.

    Parameters
    ----------
    backend : {"numba", "jax"} or None
    chain : Chain
    density : ModelDensity
    n_draws : int
        Draws per step.
    replacements : mapping, optional
        Replacements in the log density.
    start : ndarray, shape (dim,), optional
        Where the log density is finite; defaults to the model's initial point.
    """
    why = "as asked"
    if backend is None:
        if not has_jax():
            backend, why = "numba", "JAX is not installed"
        else:
            start = density.start() if start is None else start
            problem = dry_run(density, replacements).why_not_jax(start)
            backend, why = "jax", "it is installed and runs the model"
            if problem:
                backend, why = "numba", f"JAX cannot run the model: {problem}"
    _log.info(
        "Backend %s (%s): %s, %s per step, %s.",
        backend,
        why,
        _counted(len(chain), "layer"),
        _counted(n_draws, "draw"),
        _counted(chain.dim, "dimension"),
    )
    return backend


def _counted(n: int, noun: str) -> str:
    return f"{n} {noun if n == 1 else noun + 's'}"


def layer_loop(backend: str) -> Loop:
    """Return how repeats of a layer enter the training graph.

    On JAX it is a scan, whose compile time is constant, at nearly the same speed. On numba a scan
    inside the scan over steps takes minutes to compile and runs at a step per second, so layers use
    their kernel Op, and those without one are copied.
    """
    return "scan" if backend == "jax" else "kernel"
