"""Options of the fit of a field given hyperparameters, and a record of its cost."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from pymc_flows.support.evaluations import Evaluations


@dataclass(frozen=True)
class FieldOptions:
    """Bounds and tolerances of a fit.

    Seconds are those of a usual core, computed from the number and the size of evaluations. So they
    do not depend on the machine, and nor does a fit.

    Attributes
    ----------
    quadrature_pairs : int
        Most antithetic pairs of points for expectations over the field.
    group_error : float
        Standard error of differences of the corrected log marginal, in nats, that suffices, by the
        noise of draws. The error of its level, and so of the log evidence, may be larger if more
        draws would take long.
    rounds : tuple of int
        Values of the hyperparameters in each round of adaptive importance sampling.
    values : int
        Values of the rounds that judge a Gaussian or a flow over the hyperparameters.
    effective : int
        Effective number of values from which draws are chosen: the mean of a hyperparameter is
        known to 1 / √effective of its standard deviations.
    most_values : int
        Most values of the last round, which provides them.
    formula : str
        The flow over the hyperparameters, where a Gaussian is not enough.
    flow_rounds : int
        Most fits of that flow, each to all values so far.
    seconds_per_round : float
        Longest that any other round may take; it has fewer values if needed.
    correction_error : float
        Largest error, in nats, with which the correction of Laplace's approximation is predicted
        instead of evaluated: the root mean square at values that the prediction has not seen.
    emulation_error : float
        Largest error, in nats, with which values of the marginal itself are predicted in later
        rounds, if many of them would take long: at values left out, and of any one by itself. At
        values that are checked, errors may be twice as large.
    judge_draws : int
        Draws by which each group is judged; eight times as many if some cannot be trusted.
    judge_seconds : float
        Longest that this second judgement may take; otherwise there is none.
    """

    quadrature_pairs: int = 8
    group_error: float = 0.05
    rounds: tuple[int, ...] = (128, 128)
    values: int = 256
    effective: int = 2_000
    most_values: int = 4_096
    formula: str = "spline(bins=10, bound=10)-tril-loc"
    flow_rounds: int = 3
    seconds_per_round: float = 4.0
    correction_error: float = 0.1
    emulation_error: float = 0.05
    judge_draws: int = 256
    judge_seconds: float = 10.0


# Seconds of an evaluation, of each number that it goes through, and of each product of a factor.
SECONDS_EACH, SECONDS_PER_NUMBER, SECONDS_PER_PRODUCT = 5e-5, 5e-8, 5e-11


def effort(done: Evaluations, sizes: tuple[int, int], factor_products: int) -> float:
    """Seconds that evaluations take on a usual core; sizes as in `Progress`."""
    points, matrices = done.densities + done.gradients, done.curvatures + done.factors
    rows, entries = sizes
    numbers = points * rows + matrices * (rows + entries)
    seconds = SECONDS_EACH * (points + matrices) + SECONDS_PER_NUMBER * numbers
    return seconds + SECONDS_PER_PRODUCT * done.factors * factor_products


type Report = Callable[[str, Evaluations, float], None]


@dataclass
class Progress:
    """Records and reports the progress of a fit: stage, evaluations, CPU seconds of this thread.

    Parameters
    ----------
    evaluations : Evaluations
    sizes : tuple of int
        How many numbers a density or gradient goes through, and how many more a curvature does.
    factor_products : int
        Multiplications of a dense factor, that of the separator.
    report : callable, optional
        Called with stage, evaluations and seconds after each unit of work. An exception that it
        raises ends the fit.
    """

    evaluations: Evaluations
    sizes: tuple[int, int] = (0, 0)
    factor_products: int = 0
    report: Report | None = None
    started: float = field(default_factory=time.thread_time)
    history: list[tuple[str, Evaluations, float]] = field(default_factory=list)

    @property
    def effort(self) -> float:
        """Seconds that the evaluations so far take on a usual core."""
        return effort(self.evaluations, self.sizes, self.factor_products)

    def tell(self, stage: str) -> None:
        """Record a unit of work."""
        row = (stage, self.evaluations.copy(), time.thread_time() - self.started)
        if not self.history or self.history[-1][0] != stage:
            self.history.append(row)
        else:
            self.history[-1] = row
        if self.report is not None:
            self.report(*row)
