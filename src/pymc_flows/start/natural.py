"""The Gaussian with the largest ELBO, by natural gradients.

At that Gaussian the expectation of the gradient is 0, and that of the curvature is its precision
(Opper & Archambeau, The variational Gaussian approximation revisited, Neural Computation 21(3),
2009). Steps of natural gradients go there: the precision by a share of the way to the expected
curvature, the mean by as much of a Newton step (Khan & Nielsen, ISITA 2018, arXiv:1807.04489).
Expectations are means over a few draws and their mirror images, which have no noise where the
posterior is Gaussian. Unlike importance weights, this works in hundreds of dimensions; unlike plain
gradients, it takes a few dozen steps.
"""

from __future__ import annotations

import numpy as np
import scipy

from pymc_flows.flows.frame import Frame
from pymc_flows.start.options import NATURAL, NaturalOptions
from pymc_flows.start.search import Candidate
from pymc_flows.start.target import Target, dense
from pymc_flows.support.deadline import Deadline


def climb_elbo(
    target: Target,
    frame: Frame,
    rng: np.random.Generator,
    *,
    options: NaturalOptions = NATURAL,
    deadline: Deadline | None = None,
) -> Frame | None:
    """Improve a Gaussian by natural gradients of its ELBO.

    Parameters
    ----------
    target : Target
        With exact curvatures (`Target.is_exact`): differences would cost too much.
    frame : Frame
        The Gaussian to begin with.
    deadline : Deadline, optional
        When it has passed, the best so far is taken.

    Returns
    -------
    Frame or None
        A dense Gaussian; None if none has a larger ELBO, or ``dim`` is above ``options.max_dim``.
    """
    dim = len(frame.center)
    if dim > options.max_dim:
        return None
    half = rng.standard_normal((options.elbo_draws // 2, dim))
    noise = np.concatenate([half, -half])
    first = best = Candidate.of(target, frame, noise)
    state = _Gaussian.of(frame)
    for draws, steps, rate in options.stages:
        walked = []
        for _ in range(steps):
            if deadline is not None and deadline.has_passed:
                break
            moved = state.moved(target, draws, rate, rng, options.max_halvings)
            if moved is None:
                break
            state, length = moved
            walked.append((state, length))
        if not walked:
            break
        second_half = walked[len(walked) // 2 :]
        state = _Gaussian.mean([each for each, _ in second_half])
        candidate = Candidate.of(target, state.frame, noise)
        if candidate.elbo > best.elbo:
            best = candidate
        # Noise of the steps that remains in their mean, in nats: half a squared distance.
        noise_of_mean = 0.5 * rate / (2 - rate) * np.mean([x for _, x in second_half])
        if len(walked) < steps or noise_of_mean < options.precise:
            break
    return best.frame if best is not first else None


class _Gaussian:
    """A mean (dim,) and a precision (dim, dim), with its lower Cholesky factor."""

    def __init__(self, mean: np.ndarray, precision: np.ndarray):
        """Raise LinAlgError unless the precision is positive definite."""
        self.center, self.precision = mean, precision
        self._root = np.linalg.cholesky(precision)

    @classmethod
    def of(cls, frame: Frame) -> _Gaussian:
        """That of a frame."""
        dim = len(frame.center)
        if frame.is_elementwise:
            scale = np.ones(dim) if frame.scale is None else frame.scale
            return cls(frame.center, np.diag(scale**-2.0))
        inverse = scipy.linalg.solve_triangular(frame.scale, np.eye(dim), lower=True)
        return cls(frame.center, inverse.T @ inverse)

    @classmethod
    def mean(cls, of: list[_Gaussian]) -> _Gaussian:
        """The Gaussian with the averages of means and precisions."""
        center = np.mean([each.center for each in of], axis=0)
        return cls(center, np.mean([each.precision for each in of], axis=0))

    @property
    def frame(self) -> Frame:
        """The Gaussian as a frame."""
        dim = len(self.center)
        root = scipy.linalg.solve_triangular(self._root, np.eye(dim), lower=True, trans="T")
        return Frame(self.center, np.linalg.cholesky(root @ root.T))

    def moved(
        self,
        target: Target,
        draws: int,
        rate: float,
        rng: np.random.Generator,
        max_halvings: int,
    ) -> tuple[_Gaussian, float] | None:
        """The Gaussian after one step, and the squared length of the step by the new precision.

        The step is halved until the precision is positive definite. None if it never is, or if the
        derivatives are finite at no draw.
        """
        half = rng.standard_normal((draws // 2, len(self.center)))
        noise = np.concatenate([half, -half])
        points = (
            self.center
            + scipy.linalg.solve_triangular(self._root, noise.T, lower=True, trans="T").T
        )
        n, slope, curvature = 0, np.zeros_like(self.center), np.zeros_like(self.precision)
        for point in points:
            value, gradient, matrix = target.curved(point)
            full = dense(matrix)
            if np.isfinite(value) and np.isfinite(gradient).all() and np.isfinite(full).all():
                n, slope, curvature = n + 1, slope + gradient, curvature + full
        for _ in range(max_halvings if n else 0):
            precision = (1 - rate) * self.precision + rate * curvature / n
            try:
                after = _Gaussian(self.center, precision)
            except np.linalg.LinAlgError:
                rate /= 2
                continue
            step = scipy.linalg.cho_solve((after._root, True), slope / n)
            after.center = self.center + rate * step
            return after, float(slope @ step / n)
        return None
