"""Held-out draws: they choose the parameters to keep, and show when draws are learned by heart."""

from __future__ import annotations

import logging

import numpy as np

from pymc_flows.flows.state import FlowState
from pymc_flows.training.hooks import Hook
from pymc_flows.training.state import FitState

_log = logging.getLogger(__name__)

# Least number of looks at held-out draws in a fit. Rich flows learn few draws by heart in few
# steps, so looks begin once all draws have been seen, after at least `FIRST` steps, and become
# rarer.
CHECKS = 20
FIRST = 10
# Fall of the log density of held-out draws since the best look that warns: nats, and standard
# errors.
LOST = 0.1
N_ERRORS = 2.0
# If the best look comes after this share of the steps, the flow was still getting better.
LATE = 0.8


class HeldOut(Hook):
    """Keeps the parameters with the lowest loss on held-out draws.

    Parameters
    ----------
    q : FlowState
    points : ndarray, shape (n, dim)
        The held-out draws, in the unconstrained space.
    longest : int
        Most steps between two looks.
    epoch : int
        Steps that take as many draws as there are.
    """

    def __init__(self, q: FlowState, points: np.ndarray, longest: int, epoch: int):
        self._q, self._points, self._longest = q, points, longest
        self.every = min(max(FIRST, epoch), longest)
        self._best = np.inf
        self._best_step, self._last_step = 0, -1
        self._values: list[np.ndarray] = []
        self._look(0)

    def act(self, state: FitState, losses: np.ndarray) -> None:
        """Look, and do so less often later."""
        self._look(state.i)
        if state.i >= CHECKS // 2 * self.every:
            self.every = min(2 * self.every, self._longest)

    def end(self, state: FitState) -> None:
        """Look once more."""
        self._look(state.i)

    def _look(self, i: int) -> None:
        """Compare the parameters of a step with the best so far."""
        if i == self._last_step:
            return
        self._last_step = i
        loss = -float(self._q.log_prob(self._points).mean())
        if loss < self._best:
            self._best, self._best_step = loss, i
            self._values = [param.get_value() for param in self._q.params]

    @property
    def learns(self) -> bool:
        """Whether the flow was still getting better at the last look."""
        return self._best_step >= LATE * self._last_step

    def keep_best(self, used: np.ndarray) -> None:
        """Set the parameters to the best ones; warn if later steps learned draws by heart.

        ``used`` (n, dim) are the draws of the fit.
        """
        q, steps = self._q, self._last_step
        end = q.log_prob(self._points)
        own = float(q.log_prob(used).mean())
        for param, value in zip(q.params, self._values, strict=False):
            param.set_value(value)
        _log.info(
            "Held-out draws: mean of -log q %.5g, the best, after %d steps.",
            self._best,
            self._best_step,
        )
        lost = q.log_prob(self._points) - end
        noise = float(lost.std() / len(lost) ** 0.5)
        # A fit that diverged is not better at its own draws either.
        if lost.mean() <= max(LOST, N_ERRORS * noise) or own - end.mean() <= LOST:
            return
        n_params = sum(param.get_value(borrow=True).size for param in q.params)
        _log.warning(
            "The flow %r learned draws by heart: after %s steps the mean of -log q was %.5g at the "
            "%s draws of the fit and %.5g at the %s held out, where it had been %.5g ± %.2g nats "
            "lower after %s. The parameters of that step are kept. %s of them are many for so few "
            "draws: give more draws, or take fewer layers, or smaller or fewer steps.",
            str(q.formula),
            f"{steps:,}",
            -own,
            f"{len(used):,}",
            -end.mean(),
            f"{len(end):,}",
            lost.mean(),
            noise,
            f"{self._best_step:,}",
            f"{n_params:,}",
        )
