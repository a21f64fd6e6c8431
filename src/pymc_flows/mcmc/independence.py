"""Independence Metropolis-Hastings: draws of a flow as proposals."""

from __future__ import annotations

import logging
from typing import Any, ClassVar

import numpy as np
import pymc as pm
from pymc.step_methods import BlockedStep
from pytensor.compile.mode import Mode
from pytensor.tensor.variable import TensorVariable
from xarray import Dataset

from pymc_flows.approximation import NormalizingFlow
from pymc_flows.errors import FitError
from pymc_flows.model.log_density import LogDensity
from pymc_flows.model.logp import ModelDensity
from pymc_flows.support.compat import Competence, get_random_generator
from pymc_flows.support.seeds import RandomState

_log = logging.getLogger(__name__)

# With a lower share of accepted proposals, chains consist of few different draws.
LOW_ACCEPTANCE = 0.1


def independence_chains(
    approx: NormalizingFlow,
    density: ModelDensity,
    draws: int,
    tune: int,
    chains: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, Dataset]:
    """Run chains whose proposals are independent draws of the flow.

    A proposal is accepted with probability min(1, w' / w), where w = p/q is the importance weight.
    All proposals of all chains are drawn and evaluated at once, before the first step.

    Parameters
    ----------
    approx : NormalizingFlow
        The proposal q.
    density : ModelDensity
        The target p.
    draws, tune, chains : int
        Steps kept and discarded of each chain, and number of chains.
    rng : numpy.random.Generator

    Returns
    -------
    points : ndarray, shape (chains, draws, dim)
        In the unconstrained space.
    stats : Dataset
        ``lp``, ``log_q`` (nats), ``accepted`` and ``acceptance_rate``, with dims (chain, draw).

    Raises
    ------
    FitError
        If the target has a finite density at no proposal.
    """
    steps = tune + draws + 1  # the first proposal is where a chain starts
    points, log_q = approx.sample_and_log_prob(chains * steps, random_seed=rng)
    log_p = LogDensity(density).value(points)
    log_w = np.where(np.isnan(log_p), -np.inf, log_p) - log_q
    if not np.isfinite(log_w).any():
        raise FitError(
            "the model has no finite log density at any draw of the flow, so that no proposal can "
            "be accepted\nFit the flow first."
        )
    taken, rate, accepted = _metropolis(log_w.reshape(chains, steps), rng)
    overall = float(rate[:, tune + 1 :].mean())
    if overall < LOW_ACCEPTANCE:
        _log.warning(
            "Only %.2g of the proposals were accepted: the flow is far from the posterior. Fit it "
            "for longer, or with a richer formula.",
            overall,
        )
    kept = (taken + steps * np.arange(chains)[:, None])[:, tune + 1 :]
    stats = {
        "lp": log_p[kept],
        "log_q": log_q[kept],
        "accepted": accepted[:, tune + 1 :],
        "acceptance_rate": rate[:, tune + 1 :],
    }
    return points[kept], Dataset({k: (("chain", "draw"), v) for k, v in stats.items()})


def _metropolis(
    log_w: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Run chains over proposals with log weights (chains, steps); results have the same shape.

    Returns
    -------
    taken : ndarray of int
        The step whose proposal is the chain's state.
    rate : ndarray
        Probability of acceptance.
    accepted : ndarray of bool
    """
    chains, steps = log_w.shape
    log_u = -rng.standard_exponential((chains, steps))
    taken = np.zeros((chains, steps), dtype=int)
    rate, accepted = np.ones((chains, steps)), np.ones((chains, steps), dtype=bool)
    current = log_w[:, 0]
    for k in range(1, steps):
        # From a state without density, any proposal is accepted.
        known = np.where(current == -np.inf, 0.0, current)
        gain = np.where(current == -np.inf, 0.0, log_w[:, k] - known)
        rate[:, k] = np.exp(np.minimum(gain, 0.0))
        accepted[:, k] = log_u[:, k] < gain
        taken[:, k] = np.where(accepted[:, k], k, taken[:, k - 1])
        current = np.where(accepted[:, k], log_w[:, k], current)
    return taken, rate, accepted


class FlowJump(BlockedStep):
    """A step of `pymc.sample` on a `neutra` model that proposes a new draw of N(0, I) for z0.

    In the model's own coordinates that is a draw of the flow, so this is independence
    Metropolis-Hastings. It can follow a step that moves inside a mode.

    Parameters
    ----------
    vars : list of one TensorVariable
        Value variable of z0.
    model : pymc.Model
        A model with one potential, the log weight.
    mode : Mode, optional
        PyTensor's mode for the log weight.
    blocked, rng
        As for any step method of PyMC.
    """

    name = "flow_jump"
    stats_dtypes_shapes: ClassVar[dict[str, Any]] = {
        "jump_accepted": (bool, []),
        "jump_acceptance_rate": (np.float64, []),
    }

    def __init__(
        self,
        vars: list[TensorVariable],
        *,
        model: pm.Model,
        mode: Mode | None = None,
        blocked: bool = True,
        rng: RandomState = None,
    ):
        self.vars = vars
        self.blocked = blocked
        self.rng = get_random_generator(rng)
        [log_weight] = model.replace_rvs_by_values(model.potentials)
        self._log_weight = model.compile_fn(log_weight, inputs=vars, mode=mode, point_fn=False)

    def step(self, point: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[Any]]:
        """Accept or reject one draw of the flow."""
        [var] = self.vars
        here = point[var.name]
        proposal = self.rng.standard_normal(here.shape).astype(here.dtype)
        log_w, log_w_new = (_finite_or_nothing(self._log_weight(z)) for z in (here, proposal))
        gain = 0.0 if log_w == -np.inf else log_w_new - log_w
        accepted = -self.rng.standard_exponential() < gain
        stats = {
            "jump_accepted": bool(accepted),
            "jump_acceptance_rate": float(np.exp(min(gain, 0.0))),
        }
        return ({**point, var.name: proposal} if accepted else point), [stats]

    @staticmethod
    def competence(var: Any, has_grad: Any) -> Competence:
        """Say that PyMC must not choose this step itself."""
        return Competence.INCOMPATIBLE


def _finite_or_nothing(log_w: Any) -> float:
    return -np.inf if np.isnan(log_w) else float(log_w)
