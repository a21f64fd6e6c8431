"""Modes of the field given hyperparameters, by Newton's method, many of them side by side.

Each iteration evaluates all points that are still on their way in one call. Where the curvature is
not positive definite, or a step does not gain, a multiple of the identity is added to it
(Levenberg); a share of the diagonal would not do, since fields that multiply each other (item
response models) have diagonals near 0 far from their mode.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import scipy

from pymc_flows.field.conditional.gaussian import FieldGaussian
from pymc_flows.field.factors import Factor, Factoring, NotPositiveDefinite
from pymc_flows.field.posterior import Posterior

# The first multiple of the identity, relative to the mean curvature, and its factors.
FIRST_DAMPING, MORE, LESS = 1e-3, 8.0, 1 / 16
MAX_DAMPING = 1e9
# Share of the expected gain that a step must have.
ARMIJO = 1e-4
# A curvature is kept where the decrement has fallen to this share: its root is about how much the
# curvature has changed, in all directions together.
SAME_CURVATURE = 1e-3
# Differences of log densities below this share are rounding.
ROUNDING = 1e-12


@dataclass(eq=False)
class _Climb:
    """The way to one mode."""

    hyper: np.ndarray
    field: np.ndarray
    value: float
    gradient: np.ndarray
    matrix: scipy.sparse.csc_matrix | None = None
    factor: Factor | None = None
    damping: float = 0.0
    step: np.ndarray | None = None
    decrement: float = np.inf
    done: bool = False

    def finish(self, step: np.ndarray, decrement: float) -> None:
        """Take the last step, so short that its gain need not be evaluated."""
        self.field, self.value = self.field + step, self.value + 0.5 * decrement
        self.decrement, self.done = decrement, True

    def result(self) -> FieldGaussian | None:
        """The Gaussian at the mode; None if there is none."""
        if self.factor is None or self.damping or not np.isfinite(self.value):
            return None
        return FieldGaussian(self.hyper, self.field, self.factor, self.value, self.decrement)


class FieldModes:
    """Finds modes of the field, and the curvature there.

    Parameters
    ----------
    posterior : Posterior
    factoring : Factoring
        For the curvature of the field.
    """

    def __init__(self, posterior: Posterior, factoring: Factoring):
        self.posterior, self.factoring = posterior, factoring

    def find(
        self, hyper: np.ndarray, field: np.ndarray, *, steps: int, tolerance: float
    ) -> list[FieldGaussian | None]:
        """Find the modes given hyperparameters (n, n_hyper), from fields (n, n_field).

        The result is a function of both alone, whatever else is sought at the same time.

        Parameters
        ----------
        hyper, field : ndarray
        steps : int
            Most steps, those that failed included.
        tolerance : float
            Newton decrement g'Q⁻¹g at which the mode is found, in nats.

        Returns
        -------
        list of FieldGaussian or None
            At the last point; None where the log density is not finite or its curvature not
            positive definite.
        """
        values, gradients = self._evaluate(hyper, field)
        climbs = [_Climb(*parts) for parts in zip(hyper, field, values, gradients, strict=True)]
        for climb in climbs:
            climb.done = not np.isfinite(climb.value)
        for _ in range(steps):
            self._bend([climb for climb in climbs if not climb.done])
            for climb in climbs:
                if not climb.done:
                    self._aim(climb, tolerance)
            active = [climb for climb in climbs if not climb.done]
            if not active:
                break
            hyper = np.stack([c.hyper for c in active])
            field = np.stack([c.field + c.step for c in active])
            for climb, x, v, g in zip(active, field, *self._evaluate(hyper, field), strict=True):
                self._move(climb, x, v, g, tolerance)
        for climb in climbs:
            if not climb.done:  # out of steps
                self._stop(climb)
        return [climb.result() for climb in climbs]

    def curvature(self, hyper: np.ndarray, field: np.ndarray) -> scipy.sparse.csc_matrix:
        """−∇² of the log density over the field, at one point."""
        return self.posterior.curvature(self.posterior.join(hyper, field)[0])

    def factor(self, matrix: scipy.sparse.csc_matrix) -> Factor:
        """Factor a curvature; raise `NotPositiveDefinite`."""
        self.posterior.evaluations.factors += 1
        return self.factoring.factor(matrix)

    def _evaluate(self, hyper: np.ndarray, field: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values, gradients = self.posterior.value_and_grad(self.posterior.join(hyper, field))
        gradients = gradients[:, self.posterior.field]
        values = np.where(np.isfinite(gradients).all(axis=1), values, -np.inf)
        return values, gradients

    def _bend(self, climbs: list[_Climb]) -> None:
        """Compute the curvatures that are missing."""
        missing = [climb for climb in climbs if climb.matrix is None]
        if missing:
            hyper, field = (np.stack([getattr(c, k) for c in missing]) for k in ("hyper", "field"))
            matrices = self.posterior.curvatures(self.posterior.join(hyper, field))
            for climb, matrix in zip(missing, matrices, strict=True):
                climb.matrix = matrix

    def _aim(self, climb: _Climb, tolerance: float) -> None:
        """Compute the next step, damped as far as needed; done if there is none to take."""
        if climb.factor is None:
            self._damp(climb)
        if climb.factor is None:
            climb.done = True
            return
        climb.step = climb.factor.solve(climb.gradient)
        climb.decrement = float(climb.step @ climb.gradient)
        if climb.decrement < tolerance and not climb.damping:
            climb.finish(climb.step, climb.decrement)

    def _damp(self, climb: _Climb) -> None:
        """Factor the curvature, plus as much of the identity as that takes."""
        matrix = climb.matrix
        if matrix is None or not np.isfinite(matrix.data).all():
            return
        unit = float(np.abs(matrix.diagonal()).mean()) or 1.0
        while climb.damping < MAX_DAMPING:
            try:
                climb.factor = self.factor(_raised(matrix, climb.damping * unit))
                return
            except NotPositiveDefinite:
                climb.damping = max(climb.damping * MORE, FIRST_DAMPING)

    def _stop(self, climb: _Climb) -> None:
        """Take the curvature where the climb is, if it is positive definite."""
        if climb.factor is None or climb.damping:
            matrix = climb.matrix
            if matrix is None:
                matrix = self.curvature(climb.hyper, climb.field)
            climb.damping, climb.factor = 0.0, None
            with suppress(NotPositiveDefinite):
                climb.factor = self.factor(matrix)

    def _move(
        self, climb: _Climb, field: np.ndarray, value: float, gradient: np.ndarray, tolerance: float
    ) -> None:
        """Take the step, or damp it more."""
        slack = ROUNDING * (1 + abs(climb.value))
        if not value >= climb.value + ARMIJO * climb.decrement - slack:
            climb.damping = max(climb.damping * MORE, FIRST_DAMPING)
            climb.factor = None
            climb.done = climb.damping >= MAX_DAMPING
            return
        climb.field, climb.value, climb.gradient = field, value, gradient
        if climb.factor is not None and not climb.damping:
            step = climb.factor.solve(gradient)
            left = float(gradient @ step)
            if left < min(tolerance, SAME_CURVATURE * climb.decrement):
                climb.finish(step, left)
                return
        climb.damping = climb.damping * LESS if climb.damping * LESS > FIRST_DAMPING / 64 else 0.0
        climb.matrix = climb.factor = None


def _raised(matrix: scipy.sparse.csc_matrix, by: float) -> scipy.sparse.csc_matrix:
    """The matrix plus a multiple of the identity, with its pattern."""
    if not by:
        return matrix
    found = matrix.copy()
    found.setdiag(matrix.diagonal() + by)
    return found
