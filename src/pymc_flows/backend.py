"""Which backend compiles a fit, and how repeats of a layer enter its graph."""

from __future__ import annotations

import logging

from pymc_flows._jax import has_jax
from pymc_flows._trial import trial
from pymc_flows.density import ModelDensity, Replacements
from pymc_flows.flows.chain import Chain, Loop

_log = logging.getLogger(__name__)


def choose_backend(
    backend: str | None,
    chain: Chain,
    density: ModelDensity,
    n_draws: int,
    replacements: Replacements = None,
) -> str:
    """Choose the backend of a fit; log the choice.

    The rule: a given backend is taken. Otherwise JAX, if it is installed and can run the
    model, since it compiles in seconds where numba takes 10 and more, and runs a step at least
    as fast; else numba.

    Parameters
    ----------
    backend : {"numba", "jax"} or None
    chain : Chain
    density : ModelDensity
    n_draws : int
        Draws per step.
    replacements : mapping, optional
        Replacements in the log density.
    """
    why = "as asked"
    if backend is None:
        if not has_jax():
            backend, why = "numba", "JAX is not installed"
        elif problem := trial(density, replacements).why_not_jax(density.start()):
            backend, why = "numba", f"JAX cannot run the model: {problem}"
        else:
            backend, why = "jax", "it is installed and runs the model"
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
    """How repeats of a layer enter the training graph.

    On JAX as a scan: constant compile time at nearly the same speed. On numba a scan inside the
    scan over steps takes minutes to compile and runs at a step per second, so there layers with a
    kernel Op use it and others are copied.
    """
    return "scan" if backend == "jax" else "kernel"
