"""Checks of a log density before a training function is compiled for it.

Is it finite at the start, and does it have a gradient? Can it be evaluated for many draws at once
(tried on a few draws, without compiling), how many of them fit into memory, and can the backend run
it?
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import numpy as np

from pymc_flows.backends.jax import has_jax
from pymc_flows.backends.modes import BACKENDS
from pymc_flows.errors import BackendError, ModelError
from pymc_flows.flows.base import AFFINE
from pymc_flows.flows.chain import Chain
from pymc_flows.model.dry_run import dry_run
from pymc_flows.model.logp import ModelDensity, Replacements
from pymc_flows.model.streams import stream_of
from pymc_flows.model.terms import terms_at

_log = logging.getLogger(__name__)

# Unfused intermediates (value and gradient of the log density) of one micro-batch of draws may
# take this many bytes. A constant, never free memory: the same seed must give the same bits.
MICRO_BATCH_BYTES = 512 * 2**20
# Rows in tiles, times draws, that a core evaluates in about a second. On JAX a call has a fixed
# number of steps, and those that it skips are not free: 45 ms for 3,000.
ROWS_OF_A_SECOND = 200_000_000


@dataclass(frozen=True)
class DrawPlan:
    """How the draws of one step go through the log density.

    Attributes
    ----------
    micro_batch : int or None
        Draws evaluated at once; None for a scan over single draws.
    reason : str
        Why draws are looped over, naming the Op; empty when they are not.
    tiled : bool
        Whether sums over many rows are taken tile by tile, for all draws at once.
    most_steps : int, optional
        Number of steps that take about a second, estimated from the rows in tiles.
    """

    micro_batch: int | None
    reason: str = ""
    tiled: bool = False
    most_steps: int | None = None


def check_start(
    density: ModelDensity, start: np.ndarray, replacements: Replacements = None
) -> None:
    """Raise `ModelError` unless the log density has a gradient and is finite at a start (dim,)."""
    if not np.isfinite(dry_run(density, replacements).values(start)).all():
        raise ModelError(blame(density.replaced(replacements), start))


def blame(density: ModelDensity, start: np.ndarray) -> str:
    """Name the terms of the model that are not finite at a start (dim,)."""
    values = {name: x[0] for name, x in terms_at(density, start[None]).items()}
    bad = [name for name, value in values.items() if not np.isfinite(value)]
    shown = ", ".join(
        f"{s.name}={np.array2string(start[s.slice].reshape(s.shape), threshold=6)}"
        for s in density.slots
    )
    lines = [
        "the log density of the model is not finite at the start",
        *(f"  {name}: log density {values[name]}" for name in bad),
        f"at {shown}",
    ]
    if observed := [rv.name for rv in density.model.observed_RVs if rv.name in bad]:
        lines.append(
            f"Look at the data of {', '.join(observed)} first: a value that is infinite, or "
            "outside of the support, has no density anywhere."
        )
    lines.append(
        "Give the model another initial point (initval=) or pass start=; model.debug() shows the "
        "parameters of each term."
    )
    return "\n".join(lines)


def why_not_finite(density: ModelDensity, points: np.ndarray) -> str:
    """Say which terms of the model are not finite, and at how many of the points (n, dim)."""
    lines = [
        f"  {name}: not finite at {int((~np.isfinite(x)).sum())} of {len(points)} draws"
        for name, x in terms_at(density, points).items()
        if not np.isfinite(x).all()
    ]
    if not np.isfinite(points).all():
        lines.insert(0, "  the flow itself: draws are not finite")
    return "\n".join(lines or ["  all terms are finite at the current draws; a gradient is not"])


def plan_draws(
    density: ModelDensity,
    n_draws: int,
    start: np.ndarray,
    backend: str,
    replacements: Replacements = None,
    *,
    may_tile: bool = False,
) -> DrawPlan:
    """Decide how ``n_draws`` draws go through the log density on ``backend``.

    Parameters
    ----------
    density : ModelDensity
    n_draws : int
    start : ndarray, shape (dim,)
    backend : {"numba", "jax"}
    replacements : mapping, optional
    may_tile : bool
        Whether sums over rows may be taken tile by tile.

    Raises
    ------
    BackendError
        If the backend lacks an Op of the log density.
    """
    attempt = dry_run(density, replacements)
    if backend == "jax" and (problem := attempt.why_not_jax(start)):
        raise BackendError(f"jax cannot run this model: {problem}\nUse backend='numba'.")
    if n_draws == 1:
        return DrawPlan(None)
    if reason := attempt.why_not_batched(start, backend):
        attempt.say_once(f"Draws are evaluated one after the other: {reason}.")
        return DrawPlan(None, reason)
    if may_tile and (sums := density.rows_in_tiles(n_draws, replacements)):
        lengths = frozenset(x.tile.n for x in sums)
        if n_draws * attempt.bytes_per_draw(start, apart_from=lengths) <= MICRO_BATCH_BYTES:
            work = n_draws * sum(x.tile.n for x in sums)
            return DrawPlan(n_draws, tiled=True, most_steps=max(2, ROWS_OF_A_SECOND // work))
    limit = max(1, MICRO_BATCH_BYTES // max(1, attempt.bytes_per_draw(start)))
    return DrawPlan(math.ceil(n_draws / math.ceil(n_draws / limit)))


def warn_if_affine(chain: Chain) -> None:
    """Warn of couplings and autoregressive layers that have nothing to depend on."""
    words = sorted({b.layer.word for b in chain.blocks if b.layer.note(chain.dim) == AFFINE})
    if words:
        _log.warning(
            "The model has one unconstrained scalar, and each layer %s is %s: it adds nothing to "
            "scale-loc. Take spline*2-scale-loc, which bends.",
            ", ".join(words),
            AFFINE,
        )


def check_backend(backend: object) -> None:
    """Raise `BackendError` if ``backend`` is neither None nor the name of a usable backend."""
    if backend is None:
        return
    if backend not in BACKENDS:
        raise BackendError(
            f"unknown backend {backend!r}\nexpected one of {', '.join(map(repr, BACKENDS))} or None"
        )
    if backend == "jax" and not has_jax():
        raise BackendError(
            "backend 'jax' is not installed\ninstall jax, or leave backend out to use numba"
        )


def has_weights(density: ModelDensity) -> bool:
    """Whether draws can have importance weights: all of the data are known."""
    return not density.is_random or stream_of(density) is not None


def check_has_weights(density: ModelDensity) -> None:
    """Raise `ModelError` if the log density is random, or other processes have some of the rows.

    A minibatch with ``total_size=`` is no such case: weights are computed from all of its rows.
    """
    if not density.has_all_rows:
        raise ModelError(
            "the model has the rows of this process alone, so that draws have no importance "
            "weights\nSave the approximation, and load it with a model of all rows and "
            "check_density=False."
        )
    if not has_weights(density):
        raise ModelError(
            "the model's log density is random (a minibatch or a simulator), so that draws have "
            "no importance weights\n"
            "Give what is observed total_size=, and draw all minibatches by one call of "
            "pm.Minibatch: then all rows are known. Or build the same model with all of the data "
            "and use it as the context: with full_model: ..."
        )
