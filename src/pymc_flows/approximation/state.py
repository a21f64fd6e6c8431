"""What an approximation needs of the distribution behind it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.tensor.variable import TensorVariable

from pymc_flows.formula import Formula


class State(Protocol):
    """A distribution q over the unconstrained space: all that `NormalizingFlow` asks of it.

    `FlowState` is the one of a flow over all coordinates. Draws, reports, plots and files use
    nothing else, so that another family of distributions needs this and no change there; what needs
    a flow over all coordinates (``inverse``, ``neutra``, training) asks for a
    `FlowState` by `NormalizingFlow.flow`.

    Points are rows (n, dim); log densities are in nats. ``params`` are what a fit trains; a state
    without any is fitted in another way.
    """

    @property
    def formula(self) -> Formula:
        """Names the family, and its layers."""

    @property
    def label(self) -> str:
        """What it is called where it is shown."""

    @property
    def dim(self) -> int:
        """Number of coordinates."""

    @property
    def chain_dim(self) -> int:
        """Number of coordinates of the formula's chain."""

    @property
    def is_framed(self) -> bool:
        """Whether it began in coordinates that were found for the posterior."""

    @property
    def params(self) -> list[SharedVariable]:
        """What a fit trains."""

    @property
    def params_dict(self) -> dict[str, SharedVariable]:
        """The same by unique name."""

    def draw(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return n draws (n, dim) and their log densities (n,)."""

    def log_prob(self, points: np.ndarray) -> np.ndarray:
        """Log densities (n,) at points (n, dim)."""

    def center(self) -> np.ndarray:
        """A point (dim,) in the middle."""

    def landmarks(self) -> np.ndarray:
        """A few fixed points (n, dim) where it has mass: files keep the model's density there."""

    def draw_graph(self, z0: TensorVariable) -> tuple[TensorVariable, TensorVariable]:
        """Draws (n, dim) from standard normal z0 (n, dim), and their log densities, as graphs."""

    def log_prob_graph(self, points: TensorVariable) -> TensorVariable:
        """Log densities (...) at points (..., dim), as a graph."""

    def mean(self) -> TensorVariable:
        """Mean (dim,)."""

    def std(self) -> TensorVariable:
        """Standard deviation (dim,)."""

    def cov(self) -> TensorVariable:
        """Covariance (dim, dim)."""

    def arrays(self) -> dict[str, np.ndarray]:
        """All numbers that it consists of, by name, for a file."""

    def load(self, array: Callable[..., np.ndarray]) -> None:
        """Set them to those of `arrays`, which ``array(name, shape, dtype)`` returns."""


@runtime_checkable
class HasForward(Protocol):
    """A state whose draws are a map of base draws."""

    def forward(self, z0: np.ndarray) -> np.ndarray:
        """Points (n, dim) from base draws z0 (n, dim)."""
