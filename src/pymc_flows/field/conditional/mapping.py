"""The Gaussian over the field as a function of the hyperparameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pymc_flows.field.conditional.gaussian import FieldGaussian
from pymc_flows.field.conditional.nearest import nearest_gaussian
from pymc_flows.field.conditional.newton import FieldModes
from pymc_flows.field.conditional.noise import ranks
from pymc_flows.field.factors import NotPositiveDefinite

# Most Gaussians that are held at once, and bytes that they may take.
MANY, BYTES = 256, 300e6
# Most Newton steps for one mode of the field, and the Newton decrement, in nats, at which it is
# found: the square of the distance from the mode, in standard deviations of the field as a whole.
# The determinant of a large field's curvature is far more sensitive: 1e-3 leaves errors of several
# nats at 6,000 elements.
NEWTON_STEPS, TOLERANCE = 20, 1e-8
# Most corrections of a mean by expected gradients.
CORRECTIONS = 2
# Steps to the Gaussian nearest to the field: pairs of points of the first steps, the largest number
# of these, and the gain, in nats, below which they end.
FIRST_PAIRS, NEAREST_STEPS, NEAREST_GAIN = 8, 12, 0.1
# Differences of log densities below this share are rounding.
ROUNDING = 1e-9
# Difference from a Gaussian's log density, in nats, below which the field's counts as quadratic.
QUADRATIC = 1e-6
# Standard deviation of log weights, in nats, from which on a Gaussian is far from the field.
FAR = 3.0
# A predicted mean is wrong if a correction would gain more than this, in nats.
NEAR = 0.5
# Means are not corrected where the decrement of the expected gradient is smaller, in nats.
SMALL = 1e-2


@dataclass(frozen=True, eq=False)
class Surface:
    """Predicts the mode of the field, or mean − mode: quadratic in each hyperparameter.

    Attributes
    ----------
    center : ndarray, shape (n_hyper,)
    mode : ndarray, shape (n_field,)
        Value at the centre.
    slopes, bends : ndarray, shape (n_hyper, n_field), optional
        First and second derivatives of it; without them the prediction is constant.
    reach : ndarray, shape (n_hyper,), optional
        Distances from the centre beyond which the prediction stays as it is there.
    excess : ndarray, shape (1 + n_hyper, n_entries), optional
        `FieldGaussian.excess` at the centre, then its derivatives; for Gaussians nearest to the
        field.
    """

    center: np.ndarray
    mode: np.ndarray
    slopes: np.ndarray | None = None
    bends: np.ndarray | None = None
    reach: np.ndarray | None = None
    excess: np.ndarray | None = None

    def __call__(self, hyper: np.ndarray) -> np.ndarray:
        """Predict modes (n, n_field) for hyperparameters (n, n_hyper)."""
        if self.slopes is None or self.bends is None or self.reach is None:
            return np.broadcast_to(self.mode, (len(hyper), len(self.mode))).copy()
        away = np.clip(hyper - self.center, -self.reach, self.reach)
        return self.mode + away @ self.slopes + 0.5 * np.square(away) @ self.bends

    def excess_at(self, hyper: np.ndarray) -> np.ndarray | None:
        """Predict the excess (n_entries,) for hyperparameters (n_hyper,)."""
        if self.excess is None or self.reach is None:
            return None
        away = np.clip(hyper - self.center, -self.reach, self.reach)
        return self.excess[0] + away @ self.excess[1:]


@dataclass(frozen=True, eq=False)
class Expectation:
    """Expectations under a Gaussian over the field.

    Attributes
    ----------
    elbo : float
        E log p + entropy, in nats: a lower bound of the marginal log density.
    gradient : ndarray, shape (n_hyper,)
        E ∂ log p / ∂ hyperparameters: the marginal's gradient by Fisher's identity, if the
        Gaussian is the field's distribution given the hyperparameters.
    """

    elbo: float
    gradient: np.ndarray


class ConditionalField:
    """Maps hyperparameters to a Gaussian over the field; equal ones always to the same Gaussian.

    The mode is sought by Newton's method from a predicted one. Where the field is skewed, the mean
    is then moved to where the expected gradient under the Gaussian is 0 (van Niekerk & Rue,
    Low-rank variational Bayes correction to the Laplace method, JMLR 25(62), 2024). That takes many
    gradients. But mean − mode, in units of the Gaussian, hardly depends on the hyperparameters, so
    `at` predicts it and only `near` computes it.

    Where the field is far from Gaussian, in groups too large for weights to correct, it is the
    Gaussian nearest to the field, whose precision minus the curvature is predicted, too.

    Parameters
    ----------
    modes : FieldModes
    surface : Surface
    points : ndarray, shape (n, n_field)
        Points over which expectations are taken, see `noise.quadrature`.
    corrects : bool
        Whether the field may be skewed.
    is_far : bool
        Whether the field is far from Gaussian.
    shift : Surface, optional
        Predicts mean − mode, in the coordinates of the noise; by default 0.
    """

    def __init__(
        self,
        modes: FieldModes,
        surface: Surface,
        points: np.ndarray,
        *,
        corrects: bool = True,
        is_far: bool = False,
        shift: Surface | None = None,
    ):
        self.modes, self.surface, self.points = modes, surface, points
        self.posterior = modes.posterior
        self.corrects, self.is_far, self.shift = corrects, is_far, shift

    @property
    def chunk(self) -> int:
        """How many Gaussians may be held at once."""
        numbers = self.posterior.n_field * 40 + self.posterior.dim * len(self.points)
        return int(np.clip(BYTES // (8 * numbers), 1, MANY))

    def at(
        self,
        hyper: np.ndarray,
        start: np.ndarray | None = None,
        *,
        steps: int = NEWTON_STEPS,
        tolerance: float = TOLERANCE,
    ) -> list[FieldGaussian | None]:
        """Return the Gaussians given hyperparameters (n, n_hyper); None where there is none.

        Parameters
        ----------
        hyper : ndarray
        start : ndarray, shape (n, n_field), optional
            Where the searches for the modes begin; by default at the predicted modes.
        steps : int
            Largest number of Newton steps.
        tolerance : float
            Newton decrement at which a mode is found, in nats.
        """
        start = self.surface(hyper) if start is None else start
        if self.is_far and self.surface.excess is not None:
            return self._predicted(hyper, start)
        found = self._modes(hyper, start, steps, tolerance)
        if self.is_far:
            return [None if g is None else self.nearest(g) for g in found]
        if self.shift is None or not self.corrects:
            return found
        shifts = self.shift(hyper)
        return [g and g.moved(by) for g, by in zip(found, shifts, strict=True)]

    def near(self, hyper: np.ndarray, other: FieldGaussian) -> list[FieldGaussian | None]:
        """Return the Gaussians given hyperparameters (n, n_hyper), with their means computed.

        Parameters
        ----------
        hyper : ndarray
        other : FieldGaussian
            Where the searches for modes and means begin; it belongs to other hyperparameters.
        """
        if self.is_far:
            return [self._nearest(g, other) for g in hyper]
        found = self._modes(hyper, np.repeat(other.mode[None], len(hyper), axis=0))
        if not self.corrects:
            return found
        if other.shift is not None:
            found = [g and g.moved(other.shift) for g in found]
        done = iter(self.centred([g for g in found if g is not None]))
        return [g and next(done) for g in found]

    def _modes(
        self,
        hyper: np.ndarray,
        start: np.ndarray,
        steps: int = NEWTON_STEPS,
        tolerance: float = TOLERANCE,
    ) -> list[FieldGaussian | None]:
        quadratic = self.modes.is_quadratic and not self.corrects
        return self.modes.find(hyper, start, steps=steps, tolerance=tolerance, quadratic=quadratic)

    def centred(self, gaussians: Sequence[FieldGaussian]) -> list[FieldGaussian]:
        """Move means to where the expected gradient is 0, as long as the lower bound grows."""
        field, result = self.posterior.field, list(gaussians)
        before: dict[int, tuple[float, FieldGaussian]] = {}
        active = list(range(len(result)))
        for k in range(CORRECTIONS + 1):
            if not active:
                break
            values, gradients = self._averages([result[i] for i in active])
            left = []
            for i, value, gradient in zip(active, values, gradients, strict=True):
                gained = np.isfinite(gradient).all() and value >= before.get(i, (value,))[0]
                if not gained:
                    result[i] = before[i][1] if i in before else result[i]
                    continue
                result[i] = replace(result[i], averages=(float(value), gradient))
                factor = result[i].factor
                step = factor.whiten(factor.solve(gradient[field]))
                if k < CORRECTIONS and step @ step > SMALL:
                    before[i] = float(value), result[i]
                    result[i] = result[i].moved(step)
                    left.append(i)
            active = left
        return result

    def nearest(self, gaussian: FieldGaussian) -> FieldGaussian:
        """The Gaussian nearest to the field, from another one on; first with few of the points."""
        few = self.points[: min(FIRST_PAIRS, len(self.points) // 2)]
        for points, steps in ((np.concatenate([few, -few]), NEAREST_STEPS), (self.points, 1)):
            gaussian = nearest_gaussian(
                self.modes, gaussian, points, steps=steps, tolerance=NEAREST_GAIN
            )
        return gaussian

    def _nearest(self, hyper: np.ndarray, other: FieldGaussian) -> FieldGaussian | None:
        """The Gaussian nearest to the field, from that of other hyperparameters on."""
        moved = self._with_excess(hyper, other.mean, other.excess)
        if moved is None:  # start again from the mode
            [moved] = self._modes(hyper[None], other.mean[None])
        return None if moved is None else self.nearest(moved)

    def _predicted(self, hyper: np.ndarray, means: np.ndarray) -> list[FieldGaussian | None]:
        """Gaussians with predicted excess and corrected mean; the nearest where that is wrong."""
        found = [
            self._with_excess(g, mean, self.surface.excess_at(g))
            for g, mean in zip(hyper, means, strict=True)
        ]
        done = iter(self.centred([g for g in found if g is not None]))
        result = [g and replace(next(done), shift=None) for g in found]
        for i, gaussian in enumerate(result):
            if gaussian is not None and self._decrement(gaussian) > NEAR:
                result[i] = self._nearest(gaussian.hyper, gaussian)
        return result

    def _decrement(self, gaussian: FieldGaussian) -> float:
        """Expected gain of another correction of the mean, in nats."""
        if gaussian.averages is None:
            return math.inf
        gradient = gaussian.averages[1][self.posterior.field]
        return 0.5 * float(gradient @ gaussian.factor.solve(gradient))

    def _with_excess(
        self, hyper: np.ndarray, mean: np.ndarray, excess: np.ndarray | None
    ) -> FieldGaussian | None:
        entries = self.modes.curvature(hyper, mean)
        if excess is not None:
            entries = entries + excess
        try:
            factor = self.modes.factor(entries)
        except NotPositiveDefinite:
            return None
        log_joint, _ = self.posterior.value_and_grad(self.posterior.join(hyper, mean))
        return FieldGaussian(hyper, mean, factor, float(log_joint[0]), excess=excess)

    def adapt(self, gaussian: FieldGaussian) -> FieldGaussian:
        """If the field is far from Gaussian, switch to the Gaussian nearest to it."""
        if not self.corrects or self.is_far or not self._is_poor(gaussian):
            return gaussian
        found = self._nearest(gaussian.hyper, gaussian)
        self.is_far = found is not None
        return gaussian if found is None else found

    def _is_poor(self, gaussian: FieldGaussian) -> bool:
        """Whether the log weights vary too much, in groups too large for an exact quadrature."""
        posterior, half = self.posterior, len(self.points) // 2
        _, size = ranks(posterior.groups)
        if size <= half:
            return False
        # All points have the same density under the Gaussian.
        points = posterior.join(gaussian.hyper, gaussian.place(self.points))
        values, _ = posterior.value_and_grad(points)
        return not values.std() < FAR

    def is_gaussian(self, gaussian: FieldGaussian) -> bool:
        """Whether the log density at the quadrature's points is that of the Gaussian."""
        posterior = self.posterior
        points = self.points[[0, -1]]
        values, _ = posterior.value_and_grad(posterior.join(gaussian.hyper, gaussian.place(points)))
        fallen = np.abs(gaussian.log_joint - values - 0.5 * len(gaussian.mean)).max()
        self.modes.is_quadratic = bool(fallen < QUADRATIC)
        return bool(fallen < ROUNDING * (1 + abs(gaussian.log_joint)))

    def expect(self, gaussians: Sequence[FieldGaussian]) -> list[Expectation]:
        """Return expectations under Gaussians over the field, in their order."""
        missing = [g for g in gaussians if g.averages is None]
        new = zip(*self._averages(missing), strict=True) if missing else iter(())
        hyper, found = self.posterior.hyper, []
        for gaussian in gaussians:
            value, gradient = next(new) if gaussian.averages is None else gaussian.averages
            entropy = gaussian.log_normalizer + 0.5 * len(gaussian.mean)
            found.append(Expectation(float(value) + entropy, gradient[hyper]))
        return found

    def _averages(self, gaussians: Sequence[FieldGaussian]) -> tuple[np.ndarray, np.ndarray]:
        """Expected log density (m,) and gradient (m, dim) under m Gaussians."""
        posterior = self.posterior
        rows = max(1, int(BYTES // (8 * 4 * posterior.dim * len(gaussians))))
        hyper = np.stack([g.hyper for g in gaussians])
        value = np.zeros(len(gaussians))
        gradient = np.zeros((len(gaussians), posterior.dim))
        for begin in range(0, len(self.points), rows):
            part = self.points[begin : begin + rows]
            field = np.concatenate([g.place(part) for g in gaussians])
            points = posterior.join(np.repeat(hyper, len(part), axis=0), field)
            values, gradients = posterior.value_and_grad(points)
            shape = (len(gaussians), len(part))
            value = value + values.reshape(shape).sum(axis=1)
            gradient = gradient + gradients.reshape(*shape, -1).sum(axis=1)
        return value / len(self.points), gradient / len(self.points)
