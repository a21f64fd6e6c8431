"""The graphs of one training step: loss, gradients, updates, and what is tracked."""

from __future__ import annotations

from collections.abc import Mapping

import pymc as pm
import pytensor
import pytensor.tensor as pt
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Variable
from pytensor.graph.traversal import ancestors
from pytensor.tensor.variable import TensorVariable

from pymc_flows.approximation import NormalizingFlow
from pymc_flows.backends.materialize import materialize
from pymc_flows.errors import ArgumentError
from pymc_flows.flows.chain import Loop
from pymc_flows.model.examine import DrawPlan
from pymc_flows.training.loop import Step
from pymc_flows.training.objective import Estimator, loss_and_gradients
from pymc_flows.training.optimizers import Rated
from pymc_flows.training.packing import Packing


def build_step(
    approx: NormalizingFlow,
    plan: DrawPlan,
    n_draws: int,
    optimizer: Rated,
    *,
    beta: float,
    anneals: bool,
    gradient: str,
    loop: Loop,
    extra: list[SharedVariable],
    more_updates: dict[SharedVariable, TensorVariable],
    replacements: Mapping[Variable, Variable] | None,
    max_norm: float | None,
    track_params: bool,
    track_grads: bool,
) -> Step:
    """Build the graphs of one training step.

    Parameters
    ----------
    approx : NormalizingFlow
    plan : DrawPlan
        How the draws go through the log density.
    n_draws : int
        Draws per step.
    optimizer : Rated
    beta : float
        Weight of the prior and the entropy.
    anneals : bool
        Whether the log density is tempered step by step.
    gradient : {'total', 'path', 'switch'}
    loop : {'unroll', 'scan', 'kernel'}
        How repeats of a layer enter the graph.
    extra : list of SharedVariable
        Parameters of the model to optimise along.
    more_updates : dict
        Further updates, once per step.
    replacements : mapping, optional
        Replacements in the log density.
    max_norm : float, optional
        Upper bound of the gradient's norm.
    track_params, track_grads : bool
        What leaves the loop with the losses.

    Raises
    ------
    ArgumentError
        If the loss does not depend on one of ``extra``.
    """
    problem = approx.problem(beta)
    temperature, path = (
        pt.scalar(name, dtype=pytensor.config.floatX) for name in ("inverse_temperature", "path")
    )
    use_path = {"total": None, "path": pt.constant(1), "switch": path}[gradient]
    estimator = Estimator(temperature if anneals else None, use_path)
    noise = pt.matrix("z0", shape=(n_draws, approx.ddim), dtype=pytensor.config.floatX)
    named = approx.flow.params_dict
    packing, params = None, [*problem.q.params, *extra]
    if optimizer.is_elementwise and not extra and more_updates.keys().isdisjoint(params):
        packing = Packing(named)
        params = [packing.theta]
        more_updates = packing.rewrite(more_updates)
    loss, grads = loss_and_gradients(
        problem,
        noise,
        plan,
        loop=loop,
        theta=packing and packing.theta,
        estimator=estimator,
        extra=extra,
        replacements=replacements,
    )
    used = set(ancestors([loss]))
    for param in extra:
        if param not in used:
            raise ArgumentError(f"the loss does not depend on {param}, one of more_obj_params")
    if max_norm is not None:
        grads = pm.total_norm_constraint(grads, max_norm)
    grads = [materialize(grad) for grad in grads]
    updates = dict(optimizer.optimizer(grads, params))
    updates.update(more_updates)
    own = {"": packing.theta} if packing else dict(named)
    tracked = dict(own) if track_params else {}
    if track_grads:
        tracked.update({f"grad_{k}": g for k, g in zip(own, grads, strict=False)})
    names = [*own, *(str(param) for param in extra)]
    by_name = dict(zip(names, grads, strict=True))
    switch = path if gradient == "switch" else None
    settings = [optimizer.rate, estimator.inverse_temperature, switch]
    chosen = tuple(x for x in settings if x is not None)
    return Step(noise, loss, by_name, updates, chosen, tracked, packing)
