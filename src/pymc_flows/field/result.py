"""The result of a fit of a field given hyperparameters, and draws from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pymc_flows.field.conditional.judge import GroupQuality
from pymc_flows.field.hyper.mode import HyperMode
from pymc_flows.field.hyper.values import HyperValues
from pymc_flows.field.marginal import Marginal
from pymc_flows.field.options import effort
from pymc_flows.field.pools import field_noise
from pymc_flows.field.posterior import Posterior
from pymc_flows.field.selection import select
from pymc_flows.support.evaluations import Evaluations

# Newton decrement, in nats, at which the mode of a field is good enough for a draw.
DRAWN = 1e-3
# Fewest distinct values of the hyperparameters among many draws, and seconds of a usual core that
# Gaussians at more of them may take. Two steps of Newton's method each are expected.
FEWEST, SECONDS_TO_DRAW = 256, 6.0
EACH = Evaluations(gradients=2, curvatures=2, factors=2)


@dataclass(frozen=True, eq=False)
class FieldApproximation:
    """q(g, x) = q(g) N(x; m(g), Q(g)⁻¹), and its corrections.

    Attributes
    ----------
    marginal : Marginal
        Marginal of the hyperparameters g; it has the Gaussian over the field x given them.
    mode : HyperMode
    values : HyperValues
        q(g), and the values of g at which the marginal was evaluated.
    groups : GroupQuality
        How good the Gaussian is, group by group.
    evaluations : Evaluations
    history : tuple
        Stage, evaluations and CPU seconds, in order.
    """

    marginal: Marginal
    mode: HyperMode
    values: HyperValues
    groups: GroupQuality
    evaluations: Evaluations
    history: tuple[tuple[str, Evaluations, float], ...]

    @property
    def posterior(self) -> Posterior:
        """The posterior that was fitted."""
        return self.marginal.posterior

    def draw(
        self, n: int, rng: np.random.Generator, *, n_hyper: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw from the approximation.

        Parameters
        ----------
        n : int
        rng : Generator
        n_hyper : int, optional
            Distinct values of the hyperparameters, each with about n / n_hyper fields; by default
            n.

        Returns
        -------
        points : ndarray, shape (n, dim)
            In the unconstrained space; fewer than n where no Gaussian over the field exists at
            some of these values.
        log_q : ndarray, shape (n,)
            Log densities of the approximation, in nats.
        """
        posterior = self.posterior
        count = min(n, n if n_hyper is None else n_hyper)
        hyper = self.values.flow.draw(count, rng)[rng.permutation(count)]
        log_hyper = self.values.flow.log_prob(hyper)
        repeats = np.full(count, n // count)
        repeats[: n % count] += 1
        points, log_q = [np.empty((0, posterior.dim))], [np.empty(0)]
        for i, gaussian in self.marginal.gaussians(hyper):
            if gaussian is None:
                continue
            noise = rng.standard_normal((repeats[i], posterior.n_field))
            field = gaussian.place(noise)
            points.append(posterior.join(hyper[i], field))
            log_prob = -0.5 * np.square(noise).sum(axis=1) - gaussian.log_normalizer
            log_q.append(log_hyper[i] + log_prob)
        return np.concatenate(points), np.concatenate(log_q)

    def log_prob(self, points: np.ndarray) -> np.ndarray:
        """Log density (n,) of the approximation at points (n, dim), in nats."""
        posterior = self.posterior
        hyper, index = np.unique(points[:, posterior.hyper], axis=0, return_inverse=True)
        index = index.ravel()  # a column in NumPy 2.0
        found = np.full(len(points), -np.inf)
        log_hyper = self.values.flow.log_prob(hyper)
        for i, gaussian in self.marginal.gaussians(hyper):
            if gaussian is not None:
                rows = np.flatnonzero(index == i)
                field = points[rows][:, posterior.field]
                found[rows] = log_hyper[i] + gaussian.log_prob(field)
        return found

    def corrected(
        self, n: int, rng: np.random.Generator, *, n_hyper: int | None = None
    ) -> np.ndarray:
        """Draws (n, dim) of the posterior, by the weights of hyperparameters and of groups.

        Parameters
        ----------
        n : int
        rng : Generator
        n_hyper : int, optional
            Most distinct values of the hyperparameters, by default n. Where Gaussians take long,
            as with many rows or a large separator, there are fewer.
        """
        marginal, posterior = self.marginal, self.posterior
        each = effort(EACH, posterior.sizes, posterior.factor_products)
        affordable = max(FEWEST, int(SECONDS_TO_DRAW / each))
        count = min(n, n if n_hyper is None else n_hyper, affordable)
        weights = np.exp(self.values.log_weights)
        chosen = select(self.values.hyper, weights, count, rng)
        values, repeats = np.unique(
            np.repeat(chosen, np.diff(np.linspace(0, n, count + 1).astype(int))), return_counts=True
        )
        hyper = self.values.hyper[values]
        share = self.groups.smallest_ess / self.groups.n_draws
        noise = field_noise(marginal, hyper, repeats, share, rng)
        points = [
            posterior.join(gaussian.hyper, gaussian.place(noise(i, gaussian)))
            for i, gaussian in marginal.gaussians(hyper, tolerance=DRAWN)
            if gaussian is not None
        ]
        return np.concatenate(points)
