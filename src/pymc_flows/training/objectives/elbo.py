"""The objective of `NFVI`: the negative ELBO."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.graph.traversal import ancestors

from pymc_flows.devices import shared_out
from pymc_flows.errors import ArgumentError
from pymc_flows.flows.state import FlowState
from pymc_flows.model.backend import choose_backend, layer_loop, requested_backend
from pymc_flows.model.examine import DrawPlan, check_start, plan_draws, warn_if_affine
from pymc_flows.model.streams import stream_of
from pymc_flows.rows import Feed
from pymc_flows.training.config import FitConfig
from pymc_flows.training.loop import Step, TrainingLoop
from pymc_flows.training.loop.noise import is_on_accelerator
from pymc_flows.training.objectives.failures import why_step_failed
from pymc_flows.training.objectives.loss import (
    Estimator,
    Problem,
    default_gradient,
    loss_and_gradients,
)
from pymc_flows.training.objectives.step import optimizer_step, packing_of


@dataclass(frozen=True, eq=False)
class Elbo:
    """The negative ELBO of a flow on a model's log density, in nats."""

    problem: Problem

    source = None

    @property
    def q(self) -> FlowState:
        """What is fitted."""
        return self.problem.q

    def batches(self, seed: int) -> Feed | None:
        """Batches of rows that are not all in memory; None if all are."""
        stream = stream_of(self.problem.density)
        return stream.feed(seed) if stream is not None and stream.in_steps else None

    def step(self, config: FitConfig) -> tuple[FitConfig, Step]:
        """Check the start, choose backend and gradient, and make the graph of a step.

        Raises
        ------
        ModelError
            If the log density is not finite at the start, or has no gradient.
        BackendError
            If the backend is unknown, missing, or lacks an Op of the model.
        ArgumentError
            If the loss does not depend on one of ``more_obj_params``.
        """
        q, density, replacements = self.q, self.problem.density, config.more_replacements
        given = requested_backend(config.backend, config.compile_kwargs)
        density.check_shapes()
        devices = config.devices and shared_out(config.devices, density)
        if devices is not None:
            given = "jax"
        start = q.center()
        check_start(density, start, replacements)
        backend = choose_backend(
            given, q.chain, density, config.obj_n_mc, replacements, start=start
        )
        anneals = config.anneal is not None
        gradient = config.gradient or default_gradient(q.chain, backend, anneals=anneals)
        warn_if_affine(q.chain)
        for tracker in config.trackers:
            tracker.prepare(q.chain)
        config = replace(config, backend=backend, gradient=gradient, devices=devices)
        plan = plan_draws(
            density,
            config.obj_n_mc,
            start,
            backend,
            replacements,
            may_tile=_has_rows_here(config),
        )
        return config, self._graph(config, plan)

    def _graph(self, config: FitConfig, plan: DrawPlan) -> Step:
        dtype, extra = pytensor.config.floatX, config.more_obj_params
        temperature, path = (
            pt.scalar(name, dtype=dtype) for name in ("inverse_temperature", "path")
        )
        switches = {"total": None, "path": pt.constant(1), "switch": path}
        estimator = Estimator(
            temperature if config.anneal is not None else None, switches[str(config.gradient)]
        )
        noise = pt.matrix("z0", shape=(config.obj_n_mc, self.q.dim), dtype=dtype)
        packing = packing_of(self.q, config)
        loss = loss_and_gradients(
            self.problem,
            noise,
            plan,
            loop=layer_loop(str(config.backend)),
            theta=packing and packing.theta,
            estimator=estimator,
            extra=extra,
            replacements=config.more_replacements,
            devices=config.devices,
        )
        used = set(ancestors([loss.value]))
        for param in extra:
            if param not in used:
                raise ArgumentError(f"the loss does not depend on {param}, one of more_obj_params")
        switch = path if config.gradient == "switch" else None
        settings = [x for x in (estimator.inverse_temperature, switch) if x is not None]
        stream = stream_of(self.problem.density)
        batch = stream.batch if stream is not None and stream.in_steps else ()
        step = optimizer_step(self.q, config, packing, noise, loss, settings, batch)
        return replace(step, most=plan.most_steps)

    def record(self) -> dict[str, Any]:
        """The KL weight, under its name in PyMC, and the anchor."""
        anchor = self.problem.anchor
        found = None
        if anchor is not None:
            found = [anchor.value, anchor.point.tolist(), anchor.gradient.tolist()]
        return {"beta": self.problem.kl_weight, "anchor": found}

    def why_stuck(self, loop: TrainingLoop, config: FitConfig) -> str:
        """Say what was not finite first in the last step."""
        with np.errstate(all="ignore"):
            why = why_step_failed(self.problem, loop, config.more_replacements)
        return (
            f"{why}\nParameters are those of the last good step. Try a smaller learning_rate, "
            "another start=, or total_grad_norm_constraint=."
        )


def _has_rows_here(config: FitConfig) -> bool:
    """Whether one CPU core goes through all rows, for the gradient of the flow alone."""
    is_local = config.devices is not None and config.devices.is_local
    on_accelerator = config.backend == "jax" and is_on_accelerator()
    return not is_local and not on_accelerator and not config.more_obj_params
