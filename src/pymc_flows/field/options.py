"""Bounds and tolerances of the fit of a field given hyperparameters, and what it has cost."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from pymc_flows.support.evaluations import Evaluations


@dataclass(frozen=True)
class FieldOptions:
    """Bounds and tolerances; every loop of the fit ends by one of them.

    Seconds are those of a usual core, computed from the number and the size of evaluations. So they
    do not depend on the machine, and nor does a fit.

    Attributes
    ----------
    newton_steps : int
        Most Newton steps for one mode of the field.
    first_newton_steps : int
        The same for the first mode, from the start of the model.
    newton_tolerance : float
        Newton decrement, in nats, at which a mode is found: the square of the distance from the
        mode, in standard deviations of the field as a whole. The determinant of a large field's
        curvature is far more sensitive: 1e-3 leaves errors of several nats at 6,000 elements.
    search_steps : int
        Most steps of the quasi-Newton search for the mode over hyperparameters.
    max_step : float
        Longest first step of that search in each hyperparameter, in unconstrained units; the bound
        is raised as long as steps reach it and gain.
    search_tolerance : float
        Gain, in nats, below which the search ends.
    quadrature_pairs : int
        Most antithetic pairs of points for expectations over the field.
    correction_steps : int
        Newton steps with expected gradients, towards the mean of a skewed field.
    first_pairs : int
        Pairs of points for the first steps to the Gaussian nearest to a field that is far from
        Gaussian.
    nearest_steps : int
        Most of these first steps.
    nearest_tolerance : float
        Gain of the lower bound, in nats, below which steps to that Gaussian end.
    group_draws : int
        Most draws of the field behind the weights of groups.
    separator_draws : int
        Draws of the separator, each with a quarter of ``group_draws`` draws of the groups given it.
    group_error : float
        Standard error of the corrected log marginal, in nats, that suffices: fewer draws are taken
        if they reach it. Most of the error is the same at all values of the hyperparameters and
        does not matter.
    max_axes : int
        Most hyperparameters with which the marginal is followed along its axes.
    rounds : tuple of int
        Values of the hyperparameters in each round of adaptive importance sampling.
    values : int
        Values of the rounds that judge a Gaussian or a flow over the hyperparameters.
    effective : int
        Effective number of values from which draws are chosen: the mean of a hyperparameter is
        known to 1 / √effective of its standard deviations.
    most_values : int
        Most values of the round that provides them.
    seconds_to_fill : float
        Longest that this round may take.
    formula : str
        The flow over the hyperparameters, where a Gaussian is not enough.
    flow_rounds : int
        Most fits of that flow, each to all values so far.
    seconds_per_round : float
        Longest that another round may take; it has fewer values if needed.
    min_values : int
        Fewest values of a round, by which its cost per value is measured. In the first round the
        correction of Laplace's approximation is evaluated at as many values.
    check_values : int
        Values at which the correction is evaluated in each later round.
    correction_error : float
        Error, in nats, with which the correction may be predicted at the other values: the root
        mean square at values that the prediction has not seen.
    enough : float
        Share of effective values with which a distribution is good enough.
    gap : float
        Largest log evidence − ELBO, in nats, of a distribution that is good enough.
    judged : int
        Values of the hyperparameters at which groups are judged.
    judge_draws : int
        Draws of each group there; eight times as many where some groups cannot be trusted.
    judge_seconds : float
        Longest that this second judgement may take; otherwise there is none.
    degrees : float
        Degrees of freedom of the Student-t distribution from which values are drawn.
    widening : float
        Factor of the covariance of that distribution.
    """

    newton_steps: int = 20
    first_newton_steps: int = 100
    newton_tolerance: float = 1e-8
    search_steps: int = 60
    max_step: float = 1.0
    search_tolerance: float = 1e-2
    quadrature_pairs: int = 8
    correction_steps: int = 2
    first_pairs: int = 8
    nearest_steps: int = 12
    nearest_tolerance: float = 0.1
    group_draws: int = 64
    separator_draws: int = 8
    group_error: float = 0.1
    max_axes: int = 16
    rounds: tuple[int, ...] = (128, 128)
    values: int = 256
    effective: int = 2_000
    most_values: int = 4_096
    seconds_to_fill: float = 8.0
    formula: str = "spline(bins=10, bound=10)-tril-loc"
    flow_rounds: int = 3
    seconds_per_round: float = 4.0
    min_values: int = 40
    check_values: int = 16
    correction_error: float = 0.2
    enough: float = 0.7
    gap: float = 0.25
    judged: int = 4
    judge_draws: int = 256
    judge_seconds: float = 10.0
    degrees: float = 8.0
    widening: float = 1.1


# Seconds of an evaluation, and of each number that it goes through.
SECONDS_EACH, SECONDS_PER_NUMBER = 5e-5, 5e-8

type Report = Callable[[str, Evaluations, float], None]


@dataclass
class Progress:
    """Records what is being done and reports it: stage, evaluations, CPU seconds since the start.

    Parameters
    ----------
    evaluations : Evaluations
    sizes : tuple of int
        How many numbers a density or gradient goes through, and how many more a curvature does.
    report : callable, optional
        Called with stage, evaluations and seconds after each unit of work. An exception that it
        raises ends the fit.
    """

    evaluations: Evaluations
    sizes: tuple[int, int] = (0, 0)
    report: Report | None = None
    started: float = field(default_factory=time.process_time)
    history: list[tuple[str, Evaluations, float]] = field(default_factory=list)

    @property
    def effort(self) -> float:
        """Seconds that the evaluations so far take on a usual core."""
        done = self.evaluations
        points, matrices = done.densities + done.gradients, done.curvatures + done.factors
        rows, entries = self.sizes
        numbers = points * rows + matrices * (rows + entries)
        return SECONDS_EACH * (points + matrices) + SECONDS_PER_NUMBER * numbers

    def tell(self, stage: str) -> None:
        """Record a unit of work."""
        row = (stage, self.evaluations.copy(), time.process_time() - self.started)
        if not self.history or self.history[-1][0] != stage:
            self.history.append(row)
        else:
            self.history[-1] = row
        if self.report is not None:
            self.report(*row)
