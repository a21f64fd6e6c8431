"""The loss: the negative ELBO of a flow on a model's log density, as PyTensor graphs.

loss = E_q[−log likelihood + w·(log q − log prior)] / c, in nats, with w the KL
weight and c the largest ratio of total to minibatch size (PyMC's ``scale_cost_to_minibatch``), 1
without minibatches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor import ifelse
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Variable
from pytensor.tensor.variable import TensorVariable

from pymc_flows.devices import AllSum, Devices
from pymc_flows.flows.chain import Chain, Loop
from pymc_flows.flows.state import FlowState, base_log_prob
from pymc_flows.model.examine import DrawPlan
from pymc_flows.model.logp import ModelDensity, Replacements
from pymc_flows.training.loop.packing import join, split_by_block


def default_gradient(chain: Chain, backend: str, *, anneals: bool) -> str:
    """Return the estimate that comes nearer to the posterior in equal time, 'total' or 'path'."""
    # Numba compiles a flow in 15 s with the path gradient, and in 10 s without. Far from the
    # posterior, where annealing begins, the path gradient has more noise.
    is_path = backend == "jax" and not anneals and chain.has_quick_score
    return "path" if is_path else "total"


@dataclass(frozen=True, eq=False)
class Anchor:
    """A point at which the log density of all rows is known.

    The error of a batch there, in value and gradient, is subtracted elsewhere: a control variate
    with mean 0 over batches. Near the point it removes most of the noise of batches (Baker,
    Fearnhead, Fox & Nemeth, Control variates for stochastic gradient MCMC, Statistics and Computing
    29, 2019, arXiv:1706.05439).

    Attributes
    ----------
    point : ndarray, shape (dim,)
    value : float
        In nats.
    gradient : ndarray, shape (dim,)
    """

    point: np.ndarray
    value: float
    gradient: np.ndarray

    def correction(
        self, density: ModelDensity, z: TensorVariable, replacements: Replacements
    ) -> tuple[TensorVariable, TensorVariable]:
        """Correction (draws,) of log densities at z (draws, dim), and its gradient (dim,)."""
        point, gradient = (
            pt.constant(x.astype(z.dtype), name=name)
            for x, name in ((self.point, "anchor"), (self.gradient, "anchor_gradient"))
        )
        at = pt.tensor_copy(point)
        value = pt.add(*density.single(at, replacements))
        change = gradient - pytensor.grad(value, at, disconnected_inputs="ignore")
        known = pt.constant(np.asarray([self.value, 0.0], z.dtype), name="anchor_value")[0]
        return known - value + (z - point) @ change, change


@dataclass(frozen=True, eq=False)
class Problem:
    """A flow, and the log density of a model that it is fitted to.

    Attributes
    ----------
    q : FlowState
    density : ModelDensity
        The target.
    kl_weight : float
        Weight of the Kullback-Leibler term; 1 is the ELBO.
    scale : TensorVariable or float
        The divisor c of the loss.
    anchor : Anchor, optional
        For a model that sees a batch of its rows at a time.
    """

    q: FlowState
    density: ModelDensity
    kl_weight: float = 1.0
    scale: TensorVariable | float = 1.0
    anchor: Anchor | None = None


@dataclass(frozen=True, eq=False)
class Estimator:
    """How the gradient of a step differs from that of the loss.

    Attributes
    ----------
    inverse_temperature : TensorVariable, optional
        Factor () of the gradient of the log density: the step fits that power of p.
    path : TensorVariable, optional
        Where it () is not 0, the path gradient is used, which leaves out the score of q's
        parameters. The score has mean 0; without it the gradient of each draw vanishes where q = p
        (Roeder, Wu & Duvenaud, Sticking the landing, NeurIPS 2017, arXiv:1703.09194).
    """

    inverse_temperature: TensorVariable | None = None
    path: TensorVariable | None = None


class Loss(NamedTuple):
    """The loss of a step, over draws at which it is finite.

    Attributes
    ----------
    value : TensorVariable
        Scalar, in nats; NaN if more than half of the draws are not finite.
    grads : list of TensorVariable
    lost : TensorVariable
        How many draws were left out, an integer.
    """

    value: TensorVariable
    grads: list[TensorVariable]
    lost: TensorVariable


def mean_of_finite(
    values: TensorVariable, finite: TensorVariable
) -> tuple[TensorVariable, TensorVariable]:
    """Average values (draws,) over the finite draws, and count the others.

    A draw at which a density is 0 or overflows says nothing about the others. If more than half of
    the draws are not finite, the mean is NaN.
    """
    n_draws = values.type.shape[0]
    n_finite = finite.sum()
    mean = pt.switch(finite, values, 0).sum() / n_finite.astype(values.dtype)
    enough = pt.ge(2 * n_finite, n_draws)
    return pt.switch(enough, mean, np.asarray(np.nan, values.dtype)), n_draws - n_finite


def _with_others(rows: TensorVariable, usable: TensorVariable) -> TensorVariable:
    """Rows, with each unusable one replaced by the first usable one."""
    return pt.switch(usable[:, None], rows, rows[pt.argmax(usable)])


def loss_graph(
    problem: Problem,
    z0: TensorVariable,
    plan: DrawPlan,
    *,
    loop: Loop,
    replacements: Mapping[Variable, Variable] | None = None,
) -> TensorVariable:
    """Return the loss for base draws z0 (draws, dim) as one differentiable scalar, in nats."""
    z, log_det = problem.q.graph(z0, loop)
    log_q = base_log_prob(z0) - log_det
    density = problem.density
    if z0.type.shape[0] == 1:
        prior, data = density.single(z[0], replacements)
    elif plan.micro_batch is None:
        prior, data = density.looped(z, replacements)
    else:
        prior, data = density.batched(z, replacements)
    return (problem.kl_weight * (log_q - prior) - data).mean() / problem.scale


def loss_and_gradients(
    problem: Problem,
    z0: TensorVariable,
    plan: DrawPlan,
    *,
    loop: Loop,
    theta: TensorVariable | None = None,
    estimator: Estimator | None = None,
    extra: Sequence[SharedVariable] = (),
    replacements: Mapping[Variable, Variable] | None = None,
    devices: Devices | None = None,
) -> Loss:
    """Return the loss and its gradients w.r.t. the flow's parameters, then w.r.t. ``extra``.

    Draws are left out where the log density, its squared gradient or the log-determinant is not
    finite; loss and gradients are means over the others. The gradients w.r.t. ``extra`` are
    computed a second time, as sums over draws in which the first finite draw replaces each that is
    left out. A draw for which the flow itself overflows makes the step fail: its gradient is 0 · ∞,
    and to detect it before would take a further pass through the flow in every step.

    With an ``estimator`` the gradients w.r.t. the flow are another estimate of their expectation,
    or those of a tempered density; the loss is the same. With ``theta`` (n,), a vector of all
    parameters, the flow's gradient is that w.r.t. ``theta``. With ``devices`` of several processes
    the log density is that of the rows of all of them, and ``extra`` must be empty.

    The model's gradient is computed at the points z, in micro-batches if the plan says so, and
    pulled back through the flow. It equals the gradient of `loss_graph`, without a reverse pass
    through a loop over draws.
    """
    q = problem.q
    wrt: list[TensorVariable] = [*q.params]
    if theta is not None:
        blocks = split_by_block(q.chain, theta, loop)
        q = replace(q, blocks=tuple(blocks))
        wrt = [v for b in blocks for v in (b.values() if isinstance(b, dict) else [b])]
    estimator = estimator or Estimator()
    inside, log_det = q.chain.forward_and_log_det(z0, q.blocks, loop=loop)
    # Copies, for which gradients are given below.
    inside = pt.tensor_copy(inside)
    z, frame_log_det = q.frame.graph(inside)
    z, log_det = pt.tensor_copy(z), pt.tensor_copy(log_det + frame_log_det)
    n_draws = z0.type.shape[0]
    # Processes have their own rows, but share the prior.
    n_parts = 1 if devices is None or devices.is_local else devices.n_parts
    # Weights of prior and data in the mean loss: here they cost no further pass over the gradient.
    weights = [
        -problem.kl_weight / problem.scale / n_draws / n_parts,
        -1.0 / problem.scale / n_draws,
    ]
    (prior, data), z_grad, _ = problem.density.value_and_grad(
        z,
        weights=weights,
        micro_batch=plan.micro_batch,
        replacements=replacements,
        tiled=plan.tiled,
    )
    z_grad = z_grad.astype(z.dtype)
    if problem.anchor is not None:
        more, change = problem.anchor.correction(problem.density, z, replacements)
        data, z_grad = data + more, z_grad + weights[1] * change
    if devices is not None and n_parts > 1:
        data, z_grad = (AllSum(devices.axes)(x) for x in (data, z_grad))
    # Squares, because optimizers take them.
    finite = pt.isfinite(prior + data - log_det + pt.sqr(z_grad).sum(axis=1))
    extra_grads: list[TensorVariable] = []
    if extra:
        _, _, extra_grads = problem.density.value_and_grad(
            pt.tensor_copy(_with_others(z, finite)),
            weights=weights,
            micro_batch=plan.micro_batch,
            extra=extra,
            replacements=replacements,
        )
    log_q = base_log_prob(z0) - log_det
    loss, lost = mean_of_finite(problem.kl_weight * (log_q - prior) - data, finite)
    loss = loss / problem.scale
    counts = pt.switch(finite, n_draws / pt.maximum(n_draws - lost, 1), 0).astype(z.dtype)
    z_grad = pt.switch(finite[:, None], counts[:, None] * z_grad, 0)
    if estimator.inverse_temperature is not None:
        z_grad = estimator.inverse_temperature * z_grad
    weight = problem.kl_weight / problem.scale / n_draws
    known = {z: z_grad, log_det: -weight * counts}
    if estimator.path is not None:
        score = weight * counts[:, None] * q.chain.score(z0, q.blocks, loop=loop)
        use_path = pt.neq(estimator.path, 0)
        score = ifelse(use_path, score, pt.zeros_like(score))
        known = {
            inside: pytensor.grad(None, inside, known_grads={z: z_grad}) + score,
            log_det: pt.switch(use_path, 0, known[log_det]),
        }
    grads = pytensor.grad(None, wrt, known_grads=known, disconnected_inputs="ignore")
    if theta is not None:
        grads = [join(grads)]
    return Loss(loss, [*grads, *extra_grads], lost)
