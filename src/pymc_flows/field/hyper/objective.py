"""The objective of the search over hyperparameters: a lower bound, or Laplace's approximation."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from pymc_flows.field.conditional.gaussian import FieldGaussian
from pymc_flows.field.conditional.mapping import ConditionalField, Expectation
from pymc_flows.field.conditional.noise import ranks
from pymc_flows.field.factors import NotPositiveDefinite

# Step in a hyperparameter, in unconstrained units, by which log determinants are differenced.
STEP = 1e-4
# Most multiplications in the separator's factors for one gradient, which then cost less than the
# many steps that noisy gradients lead to.
MOST_WORK = 5e9


class LaplaceMarginal:
    """Laplace's approximation of the log marginal, and its gradient, in place of the lower bound.

    The log density at the mode changes with the hyperparameters as if the mode stayed (the envelope
    theorem). The determinant of the curvature is differenced, with the mode moving along. That
    takes one gradient, Hessian and factor for each hyperparameter.

    Parameters
    ----------
    conditional : ConditionalField
    """

    def __init__(self, conditional: ConditionalField):
        self.conditional, self.chunk = conditional, conditional.chunk

    def near(self, hyper: np.ndarray, other: FieldGaussian) -> list[FieldGaussian | None]:
        """Gaussians given hyperparameters (n, n_hyper), at modes sought from that of another."""
        return self.conditional.at(hyper, np.repeat(other.mode[None], len(hyper), axis=0))

    def expect(self, gaussians: Sequence[FieldGaussian]) -> list[Expectation]:
        """Values and gradients, as `ConditionalField.expect` returns them."""
        return [Expectation(g.log_marginal, self._slope(g)) for g in gaussians]

    def _slope(self, gaussian: FieldGaussian) -> np.ndarray:
        """Gradient (n_hyper,); NaN where the curvature is not positive definite."""
        modes = self.conditional.modes
        posterior, mode, n = modes.posterior, gaussian.mode, len(gaussian.hyper)
        hyper = np.concatenate([gaussian.hyper[None], gaussian.hyper + STEP * np.eye(n)])
        _, gradients = posterior.value_and_grad(posterior.join(hyper, mode))
        ways = gaussian.factor.solve((gradients[1:] - gradients[0])[:, posterior.field])
        fields = np.concatenate([mode[None], mode + ways])
        # The Gaussian's own factor may be of a curvature near the mode, which is not exact enough.
        half_log_det = np.full(n + 1, np.nan)
        with suppress(NotPositiveDefinite):
            for k in range(n + 1):
                factor = modes.factor(modes.curvature(hyper[k], fields[k]))
                half_log_det[k] = factor.half_log_det
        return gradients[0, posterior.hyper] - (half_log_det[1:] - half_log_det[0]) / STEP


type Objective = ConditionalField | LaplaceMarginal


def objective_of(conditional: ConditionalField) -> Objective:
    """Choose the lower bound where few points integrate it exactly, else Laplace's approximation.

    Points that are not orthogonal within groups make gradients noisy, most of all where a
    hyperparameter scales few elements. For a field that is far from Gaussian, Laplace's
    approximation is worse than that.
    """
    if conditional.is_far:
        return conditional
    posterior = conditional.posterior
    is_exact = 2 * ranks(posterior.groups)[1] <= len(conditional.points)
    work = (posterior.n_hyper + 1) * posterior.factor_products
    if is_exact or work > MOST_WORK:
        return conditional
    return LaplaceMarginal(conditional)
