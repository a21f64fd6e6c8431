"""Why steps fail: the first result that is not finite."""

from __future__ import annotations

import numpy as np

from pymc_flows.backends.functions import function_of
from pymc_flows.backends.modes import NUMPY
from pymc_flows.backends.ops import brief, has_loop
from pymc_flows.flows.chain import Chain
from pymc_flows.flows.evaluate import forward_and_log_det
from pymc_flows.model.examine import why_not_finite
from pymc_flows.model.log_density import LogDensity
from pymc_flows.model.logp import ModelDensity, Replacements
from pymc_flows.training.loop import TrainingLoop
from pymc_flows.training.objectives.loss import Problem


def why_step_failed(problem: Problem, loop: TrainingLoop, replacements: Replacements) -> str:
    """Replay the last failed step outside the loop; name the first result that is not finite.

    The problem has the parameters at which the step failed: those after the last good step.
    """
    q, density, step, noise = problem.q, problem.density, loop.step, loop.failed_noise
    z, log_det = forward_and_log_det(q.chain, noise, q.values())
    z = q.frame.forward(z)
    bad = np.argwhere(~np.isfinite(z))
    if len(bad):
        draw, coordinate = bad[0]
        slot = next(s for s in density.slots if coordinate < s.slice.stop)
        return (
            f"  the flow: coordinate {coordinate - slot.slice.start} of {slot.name!r} is "
            f"{z[draw, coordinate]} at draw {draw}"
        )
    if not np.isfinite(log_det).all():
        return "  the flow: its log-determinant is not finite"
    outputs = [step.loss, *step.grads.values()]
    mode = loop.mode if has_loop(outputs) else NUMPY
    try:
        replay = function_of([step.noise], outputs, mode=mode)
        loss, *grads = replay(noise)
        if not np.isfinite(loss):
            return _why_too_few(density.replaced(replacements), z)
    except Exception as error:  # the Ops of a model may raise anything
        return f"  the log density raises {brief(error)}"
    for name, grad in step.by_parameter(dict(zip(step.grads, grads, strict=True))).items():
        bad = np.argwhere(~np.isfinite(grad))
        if len(bad):
            return f"  the gradient with respect to {_place(q.chain, name, bad[0])} is not finite"
    return "  loss and gradient are finite there: the optimizer's update is not"


def _why_too_few(density: ModelDensity, points: np.ndarray) -> str:
    """Say why too few draws, at points (n, dim), have a finite log density and gradient."""
    value, gradient = LogDensity(density).value_and_grad(points)
    if not np.isfinite(value).all():
        return why_not_finite(density, points)
    bad = ~np.isfinite(gradient)
    lines = [
        f"  the gradient of the log density with respect to {slot.name!r} is not finite at "
        f"{int(bad[:, slot.slice].any(axis=1).sum())} of {len(points)} draws"
        for slot in density.slots
        if bad[:, slot.slice].any()
    ]
    return "\n".join(lines) or "  the loss is not finite"


def _place(chain: Chain, name: str, index: np.ndarray) -> str:
    """Say which parameter an entry of a gradient belongs to."""
    position = 0
    for i, block in enumerate(chain.blocks):
        prefix = f"{i}_{block.layer.word}_"
        if name.startswith(prefix):
            layer = position + index[0]
            return f"{name.removeprefix(prefix)!r} of layer {layer} ({block.layer.word})"
        position += block.count
    return repr(name)
