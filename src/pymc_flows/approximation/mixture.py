"""Several approximations of one posterior as one distribution: their mixture, as a `State`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.tensor.variable import TensorVariable

from pymc_flows.errors import ArgumentError
from pymc_flows.flows.from_base import DrawsFromBase
from pymc_flows.flows.state import FlowState
from pymc_flows.formula import Formula
from pymc_flows.importance import systematic


class MixtureState:
    """q(z) = Σ wₖ qₖ(z) over flows of the same coordinates.

    Points are rows (n, dim) of the unconstrained space; log densities are in nats.

    Parameters
    ----------
    parts : sequence of FlowState
        Each with an inverse: the density of one is needed at the draws of the others.
    weights : array-like, shape (parts,)
        Positive; they are normalised.

    Raises
    ------
    ArgumentError
        If there are no parts, or a weight is not positive.
    NotInvertibleError
        If a part has no inverse; when a density is asked for.
    """

    def __init__(self, parts: Sequence[FlowState], weights: np.ndarray):
        weights = np.asarray(weights, dtype=float)
        if not parts or weights.shape != (len(parts),):
            raise ArgumentError(
                f"a mixture needs one weight for each part, got {len(parts)} parts and weights of "
                f"shape {weights.shape}"
            )
        if not (np.isfinite(weights).all() and (weights > 0).all()):
            raise ArgumentError(f"weights of a mixture must be positive, got {weights}")
        self.parts = tuple(parts)
        self.weights = weights / weights.sum()

    @property
    def heaviest(self) -> FlowState:
        """The part with the largest weight."""
        return self.parts[int(self.weights.argmax())]

    @property
    def formula(self) -> Formula:
        """The formula of the heaviest part."""
        return self.heaviest.formula

    @property
    def label(self) -> str:
        """The formulas of the parts, and how many there are of each."""
        counts: dict[str, int] = {}
        for part in self.parts:
            counts[str(part.formula)] = counts.get(str(part.formula), 0) + 1
        return "mixture of " + ", ".join(f"{n} {text!r}" for text, n in counts.items())

    @property
    def dim(self) -> int:
        """Number of coordinates."""
        return self.heaviest.dim

    @property
    def chain_dim(self) -> int:
        """Number of coordinates of the parts' chains."""
        return self.dim

    @property
    def is_framed(self) -> bool:
        """Whether all parts began in coordinates that were found for the posterior."""
        return all(part.is_framed for part in self.parts)

    @property
    def params(self) -> list[SharedVariable]:
        """None: a mixture is not trained."""
        return []

    @property
    def params_dict(self) -> dict[str, SharedVariable]:
        """None, by name."""
        return {}

    # ----------------------------------------------------------------------- draws and densities

    def draw(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return n draws (n, dim) and their log densities (n,).

        The number of draws of each part is its weight times n, rounded up or down; their order is
        random. Importance weights p/q with the density of the mixture remain valid for such draws,
        and have less noise than with parts drawn at random (Owen & Zhou, JASA 95(449), 2000).
        """
        which = rng.permutation(systematic(self.weights, n, rng))
        points = np.empty((n, self.dim), pytensor.config.floatX)
        own = np.empty(n)
        for k, part in enumerate(self.parts):
            rows = which == k
            if rows.any():
                points[rows], own[rows] = part.draw(int(rows.sum()), rng)
        return points, self._log_prob(points, which, own)

    def log_prob(self, points: np.ndarray) -> np.ndarray:
        """Log densities (n,) at points (n, dim)."""
        return self._log_prob(points, np.full(len(points), -1), np.zeros(len(points)))

    def _log_prob(self, points: np.ndarray, which: np.ndarray, own: np.ndarray) -> np.ndarray:
        """Log densities at points; that of part ``which`` is known there, ``own``.

        Far from a part its inverse may overflow. A part without a number counts as 0, unless no
        part has one.
        """
        logs = np.empty((len(self.parts), len(points)))
        for k, (part, weight) in enumerate(zip(self.parts, self.weights, strict=True)):
            rows = which == k
            logs[k, rows] = own[rows]
            if not rows.all():
                logs[k, ~rows] = part.log_prob(points[~rows])
            logs[k] += np.log(weight)
        unknown = np.isnan(logs)
        total = np.logaddexp.reduce(np.where(unknown, -np.inf, logs), axis=0)
        return np.where(unknown.all(axis=0), np.nan, total).astype(pytensor.config.floatX)

    def center(self) -> np.ndarray:
        """A point (dim,) in the middle of the heaviest part."""
        return self.heaviest.center()

    def landmarks(self) -> np.ndarray:
        """A few fixed points (n, dim) where the heaviest part has mass."""
        return self.heaviest.landmarks()

    def forward(self, z0: np.ndarray) -> np.ndarray:
        """Points (n, dim) from base draws z0 (n, dim)."""
        return self.from_base(z0)[0]

    def from_base(self, z0: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Points (n, dim) of standard normal noise (n, dim), and their log densities (n,).

        The first coordinate of the noise chooses the part. Its position among the values that
        choose this part is uniform again, and gives the part's own first coordinate.
        """
        from scipy.special import ndtr, ndtri  # slow to import

        z0 = np.asarray(z0, dtype=float)
        ends = np.cumsum(self.weights)
        uniform = ndtr(z0[:, 0])
        which = np.minimum(np.searchsorted(ends, uniform, side="right"), len(self.parts) - 1)
        place = (uniform - (ends - self.weights)[which]) / self.weights[which]
        tiny = np.finfo(float).tiny
        inner = z0.copy()
        inner[:, 0] = ndtri(np.clip(place, tiny, 1 - np.finfo(float).epsneg))
        points = np.empty(z0.shape, pytensor.config.floatX)
        for k, part in enumerate(self.parts):
            if (rows := which == k).any():
                points[rows] = part.forward(inner[rows].astype(pytensor.config.floatX))
        return points, self.log_prob(points)

    # ----------------------------------------------------------------------------------- graphs

    def draw_graph(self, z0: TensorVariable) -> tuple[TensorVariable, TensorVariable]:
        """Draws (n, dim) from standard normal z0 (n, dim), and their log densities, as graphs.

        They have no derivatives.
        """
        points, log_q = DrawsFromBase(self)(z0)
        return points, log_q

    def log_prob_graph(self, points: TensorVariable) -> TensorVariable:
        """Log densities (...) at points (..., dim), as a graph."""
        logs = [
            part.log_prob_graph(points) + np.log(weight)
            for part, weight in zip(self.parts, self.weights, strict=True)
        ]
        total: TensorVariable = pt.logsumexp(pt.stack(logs), axis=0)
        return total.astype(points.dtype)

    # ---------------------------------------------------------------------------------- moments

    def _mixed(self, values: Sequence[TensorVariable]) -> TensorVariable:
        weights = self.weights.astype(pytensor.config.floatX)
        return pt.add(*[w * v for w, v in zip(weights, values, strict=True)])

    def mean(self) -> TensorVariable:
        """Mean (dim,)."""
        return self._mixed([part.mean() for part in self.parts])

    def std(self) -> TensorVariable:
        """Standard deviation (dim,)."""
        mean = self.mean()
        return pt.sqrt(self._mixed([pt.sqr(p.std()) + pt.sqr(p.mean() - mean) for p in self.parts]))

    def cov(self) -> TensorVariable:
        """Covariance (dim, dim)."""
        mean = self.mean()
        shifts = [part.mean() - mean for part in self.parts]
        covs = [part.cov() for part in self.parts]
        return self._mixed([c + pt.outer(s, s) for c, s in zip(covs, shifts, strict=True)])

    # ------------------------------------------------------------------------------------ files

    def arrays(self) -> dict[str, np.ndarray]:
        """All numbers that it consists of, by name, for a file."""
        found = {"mixture_weights": self.weights}
        for k, part in enumerate(self.parts):
            found |= {f"part_{k}_{name}": array for name, array in part.arrays().items()}
        return found

    def load(self, array: Callable[..., np.ndarray]) -> None:
        """Set all numbers to those of a file; ``array(name, shape, dtype)`` returns them."""
        for k, part in enumerate(self.parts):
            part.load(lambda name, *what, k=k: array(f"part_{k}_{name}", *what))
