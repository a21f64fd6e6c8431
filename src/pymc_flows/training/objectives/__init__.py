"""What a fit minimises: the negative ELBO of a model, or the negative log likelihood of draws.

An objective checks its arguments, makes the choices that the user left open, and builds the graph
of one step. How steps are taken is the same for all.
"""

from __future__ import annotations

from typing import Any, Protocol

from pymc_flows.flows.state import FlowState
from pymc_flows.training.config import FitConfig
from pymc_flows.training.loop import Batches, Source, Step, TrainingLoop


class Objective(Protocol):
    """A loss, as `Trainer` needs it."""

    @property
    def q(self) -> FlowState:
        """What is fitted."""

    @property
    def source(self) -> Source | None:
        """Makes the random input of a step; None for base noise."""

    def batches(self, seed: int) -> Batches | None:
        """Provides data that differ by step; None without any."""

    def step(self, config: FitConfig) -> tuple[FitConfig, Step]:
        """Check and complete the arguments; return them, and the graph of a step."""

    def record(self) -> dict[str, Any]:
        """The objective for a file, as JSON."""

    def why_stuck(self, loop: TrainingLoop, config: FitConfig) -> str:
        """Say why the last step failed, and what to do."""
