"""Which backend compiles a fit, how repeats enter its graph, and what a step may cost."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from pytensor.graph.basic import Variable

from pymc_flows.density import ModelDensity
from pymc_flows.examine import DrawPlan, bytes_per_draw, has_jax, missing_ops
from pymc_flows.flows.chain import Chain, Loop

_log = logging.getLogger(__name__)


def choose_backend(
    backend: str | None,
    chain: Chain,
    density: ModelDensity,
    n_draws: int,
    replacements: Mapping[Variable, Variable] | None = None,
) -> str:
    """Choose the backend of a fit; log the choice.

    The rule: a given backend is taken. Otherwise JAX, if it is installed and has all Ops of the
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
        elif missing := missing_ops(density, "jax", replacements):
            backend, why = "numba", f"JAX has no {', '.join(missing)}"
        else:
            backend, why = "jax", "it is installed and runs the model"
    _log.info(
        "Backend %s (%s): %d layers, %d draws per step, %d dimensions.",
        backend,
        why,
        len(chain),
        n_draws,
        chain.dim,
    )
    return backend


def layer_loop(backend: str) -> Loop:
    """How repeats of a layer enter the training graph.

    On JAX as a scan: constant compile time at nearly the same speed. On numba a scan inside the
    scan over steps takes minutes to compile and runs at a step per second, so there layers with a
    kernel Op use it and others are copied.
    """
    return "scan" if backend == "jax" else "kernel"


def step_seconds(chain: Chain, density: ModelDensity, plan: DrawPlan, n_draws: int) -> float:
    """Rough seconds per step from the sizes involved, to choose the length of the first call."""
    if plan.micro_batch is None and n_draws > 1:
        model = 50e-6 * n_draws
    else:
        model = n_draws * bytes_per_draw(density) / 5e9
    return 1e-6 + model + 160 * n_draws * chain.dim * len(chain) / 5e9
