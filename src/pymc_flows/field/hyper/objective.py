"""What the search over hyperparameters maximises: a lower bound, or Laplace's approximation."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

import numpy as np

from pymc_flows.field.conditional.gaussian import FieldGaussian
from pymc_flows.field.conditional.mapping import ConditionalField, Expectation
from pymc_flows.field.conditional.noise import ranks
from pymc_flows.field.factors import NotPositiveDefinite

# Step of differences of the determinant of the curvature, in unconstrained units.
STEP = 1e-4
# With a larger separator, factors cost more than many gradients.
MOST_SEPARATOR = 300


class Objective(Protocol):
    """A function of the hyperparameters, and its gradient."""

    @property
    def chunk(self) -> int:
        """How many Gaussians may be held at once."""

    def near(self, hyper: np.ndarray, other: FieldGaussian) -> list[FieldGaussian | None]:
        """Gaussians given hyperparameters (n, n_hyper), sought from another one."""

    def expect(self, gaussians: Sequence[FieldGaussian]) -> list[Expectation]:
        """Values and gradients under them."""


class LaplaceMarginal:
    """Laplace's approximation of the log marginal, and its exact gradient.

    The log density at the mode changes with the hyperparameters as if the mode stayed (the envelope
    theorem); the determinant of the curvature is differenced along the mode's own way. That costs
    one gradient, Hessian and factor for each hyperparameter.

    Parameters
    ----------
    conditional : ConditionalField
    """

    def __init__(self, conditional: ConditionalField):
        self.conditional = conditional

    @property
    def chunk(self) -> int:
        """How many Gaussians may be held at once."""
        return self.conditional.chunk

    def near(self, hyper: np.ndarray, other: FieldGaussian) -> list[FieldGaussian | None]:
        """Gaussians at the modes."""
        return self.conditional.at(hyper, np.repeat(other.mode[None], len(hyper), axis=0))

    def expect(self, gaussians: Sequence[FieldGaussian]) -> list[Expectation]:
        """Values and gradients."""
        return [Expectation(g.log_marginal, self._slope(g)) for g in gaussians]

    def _slope(self, gaussian: FieldGaussian) -> np.ndarray:
        """Gradient (n_hyper,); not a number where the curvature is not positive definite."""
        modes = self.conditional.modes
        posterior, mode, n = modes.posterior, gaussian.mode, len(gaussian.hyper)
        hyper = np.concatenate([gaussian.hyper[None], gaussian.hyper + STEP * np.eye(n)])
        _, gradients = posterior.value_and_grad(posterior.join(hyper, mode))
        ways = gaussian.factor.solve((gradients[1:] - gradients[0])[:, posterior.field])
        fields = np.concatenate([mode[None], mode + ways])
        # The factor of the Gaussian is that of the last step's curvature, a little off the mode.
        half_log_det = np.full(n + 1, np.nan)
        with suppress(NotPositiveDefinite):
            for k in range(n + 1):
                factor = modes.factor(modes.curvature(hyper[k], fields[k]))
                half_log_det[k] = factor.half_log_det
        return gradients[0, posterior.hyper] - (half_log_det[1:] - half_log_det[0]) / STEP


def objective_of(conditional: ConditionalField) -> Objective:
    """The lower bound where few points integrate it exactly; else Laplace's approximation.

    Points that are not orthogonal within groups have gradients with noise, which is large where a
    hyperparameter scales few elements. Laplace's approximation of a field that is far from Gaussian
    is worse.
    """
    if conditional.is_far:
        return conditional
    groups = conditional.modes.posterior.groups
    is_exact = 2 * ranks(groups)[1] <= len(conditional.points)
    if is_exact or (groups < 0).sum() > MOST_SEPARATOR:
        return conditional
    return LaplaceMarginal(conditional)
