"""The marginal log density of hyperparameters, corrected by the weights of groups."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pymc_flows.field.conditional.gaussian import FieldGaussian
from pymc_flows.field.conditional.mapping import ConditionalField
from pymc_flows.field.conditional.noise import NormalNoise
from pymc_flows.field.conditional.weights import GroupWeights, weigh_groups
from pymc_flows.field.options import Progress


@dataclass(frozen=True, eq=False)
class MarginalValues:
    """The marginal at some values of the hyperparameters.

    Attributes
    ----------
    hyper : ndarray, shape (n, n_hyper)
    log_p : ndarray, shape (n,)
        Log density of hyperparameters and data, in nats; −∞ where there is no Gaussian.
    laplace : ndarray, shape (n,)
        Laplace's approximation of it.
    error : ndarray, shape (n,)
        Standard errors of ``log_p``, in nats; much the same noise at all values.
    """

    hyper: np.ndarray
    log_p: np.ndarray
    laplace: np.ndarray
    error: np.ndarray


class Marginal:
    """Evaluates the marginal of the hyperparameters.

    Parameters
    ----------
    conditional : ConditionalField
    noise : NormalNoise
        The same draws at all values, so that their noise cancels in differences.
    n_outer : int
        Blocks of draws that share the separator.
    is_gaussian : bool
        Whether the field is Gaussian given the hyperparameters: Laplace's approximation is exact.
    """

    def __init__(
        self,
        conditional: ConditionalField,
        noise: NormalNoise,
        *,
        n_outer: int,
        is_gaussian: bool,
    ):
        self.conditional, self.noise = conditional, noise
        self.n_outer, self.is_gaussian = n_outer, is_gaussian

    def gaussians(self, hyper: np.ndarray) -> Iterator[tuple[int, FieldGaussian | None]]:
        """Gaussians over the field at values (n, n_hyper), few of them held at once."""
        size = self.conditional.chunk
        for begin in range(0, len(hyper), size):
            yield from enumerate(self.conditional.at(hyper[begin : begin + size]), begin)

    def weigh(self, gaussian: FieldGaussian, *, keep: bool = False) -> GroupWeights:
        """Weights of draws of the field by group."""
        posterior = self.conditional.modes.posterior
        return weigh_groups(posterior, gaussian, self.noise, n_outer=self.n_outer, keep=keep)

    def evaluate(self, hyper: np.ndarray, progress: Progress, stage: str) -> MarginalValues:
        """Evaluate at values (n, n_hyper)."""
        log_p, laplace = np.full(len(hyper), -np.inf), np.full(len(hyper), -np.inf)
        error = np.zeros(len(hyper))
        for i, gaussian in self.gaussians(hyper):
            if gaussian is not None:
                laplace[i] = gaussian.log_marginal
                if self.is_gaussian:
                    log_p[i] = laplace[i]
                else:
                    weights = self.weigh(gaussian)
                    log_p[i], error[i] = weights.log_marginal, weights.error
            progress.tell(stage)
        return MarginalValues(hyper, np.where(np.isnan(log_p), -np.inf, log_p), laplace, error)
