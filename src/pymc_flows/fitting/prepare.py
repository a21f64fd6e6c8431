"""What happens before the first step of a fit: checks, decisions, and the loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from pytensor.graph.basic import Variable

from pymc_flows.approximation import NormalizingFlow
from pymc_flows.callbacks import Tracker
from pymc_flows.errors import ArgumentError
from pymc_flows.fitting.checkpoint import make_recipe
from pymc_flows.fitting.session import Callback, FitState, call_interval
from pymc_flows.fitting.step import build_step
from pymc_flows.model.backend import choose_backend, layer_loop, requested_backend
from pymc_flows.model.examine import check_start, plan_draws, warn_if_affine
from pymc_flows.support.seeds import RandomState, integer_seed
from pymc_flows.training.annealing import Ramp
from pymc_flows.training.loop import MAX_CHUNK, TrainingLoop
from pymc_flows.training.objective import default_gradient
from pymc_flows.training.optimizers import Rated


def prepare(
    approx: NormalizingFlow,
    *,
    beta: float,
    score: bool,
    callbacks: list[Callback],
    backend: str | None,
    random_seed: RandomState,
    n_draws: int,
    optimizer: Rated,
    ramp: Ramp | None,
    gradient: str | None,
    path_from: int,
    replacements: Mapping[Variable, Variable] | None,
    compile_kwargs: Mapping[str, Any],
    **step_kwargs: Any,
) -> FitState:
    """Check everything, then build the loop, which is not compiled yet."""
    for callback in callbacks:
        if not callable(callback):
            raise ArgumentError(f"a callback must be callable, got {callback!r}")
    every = call_interval([c for c in callbacks if not isinstance(c, Tracker)])
    given = requested_backend(backend, compile_kwargs)
    approx.density.check_shapes()
    start = approx.center_point()
    check_start(approx.density, start, replacements)
    chosen = choose_backend(given, approx.chain, approx.density, n_draws, replacements, start=start)
    gradient = gradient or default_gradient(approx.chain, chosen, anneals=ramp is not None)
    warn_if_affine(approx.chain)
    trackers = [c for c in callbacks if isinstance(c, Tracker)]
    for tracker in trackers:
        tracker.prepare(approx.chain)
    step = build_step(
        approx,
        plan_draws(approx.density, n_draws, start, chosen, replacements),
        n_draws,
        optimizer,
        beta=beta,
        anneals=ramp is not None,
        gradient=gradient,
        loop=layer_loop(chosen),
        replacements=replacements,
        track_params=any(t.params for t in trackers),
        track_grads=any(t.grads for t in trackers),
        **step_kwargs,
    )
    noise_seed, model_seed = _seeds(approx, random_seed)
    loop = TrainingLoop(
        step,
        backend=chosen,
        noise_seed=noise_seed,
        model_seed=model_seed,
        max_chunk=every or MAX_CHUNK,
        compile_kwargs=compile_kwargs,
    )
    recipe = make_recipe(
        chosen,
        n_draws,
        optimizer,
        beta=beta,
        gradient=gradient,
        max_norm=step_kwargs["max_norm"],
        more_obj_params=step_kwargs["extra"],
        more_updates=step_kwargs["more_updates"],
        more_replacements=replacements,
        compile_kwargs=compile_kwargs,
    )
    has_rate = optimizer.rate is not None
    return FitState(
        loop,
        callbacks,
        optimizer.schedule,
        has_rate,
        score,
        ramp,
        path_from if gradient == "switch" else None,
        replacements,
        recipe=recipe,
    )


def _seeds(approx: NormalizingFlow, random_seed: RandomState) -> list[np.random.SeedSequence]:
    if random_seed is None:
        entropy = int(approx.rng.randint(2**30, dtype=np.int64))
    else:
        entropy = int(integer_seed(random_seed))
    return np.random.SeedSequence(entropy).spawn(2)
