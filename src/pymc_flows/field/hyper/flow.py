"""A flow over hyperparameters, fitted to weighted values of these."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.tensor.variable import TensorVariable

from pymc_flows.backends.functions import function_of
from pymc_flows.backends.modes import PLAIN, no_compiler
from pymc_flows.field.conditional.noise import sobol
from pymc_flows.flows import build_chain
from pymc_flows.flows.chain import Chain
from pymc_flows.flows.frame import Frame
from pymc_flows.flows.state import base_log_prob
from pymc_flows.formula import Formula

# Raw parameters have a normal prior with this standard deviation around those of the identity, so
# that a flow does not overfit few values; weighted values count by their effective number.
PRIOR_SD = 1.0
MAX_ITERATIONS = 60
# An iteration that gains less than this share of the loss is the last: more precision would be lost
# on hundreds of effective values.
SMALLEST_GAIN = 5e-5
# Points are padded to a multiple of this, so that few functions of the loss are compiled.
ROWS = 1_024


@dataclass(frozen=True, eq=False)
class HyperFlow:
    """A flow in a frame, g = frame(T(z0)).

    Attributes
    ----------
    formula : Formula
    frame : Frame
    theta : ndarray, shape (n_parameters,)
        Raw parameters, block by block, as `Block.unflatten` reads them.
    """

    formula: Formula
    frame: Frame
    theta: np.ndarray

    @classmethod
    def identity(cls, formula: Formula, frame: Frame) -> HyperFlow:
        """Make the flow that is the identity: the Gaussian of the frame.

        Parameters
        ----------
        formula : Formula
            Each layer must have an inverse, and be the identity at jitter 0.
        frame : Frame
        """
        return cls(formula, frame, _reference(build_chain(formula, len(frame.center))))

    def fit(self, hyper: np.ndarray, weights: np.ndarray, ess: float) -> HyperFlow:
        """Maximise the weighted likelihood from here on, with a weak prior around the identity.

        Parameters
        ----------
        hyper : ndarray, shape (n, n_hyper)
        weights : ndarray, shape (n,)
            Weights that sum to 1.
        ess : float
            Effective number of values.
        """
        from scipy import optimize

        used = weights > 0
        points, share = _padded(self.frame.inverse(hyper[used]), weights[used])
        loss, prior = self._functions.loss(len(points)), _reference(self._functions.chain)

        def negative(theta: np.ndarray) -> tuple[float, np.ndarray]:
            with np.errstate(all="ignore"):
                value, gradient = loss(theta, points, share)
            away = (theta - prior) / PRIOR_SD
            value = float(value) + 0.5 * float(away @ away) / ess
            if not (math.isfinite(value) and np.isfinite(gradient).all()):
                return math.inf, np.zeros_like(theta)
            return value, gradient + away / PRIOR_SD / ess

        found = optimize.minimize(
            negative,
            self.theta,
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": MAX_ITERATIONS, "ftol": SMALLEST_GAIN},
        )
        return replace(self, theta=found.x)

    def draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Draw ``n`` points (n, n_hyper), from a scrambled Sobol' sequence."""
        from scipy.special import ndtri

        return self.place(ndtri(sobol(n, len(self.frame.center), rng)))

    def place(self, noise: np.ndarray) -> np.ndarray:
        """Map standard normal noise (n, n_hyper) to draws (n, n_hyper)."""
        return self.frame.forward(self._functions.forward(self.theta, noise))

    def log_prob(self, hyper: np.ndarray) -> np.ndarray:
        """Log density (n,) at points (n, n_hyper), in nats."""
        with np.errstate(all="ignore"):
            log_prob = self._functions.log_prob(self.theta, self.frame.inverse(hyper))
        return log_prob - self.frame.log_det

    @property
    def _functions(self) -> _Functions:
        return _functions(self.formula, len(self.frame.center))


class _Functions:
    """Functions of a formula in ``dim`` dimensions, made when they are first asked for."""

    def __init__(self, formula: Formula, dim: int):
        self.chain = build_chain(formula, dim)
        self._losses: dict[int, Any] = {}

    def _inputs(
        self, rows: int | None = None
    ) -> tuple[TensorVariable, TensorVariable, list[TensorVariable]]:
        """The vector of parameters, points (rows, dim), and the parameters of each block."""
        dim, blocks = self.chain.dim, self.chain.blocks
        theta, points = pt.dvector("theta"), pt.matrix("g", shape=(rows, dim), dtype="float64")
        ends = itertools.accumulate((block.size(dim) for block in blocks), initial=0)
        return theta, points, [theta[begin:end] for begin, end in itertools.pairwise(ends)]

    def _log_prob_graph(
        self, rows: int | None = None
    ) -> tuple[TensorVariable, TensorVariable, TensorVariable]:
        theta, points, parts = self._inputs(rows)
        base, log_det = self.chain.inverse_and_log_det(points, parts)
        return theta, points, base_log_prob(base) - log_det

    @cached_property
    def log_prob(self) -> Any:
        theta, points, log_prob = self._log_prob_graph()
        return _function([theta, points], log_prob)

    def loss(self, rows: int) -> Any:
        """The loss and its gradient; with a fixed number of points it is made much faster."""
        if rows not in self._losses:
            theta, points, log_prob = self._log_prob_graph(rows)
            weights = pt.vector("weights", shape=(rows,), dtype="float64")
            loss = -(weights * log_prob).sum()
            gradient = pytensor.grad(loss, theta)
            self._losses[rows] = _function([theta, points, weights], [loss, gradient])
        return self._losses[rows]

    @cached_property
    def forward(self) -> Any:
        theta, points, parts = self._inputs()
        return _function([theta, points], self.chain.forward_and_log_det(points, parts)[0])


# Fits of many models have the same formula and dimension.
_functions = lru_cache(maxsize=32)(_Functions)


def _padded(points: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Add points without weight, so that their number is a multiple of `ROWS`."""
    more = -len(points) % ROWS
    return np.pad(points, ((0, more), (0, 0))), np.pad(weights, (0, more))


def _function(inputs: list[TensorVariable], outputs: Any) -> Any:
    with no_compiler():
        return function_of(inputs, outputs, mode=PLAIN)


def _reference(chain: Chain) -> np.ndarray:
    """Raw parameters of the identity, in one vector."""
    start = chain.initial_params(jitter=0.0, rng=np.random.default_rng(0), dtype="float64")
    return np.concatenate([block[name].ravel() for block in start for name in sorted(block)])
