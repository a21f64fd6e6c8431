"""What a fit minimises: the negative ELBO of a model, or the negative log likelihood of draws.

An objective checks what it is given, decides what the user left open, and makes the graph of one
step; how steps are taken is the same for all.
"""

from __future__ import annotations

from typing import Any, Protocol

from pymc_flows.flows.state import FlowState
from pymc_flows.training.config import FitConfig
from pymc_flows.training.loop import Batches, Source, Step, TrainingLoop


class Objective(Protocol):
    """What `Trainer` needs to know of a loss."""

    @property
    def q(self) -> FlowState:
        """What is fitted."""

    @property
    def source(self) -> Source | None:
        """Makes what a step gets anew each time; None for base noise."""

    def batches(self, seed: int) -> Batches | None:
        """Brings data of which each step sees another part; None for none."""

    def step(self, config: FitConfig) -> tuple[FitConfig, Step]:
        """Check the arguments; return them with what was left open, and the graph of a step."""

    def record(self) -> dict[str, Any]:
        """What a file says of it."""

    def why_stuck(self, loop: TrainingLoop, config: FitConfig) -> str:
        """Say why the last step failed, and what to do."""
