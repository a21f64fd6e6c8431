"""The step of a loss and its gradients: updates, settings, and tracked values."""

from __future__ import annotations

from collections.abc import Sequence

import pymc as pm
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.tensor.variable import TensorVariable

from pymc_flows.backends.rewrites import materialize
from pymc_flows.flows.state import FlowState
from pymc_flows.training.config import FitConfig
from pymc_flows.training.loop import Packing, Step
from pymc_flows.training.objectives.loss import Loss


def packing_of(q: FlowState, config: FitConfig) -> Packing | None:
    """One vector for all parameters, if the optimizer works entry by entry; else None."""
    is_alone = not config.more_obj_params and config.more_updates.keys().isdisjoint(q.params)
    return Packing(q.params_dict) if config.optimizer.is_elementwise and is_alone else None


def optimizer_step(
    q: FlowState,
    config: FitConfig,
    packing: Packing | None,
    noise: TensorVariable,
    loss: Loss,
    settings: Sequence[TensorVariable] = (),
    batch: Sequence[SharedVariable] = (),
) -> Step:
    """Make the step of a loss.

    Gradients are w.r.t. the vector of ``packing`` or, without one, w.r.t. ``q.params`` and
    ``more_obj_params``. ``settings`` are scalars that are set step by step, besides the step size,
    and ``batch`` data that differ in each step.
    """
    optimizer, extra, grads = config.optimizer, config.more_obj_params, loss.grads
    own = {"": packing.theta} if packing else dict(q.params_dict)
    more = packing.rewrite(config.more_updates) if packing else config.more_updates
    if config.total_grad_norm_constraint is not None:
        grads = pm.total_norm_constraint(grads, config.total_grad_norm_constraint)
    grads = [materialize(grad) for grad in grads]
    updates = {**optimizer.optimizer(grads, [*own.values(), *extra]), **more}
    tracked = dict(own) if any(t.params for t in config.trackers) else {}
    if any(t.grads for t in config.trackers):
        tracked |= {f"grad_{k}": g for k, g in zip(own, grads, strict=False)}
    names = [*own, *(str(param) for param in extra)]
    rate = () if optimizer.rate is None else (optimizer.rate,)
    return Step(
        noise,
        loss.value,
        dict(zip(names, grads, strict=True)),
        updates,
        (*rate, *settings),
        tracked,
        packing,
        tuple(q.params),
        loss.lost,
        tuple(batch),
    )
