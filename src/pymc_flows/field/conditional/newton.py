"""Modes of the field given hyperparameters, by Newton's method, many of them side by side.

Each iteration evaluates all searches that are not over in one call. Where the curvature is not
positive definite, or a step does not gain, a multiple of the identity is added to it (Levenberg). A
share of the diagonal would not do: fields whose elements multiply each other (item response models)
have diagonals near 0 far from their mode.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pymc_flows.field.conditional.gaussian import FieldGaussian
from pymc_flows.field.factors import Factor, Factoring, Factors
from pymc_flows.field.posterior import Posterior

# Damping: the first multiple of the identity, relative to the mean curvature; the factors by which
# it grows and shrinks; and the largest.
FIRST_DAMPING, MORE, LESS, MAX_DAMPING = 1e-3, 8.0, 1 / 16, 1e9
# Most damped steps in a row. Fields with a mode nearby take a few; where variables can be rotated
# into each other, as in a factor model, no mode stands out. Only the first search takes so many.
MAX_DAMPED = 30
# Largest decrement, per element of the field, of a step that may end at the mode of a quadratic.
NEAR = 100.0
# Share of the expected gain that a step must have.
ARMIJO = 1e-4
# A curvature is used again where half of its log determinant has changed by less, in nats.
# If a step changes the curvature of all n elements by the same share, it leaves that share of the
# step to take; then the decrement falls to a quarter of its square, and the determinant changes by
# n times the root of what the decrement has fallen to.
SAME_DETERMINANT = 1e-2
# Differences of log densities below this share are rounding.
ROUNDING = 1e-12


class _Climbs:
    """Searches for m modes, side by side.

    Parameters
    ----------
    hyper : ndarray, shape (m, n_hyper)
    field : ndarray, shape (m, n_field)
        Where the searches begin; later where they are.
    values : ndarray, shape (m,)
        Log densities there, in nats.
    gradients : ndarray, shape (m, n_field)

    Attributes
    ----------
    entries : ndarray, shape (m, n_entries)
        Entries of the curvatures there.
    bent : ndarray of bool, shape (m,)
        Whether ``entries`` are those of the present place.
    done : ndarray of bool, shape (m,)
    damping, decrement : ndarray, shape (m,)
    damped : ndarray of int, shape (m,)
        Number of steps with damping in a row.
    factors : list of Factor or None
        Factors of the curvatures of searches that are done.
    """

    def __init__(
        self, hyper: np.ndarray, field: np.ndarray, values: np.ndarray, gradients: np.ndarray
    ):
        m = len(hyper)
        self.hyper, self.field = hyper, np.array(field, dtype=float)
        self.values, self.gradients = values, gradients
        self.entries = np.empty((m, 0))
        self.bent, self.done = np.zeros(m, bool), ~np.isfinite(values)
        self.damping, self.decrement = np.zeros(m), np.full(m, np.inf)
        self.damped = np.zeros(m, int)
        self.factors: list[Factor | None] = [None] * m

    def finish(
        self, rows: np.ndarray, steps: np.ndarray, factors: Factors[Any], numbers: np.ndarray
    ) -> None:
        """Take last steps, which are so short that their gain need not be evaluated."""
        self.field[rows] += steps
        self.values[rows] += 0.5 * self.decrement[rows]
        self.done[rows] = True
        for i, number in zip(rows.tolist(), numbers.tolist(), strict=True):
            self.factors[i] = factors[number]

    def result(self, i: int) -> FieldGaussian | None:
        """The Gaussian at the end of a search; None if there is none."""
        factor, value = self.factors[i], float(self.values[i])
        if factor is None or not math.isfinite(value):
            return None
        return FieldGaussian(self.hyper[i], self.field[i], factor, value)


class FieldModes:
    """Finds modes of the field, and the curvature there.

    Parameters
    ----------
    posterior : Posterior
    factoring : Factoring
        For the curvature of the field.

    Attributes
    ----------
    is_quadratic : bool
        Whether the log density is known to be quadratic in the field.
    """

    def __init__(self, posterior: Posterior, factoring: Factoring):
        self.posterior, self.factoring = posterior, factoring
        self.is_quadratic = False
        self._diagonal = np.flatnonzero(factoring.indices == factoring.columns)

    def find(
        self,
        hyper: np.ndarray,
        field: np.ndarray,
        *,
        steps: int,
        tolerance: float,
        quadratic: bool = False,
    ) -> list[FieldGaussian | None]:
        """Find the modes given hyperparameters (n, n_hyper), from fields (n, n_field).

        Each result depends on its own hyperparameters and field alone.

        Parameters
        ----------
        hyper, field : ndarray
        steps : int
            Largest number of steps, failed ones included.
        tolerance : float
            Newton decrement g'Q⁻¹g at which the mode is found, in nats.
        quadratic : bool
            Whether to take the end of a Newton step for the mode without another evaluation, which
            is right where the log density is quadratic.

        Returns
        -------
        list of FieldGaussian or None
            At the last points; None where the log density is not finite, its curvature not
            positive definite, or more than `MAX_DAMPED` steps in a row were damped.
        """
        climbs = _Climbs(hyper, field, *self._evaluate(hyper, field))
        at_once = NEAR * self.posterior.n_field if quadratic else tolerance
        for _ in range(steps):
            active = np.flatnonzero(~climbs.done)
            if not len(active):
                break
            self._step(climbs, active, at_once, tolerance)
        for i in np.flatnonzero(~climbs.done).tolist():  # out of steps
            self._stop(climbs, i)
        return [climbs.result(i) for i in range(len(hyper))]

    def curvature(self, hyper: np.ndarray, field: np.ndarray) -> np.ndarray:
        """Entries of −∇² of the log density over the field, at one point."""
        [entries] = self.posterior.entries(self.posterior.join(hyper, field))
        return entries

    def factor(self, entries: np.ndarray) -> Factor:
        """Factor a curvature; raise `NotPositiveDefinite`."""
        self.posterior.evaluations.factors += 1
        return self.factoring.factor(entries)

    def _evaluate(self, hyper: np.ndarray, field: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values, gradients = self.posterior.value_and_grad(self.posterior.join(hyper, field))
        gradients = gradients[:, self.posterior.field]
        values = np.where(np.isfinite(gradients).all(axis=1), values, -np.inf)
        return values, gradients

    def _step(self, climbs: _Climbs, active: np.ndarray, at_once: float, tolerance: float) -> None:
        """Take one step of each search, damped as far as needed.

        Searches with a decrement below ``at_once`` are done without another evaluation.
        """
        self._bend(climbs, active[~climbs.bent[active]])
        factors = self._damp(climbs, active)
        damped = np.where(climbs.damping[active] > 0, climbs.damped[active] + 1, 0)
        climbs.damped[active] = damped
        exist = factors.exist & (damped <= MAX_DAMPED)
        climbs.done[active[~exist]] = True
        rows = np.flatnonzero(exist)
        steps = factors.solve(rows, climbs.gradients[active[rows]])
        active = active[rows]
        climbs.decrement[active] = _products(steps, climbs.gradients[active])
        ends = (climbs.decrement[active] < at_once) & (climbs.damping[active] == 0)
        climbs.finish(active[ends], steps[ends], factors, rows[ends])
        active, rows, steps = active[~ends], rows[~ends], steps[~ends]
        if not len(active):
            return
        fields = climbs.field[active] + steps
        values, gradients = self._evaluate(climbs.hyper[active], fields)
        before, promised = climbs.values[active], climbs.decrement[active]
        gained = values >= before + ARMIJO * promised - ROUNDING * (1 + np.abs(before))
        failed = active[~gained]
        climbs.damping[failed] = np.maximum(climbs.damping[failed] * MORE, FIRST_DAMPING)
        climbs.done[failed] = climbs.damping[failed] >= MAX_DAMPING
        moved, rows = active[gained], rows[gained]
        climbs.field[moved], climbs.values[moved] = fields[gained], values[gained]
        climbs.gradients[moved] = gradients[gained]
        self._settle(climbs, moved, factors, rows, tolerance)

    def _settle(
        self,
        climbs: _Climbs,
        moved: np.ndarray,
        factors: Factors[Any],
        rows: np.ndarray,
        tolerance: float,
    ) -> None:
        """End searches that one more step with the same curvature ends; damp the others less."""
        free = climbs.damping[moved] == 0
        rows, undamped = rows[free], moved[free]
        steps = factors.solve(rows, climbs.gradients[undamped])
        left = _products(steps, climbs.gradients[undamped])
        share = (SAME_DETERMINANT / climbs.field.shape[1]) ** 2
        ends = left < np.minimum(tolerance, share * climbs.decrement[undamped])
        climbs.decrement[undamped[ends]] = left[ends]
        climbs.finish(undamped[ends], steps[ends], factors, rows[ends])
        less = climbs.damping[moved] * LESS
        climbs.damping[moved] = np.where(less > FIRST_DAMPING / 64, less, 0.0)
        climbs.bent[moved] = False

    def _bend(self, climbs: _Climbs, rows: np.ndarray) -> None:
        """Compute the curvatures of some searches."""
        if not len(rows):
            return
        points = self.posterior.join(climbs.hyper[rows], climbs.field[rows])
        found = self.posterior.entries(points)
        if not climbs.entries.shape[1]:
            climbs.entries = np.empty((len(climbs.done), found.shape[1]))
        climbs.entries[rows] = found
        climbs.bent[rows] = True

    def _damp(self, climbs: _Climbs, rows: np.ndarray) -> Factors[Any]:
        """Factor the curvatures, with as much damping as that takes."""
        factors = self._factors(climbs, rows)
        left = np.flatnonzero(~factors.exist)
        finite = np.isfinite(climbs.entries[rows[left]]).all(axis=1)
        left = left[finite]
        if not len(left):
            return factors
        kept = [factors[i] for i in range(len(rows))]
        while len(left):
            damping = np.maximum(climbs.damping[rows[left]] * MORE, FIRST_DAMPING)
            climbs.damping[rows[left]] = damping
            left = left[damping < MAX_DAMPING]
            more = self._factors(climbs, rows[left])
            for k, i in enumerate(left):
                kept[i] = more[k]
            left = left[~more.exist]
        return Factors(kept)

    def _factors(self, climbs: _Climbs, rows: np.ndarray) -> Factors[Any]:
        """Factor the curvatures with their present damping."""
        entries, damping = climbs.entries[rows], climbs.damping[rows, None]
        if damping.any():
            diagonal = entries[:, self._diagonal]
            unit = np.abs(diagonal).mean(axis=1, keepdims=True)
            entries[:, self._diagonal] += damping * np.where(unit > 0, unit, 1.0)
        self.posterior.evaluations.factors += len(rows)
        return self.factoring.factors(entries)

    def _stop(self, climbs: _Climbs, i: int) -> None:
        """End a search where it is, with the factor of the curvature there, if it has one."""
        rows = np.array([i])
        climbs.damping[i] = 0.0
        self._bend(climbs, rows[~climbs.bent[rows]])
        climbs.factors[i] = self._factors(climbs, rows)[0]


def _products(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Inner products of rows."""
    return (a * b).sum(axis=1)
