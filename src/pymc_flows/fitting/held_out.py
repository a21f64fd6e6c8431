"""Draws that a fit does not use: which of its parameters to keep, and what is learned by heart."""

from __future__ import annotations

import logging

import numpy as np

from pymc_flows.approximation import NormalizingFlow
from pymc_flows.fitting.session import FitState

_log = logging.getLogger(__name__)

# Looks at the held-out draws, evenly over a fit. Rich flows learn few draws by heart in few steps,
# so looks begin once all draws have been seen, after at least as many steps as said here, and
# become rarer by and by.
CHECKS = 20
FIRST = 10
# Nats, and standard errors of their noise, that held-out draws may lose since the best look.
LOST = 0.1
N_ERRORS = 2.0
# A flow whose best look is in this last part of a fit was still getting better.
LATE = 0.8


class HeldOut:
    """The parameters, of those looked at, that describe held-out draws best.

    Parameters
    ----------
    approx : NormalizingFlow
    state : FitState
        Of its fit, which calls `look` every ``state.every`` steps.
    points : ndarray, shape (n, dim)
        Of the unconstrained space.
    epoch : int
        Steps that see as many draws as there are.
    """

    def __init__(self, approx: NormalizingFlow, state: FitState, points: np.ndarray, epoch: int):
        self._approx, self._state, self._points = approx, state, points
        self._longest = state.every
        state.every = min(max(FIRST, epoch), state.every)
        self._best = np.inf
        self._best_step, self._last_step = 0, -1
        self._values: list[np.ndarray] = []
        self.look()

    def look(self) -> None:
        """Compare the parameters of this step with the best so far."""
        state = self._state
        if state.i == self._last_step:
            return
        self._last_step = state.i
        loss = -float(self._approx.log_prob(self._points).mean())
        if loss < self._best:
            self._best, self._best_step = loss, state.i
            self._values = [param.get_value() for param in self._approx.params]
        if state.i >= CHECKS // 2 * state.every:
            state.every = min(2 * state.every, self._longest)

    @property
    def learns(self) -> bool:
        """Whether the flow was still getting better at the end."""
        return self._best_step >= LATE * self._state.i

    def keep_best(self, used: np.ndarray) -> None:
        """Set the parameters to the best; warn if steps after these learned draws by heart.

        Parameters
        ----------
        used : ndarray, shape (n, dim)
            The draws of the fit.
        """
        self.look()
        steps, approx = self._state.i, self._approx
        end = approx.log_prob(self._points)
        own = float(approx.log_prob(used).mean())
        for param, value in zip(approx.params, self._values, strict=False):
            param.set_value(value)
        _log.info(
            "Held-out draws: mean of -log q %.5g, the best, after %d steps.",
            self._best,
            self._best_step,
        )
        lost = approx.log_prob(self._points) - end
        noise = float(lost.std() / len(lost) ** 0.5)
        # A fit that diverges is no better at its own draws.
        if lost.mean() <= max(LOST, N_ERRORS * noise) or own - end.mean() <= LOST:
            return
        n_params = sum(param.get_value(borrow=True).size for param in approx.params)
        _log.warning(
            "The flow %r learned draws by heart: after %s steps the mean of -log q was %.5g at the "
            "%s draws of the fit and %.5g at the %s held out, where it had been %.5g ± %.2g nats "
            "lower after %s. The parameters of that step are kept. %s of them are many for so few "
            "draws: give more draws, or take fewer layers, or smaller or fewer steps.",
            str(approx.formula),
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
