"""The objective of `fit_draws`: the mean of −ln q over given draws."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.tensor.variable import TensorVariable

from pymc_flows.flows.chain import Loop
from pymc_flows.flows.state import FlowState, base_log_prob
from pymc_flows.model.backend import layer_loop
from pymc_flows.training.config import FitConfig
from pymc_flows.training.loop import Source, Step, TrainingLoop, split_by_block
from pymc_flows.training.loop.noise import aligned_zeros
from pymc_flows.training.objectives.loss import Loss, mean_of_finite
from pymc_flows.training.objectives.step import optimizer_step, packing_of


@dataclass(frozen=True, eq=False)
class Likelihood:
    """The mean of −ln q over draws, in nats of the unconstrained space.

    Attributes
    ----------
    q : FlowState
    points : ndarray, shape (n, dim)
        Each step takes a random sample of them.
    """

    q: FlowState
    points: np.ndarray

    @property
    def source(self) -> Source:
        """Chooses draws, in the coordinates of the frame, where the flow is fitted."""
        standard = self.q.frame.inverse(self.points).astype(pytensor.config.floatX)

        def choose(
            rng: np.random.Generator, n: int, shape: tuple[int, ...], dtype: str
        ) -> np.ndarray:
            chosen = aligned_zeros(shape, dtype)
            chosen[:n] = standard[rng.integers(len(standard), size=(n, shape[1]))]
            return chosen

        return choose

    def batches(self, seed: int) -> None:
        """None: `source` chooses draws."""

    def step(self, config: FitConfig) -> tuple[FitConfig, Step]:
        """Make the graph of a step."""
        q, dtype = self.q, pytensor.config.floatX
        rows = pt.matrix("draws", shape=(config.obj_n_mc, q.dim), dtype=dtype)
        # Inverses have no kernels.
        loop: Loop = "scan" if layer_loop(str(config.backend)) == "scan" else "unroll"
        packing, params = packing_of(q, config), list[Any](q.params)
        if packing is not None:
            params = [packing.theta]
            q = replace(q, blocks=tuple(split_by_block(q.chain, packing.theta, loop)))
        value, lost = loss_and_lost(q, rows, loop)
        loss = Loss(value, pytensor.grad(value, params), lost)
        return config, optimizer_step(self.q, config, packing, rows, loss)

    def record(self) -> dict[str, Any]:
        """Nothing: such a fit is in no file."""
        return {}

    def why_stuck(self, loop: TrainingLoop, config: FitConfig) -> str:
        """Say what to do."""
        return (
            "The density of the draws under the flow, or its gradient, is not finite\n"
            "Try a smaller step size, obj_optimizer=pm.adam(learning_rate=.001), or another "
            "formula."
        )


def loss_and_lost(
    q: FlowState, rows: TensorVariable, loop: Loop
) -> tuple[TensorVariable, TensorVariable]:
    """The loss over draws (n, dim) with a finite density, and the number of the others."""
    z0, log_det = q.chain.inverse_and_log_det(rows, q.blocks, loop=loop)
    log_q = base_log_prob(z0) - log_det
    return mean_of_finite(q.frame.graph(rows)[1] - log_q, pt.isfinite(log_q))
