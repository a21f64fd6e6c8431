"""The distribution of a flow over hyperparameters and a field given them, as a `State`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.tensor.variable import TensorVariable

from pymc_flows.errors import ArgumentError, FitError
from pymc_flows.field.conditional.judge import GroupQuality
from pymc_flows.field.posterior import Posterior
from pymc_flows.field.record import arrays_of, restored
from pymc_flows.field.result import FieldApproximation
from pymc_flows.flows.from_base import DrawsFromBase
from pymc_flows.formula import Formula
from pymc_flows.importance import Quality
from pymc_flows.model.logp import ModelDensity
from pymc_flows.model.structure import Structure

# Most draws behind the moments, and most numbers in these draws.
MOMENT_DRAWS, MOMENT_NUMBERS = 4096, 2.5e7
# Most distinct values of the hyperparameters among many draws, since each takes a Gaussian over the
# field; and among corrected draws, whose values there are many of only where they are cheap.
MOST_VALUES, MOST_CORRECTED = 1_000, 2_000
# Most coordinates of a covariance matrix.
MAX_COV = 5_000
# How often draws without a Gaussian over the field are tried again.
MAX_TRIES = 10


class FieldState:
    """q(g) N(x; m(g), Q(g)⁻¹) over hyperparameters g and the field x given them.

    Points are rows (n, dim) of the unconstrained space; log densities are in nats.

    Parameters
    ----------
    found : FieldApproximation
    structure : Structure
    """

    is_framed = True

    def __init__(self, found: FieldApproximation, structure: Structure):
        self.found, self.structure = found, structure

    @property
    def formula(self) -> Formula:
        """The flow over the hyperparameters, and the family of the field."""
        return Formula(f"{self.found.values.flow.formula} | laplace")

    @property
    def label(self) -> str:
        """The formula, as it is shown."""
        return repr(str(self.formula))

    @property
    def dim(self) -> int:
        """Number of coordinates."""
        return self.found.posterior.dim

    @property
    def chain_dim(self) -> int:
        """Number of coordinates of the flow: of hyperparameters."""
        return self.found.posterior.n_hyper

    @property
    def params(self) -> list[SharedVariable]:
        """No parameters, since nothing is trained step by step."""
        return []

    @property
    def params_dict(self) -> dict[str, SharedVariable]:
        """No parameters."""
        return {}

    # ----------------------------------------------------------------------- draws and densities

    def draw(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return n draws (n, dim) and their log densities (n,).

        With n above 1,000, several draws have the same hyperparameters.
        """
        points, log_q = np.empty((0, self.dim)), np.empty(0)
        for _ in range(MAX_TRIES):
            left = n - len(points)
            more, more_q = self.found.draw(left, rng, n_hyper=min(left, MOST_VALUES))
            points, log_q = np.concatenate([points, more]), np.concatenate([log_q, more_q])
            if len(points) == n:
                return points, log_q
        raise FitError(
            f"{n - len(points):,} of {n:,} draws have no Gaussian over the field: at their values "
            "of the hyperparameters the log density has no mode\n"
            "Choose the hyperparameters yourself, hyper=[…], or take a flow over all variables."
        )

    def log_prob(self, points: np.ndarray) -> np.ndarray:
        """Log densities (n,) at points (n, dim)."""
        return self.found.log_prob(np.asarray(points, dtype=float))

    def resample(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, Any]]:
        """Draw from the posterior by the weights of hyperparameters and groups.

        Returns
        -------
        points : ndarray, shape (n, dim)
        attrs : dict
            Diagnostics of the weights, by name.
        """
        quality, groups = self.quality, self.groups
        attrs = {
            "correct": "resample",
            "khat": quality.khat,
            "khat_threshold": quality.threshold,
            "importance_ess": quality.ess,
            "n_groups": groups.n_groups,
            "smallest_group_ess": groups.smallest_ess,
            "largest_group_khat": groups.largest_khat,
        }
        return self.found.corrected(n, rng, n_hyper=min(n, MOST_CORRECTED)), attrs

    def center(self) -> np.ndarray:
        """The mode (dim,) over hyperparameters, and the mean of the field there."""
        gaussian = self.found.mode.gaussian
        return self.found.posterior.join(gaussian.hyper, gaussian.mean)[0]

    def landmarks(self) -> np.ndarray:
        """Points (3, dim) with mass, always the same: the centre, and other fields at that g."""
        gaussian, angles = self.found.mode.gaussian, np.arange(1, self.found.posterior.n_field + 1)
        noise = np.stack([0 * angles, np.cos(angles), np.sin(2 * angles)])
        return self.found.posterior.join(gaussian.hyper, gaussian.place(noise))

    @cached_property
    def quality(self) -> Quality:
        """Diagnostics of the weights: ELBO of q(g), evidence and k-hat of all values of g.

        The log density of g is corrected by the weights of the groups. If these cannot be trusted,
        neither can the weights of g: k-hat is then the larger of both.
        """
        values, groups = self.found.values, self.groups
        overall = values.overall
        if not groups.is_trusted:  # then no even weights of hyperparameters make up for it
            share = groups.smallest_ess / groups.n_draws
            overall = replace(overall, ess=min(overall.ess, share * overall.n_draws))
        return replace(
            overall,
            elbo=values.quality.elbo,
            elbo_error=values.quality.elbo_error,
            khat=overall.khat if groups.is_trusted else max(overall.khat, groups.largest_khat),
            log_evidence_error=math.hypot(overall.log_evidence_error, values.error),
        )

    @property
    def groups(self) -> GroupQuality:
        """Diagnostics of the weights of the groups."""
        return self.found.groups

    # ----------------------------------------------------------------------------------- graphs

    def draw_graph(self, z0: TensorVariable) -> tuple[TensorVariable, TensorVariable]:
        """Draws (n, dim) from standard normal z0 (n, dim), and their log densities, as graphs.

        They have no derivatives.
        """
        points, log_q = DrawsFromBase(self)(z0)
        return points, log_q

    def log_prob_graph(self, points: TensorVariable) -> TensorVariable:
        """Raise: the density is computed outside of graphs."""
        raise ArgumentError(
            f"the log density of {str(self.formula)!r} is not available as a graph\n"
            "Give the points as an array."
        )

    def forward(self, z0: np.ndarray) -> np.ndarray:
        """Points (n, dim) from base draws z0 (n, dim)."""
        return self.from_base(np.asarray(z0, dtype=float))[0]

    def from_base(self, z0: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Points (n, dim) of standard normal noise (n, dim), and their log densities (n,)."""
        found, posterior = self.found, self.found.posterior
        z0 = np.asarray(z0, dtype=float)
        hyper = found.values.flow.place(z0[:, posterior.hyper])
        log_hyper = found.values.flow.log_prob(hyper)
        points, log_q = np.full(z0.shape, np.nan), np.full(len(z0), -np.inf)
        for i, gaussian in found.marginal.gaussians(hyper):
            if gaussian is not None:
                noise = z0[i : i + 1, posterior.field]
                points[i] = posterior.join(hyper[i], gaussian.place(noise))[0]
                log_p = -0.5 * float(np.square(noise).sum()) - gaussian.log_normalizer
                log_q[i] = log_hyper[i] + log_p
        return points, log_q

    # ---------------------------------------------------------------------------------- moments

    def _moment_draws(self) -> np.ndarray:
        """Draws (n, dim) of the posterior, always the same."""
        n = int(np.clip(MOMENT_NUMBERS // self.dim, 64, MOMENT_DRAWS))
        return self.found.corrected(n, np.random.default_rng(0), n_hyper=min(n, MOST_CORRECTED))

    @cached_property
    def _moments(self) -> tuple[np.ndarray, np.ndarray]:
        points = self._moment_draws()
        return points.mean(axis=0), points.std(axis=0, ddof=1)

    def mean(self) -> TensorVariable:
        """Mean (dim,), from fixed draws of the posterior."""
        return pt.constant(self._moments[0].astype(pytensor.config.floatX))

    def std(self) -> TensorVariable:
        """Standard deviation (dim,), from fixed draws of the posterior."""
        return pt.constant(self._moments[1].astype(pytensor.config.floatX))

    def cov(self) -> TensorVariable:
        """Covariance (dim, dim), from fixed draws of the posterior.

        Raises
        ------
        ArgumentError
            If there are too many coordinates.
        """
        if self.dim > MAX_COV:
            raise ArgumentError(
                f"a covariance of {self.dim:,} coordinates would take "
                f"{8e-9 * self.dim**2:,.1f} GB\nTake np.cov of the columns of "
                "approx.sample_and_log_prob(n) that you need."
            )
        covariance = np.atleast_2d(np.cov(self._moment_draws().T))
        return pt.constant(covariance.astype(pytensor.config.floatX))

    # ------------------------------------------------------------------------------------ files

    def arrays(self) -> dict[str, np.ndarray]:
        """All numbers of which it consists, by name, for a file."""
        return {f"field_{name}": array for name, array in arrays_of(self.found).items()}

    def load(self, array: Callable[..., np.ndarray]) -> None:
        """Do nothing: `restored` has taken all arrays."""

    @classmethod
    def restored(
        cls,
        density: ModelDensity,
        structure: Structure,
        formula: Formula,
        array: Callable[..., np.ndarray],
    ) -> FieldState:
        """Make the state from its `arrays`, which ``array(name, shape, dtype)`` returns.

        Raises
        ------
        ValueError
            If the model has other hyperparameters, another field or other groups.
        """

        def read(name: str, shape: tuple[int | None, ...], dtype: str) -> np.ndarray:
            return array(f"field_{name}", shape, dtype)

        return cls(restored(Posterior.of(density, structure), formula, read), structure)
