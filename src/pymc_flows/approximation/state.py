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

    `FlowState` is that of a flow over all coordinates. Draws, reports, plots and files use nothing
    else, so a new family of distributions only has to provide this. What needs a flow over all
    coordinates (``inverse``, ``neutra``, training) asks for its `FlowState` by
    `NormalizingFlow.flow`.

    Points are rows (n, dim); log densities are in nats.
    """

    @property
    def formula(self) -> Formula:
        """The formula, which names the family and its layers."""

    @property
    def label(self) -> str:
        """Its name in texts."""

    @property
    def dim(self) -> int:
        """Number of coordinates."""

    @property
    def chain_dim(self) -> int:
        """Number of coordinates of the formula's chain."""

    @property
    def is_framed(self) -> bool:
        """Whether it works in coordinates that were found for the posterior."""

    @property
    def params(self) -> list[SharedVariable]:
        """The parameters that a fit trains; none if it is fitted in another way."""

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
        """A few fixed points (n, dim) where it has mass, at which files keep log densities."""

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
        """Set all numbers to those of a file; ``array(name, shape, dtype)`` returns them."""


@runtime_checkable
class HasForward(Protocol):
    """A state whose draws are a map of base draws."""

    def forward(self, z0: np.ndarray) -> np.ndarray:
        """Points (n, dim) from base draws z0 (n, dim)."""
