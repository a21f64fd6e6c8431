"""The loss: the negative ELBO of a flow on a model's log density, as PyTensor graphs.

loss = E_q[−log likelihood + β·(log q − log prior)] / c, in nats, with c the largest ratio of
total to minibatch size (PyMC's ``scale_cost_to_minibatch``) and 1 without minibatches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor import ifelse
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Variable
from pytensor.tensor.variable import TensorVariable

from pymc_flows.flows.chain import Chain, Loop
from pymc_flows.flows.frame import Frame
from pymc_flows.model.examine import DrawPlan
from pymc_flows.model.logp import ModelDensity
from pymc_flows.training.packing import join, split_by_block

# Estimates of the gradient; the third is the first, then the second.
GRADIENTS = ("total", "path", "switch")

_LOG_2PI = float(np.log(2 * np.pi))


def default_gradient(chain: Chain, backend: str, *, anneals: bool) -> str:
    """Return what is nearer to the posterior at equal time, one of `GRADIENTS`.

    Parameters
    ----------
    chain : Chain
    backend : {"numba", "jax"}
        Numba takes 15 s to compile the path gradient of a flow that it else compiles in 10.
    anneals : bool
        Far from the posterior, where annealing begins, the path gradient is the noisier one.
    """
    is_path = backend == "jax" and not anneals and chain.has_quick_score
    return "path" if is_path else "total"


def base_log_prob(z0: TensorVariable) -> TensorVariable:
    """Log density (...) of the standard normal base at z0 (..., dim), in nats."""
    return -0.5 * (pt.sqr(z0).sum(axis=-1) + z0.shape[-1] * np.asarray(_LOG_2PI, dtype=z0.dtype))


@dataclass(frozen=True, eq=False)
class Problem:
    """What is fitted to what: frame(T(z0)) against the log density of a model.

    Attributes
    ----------
    chain : Chain
        The flow T.
    params : tuple of dict of str to SharedVariable
        Raw parameters of T, one dict per block, repeats on the leading axis.
    frame : Frame
        Constant map after T.
    density : ModelDensity
        The target.
    beta : float
        Weight of the Kullback-Leibler term; 1 is the ELBO.
    scale : TensorVariable or float
        The divisor c of the loss.
    """

    chain: Chain
    params: tuple[dict[str, SharedVariable], ...]
    frame: Frame
    density: ModelDensity
    beta: float = 1.0
    scale: TensorVariable | float = 1.0

    @property
    def flat_params(self) -> list[SharedVariable]:
        """The parameters as PyMC lists them: block by block, alphabetical inside."""
        return [value for block in self.params for _, value in sorted(block.items())]

    def draw(self, z0: TensorVariable, loop: Loop) -> tuple[TensorVariable, TensorVariable]:
        """Points z (..., dim) of the approximation, from base draws z0; log|det ∂z/∂z0| (...)."""
        z, log_det = self.chain.forward_and_log_det(z0, self.params, loop=loop)
        return self.frame.place(z), log_det + self.frame.log_det


@dataclass(frozen=True, eq=False)
class Guide:
    """How the gradient of a step differs from that of the loss.

    Attributes
    ----------
    temper : TensorVariable, optional
        Factor () of the gradient of the log density: the step is one of a fit to p^temper.
    path : TensorVariable, optional
        Not 0 () to use the path gradient, which leaves the score of q's parameters out: its
        expectation is 0, and without it the gradient vanishes draw by draw where q = p (Roeder, Wu
        & Duvenaud, Sticking the landing, NeurIPS 2017, arXiv:1703.09194).
    """

    temper: TensorVariable | None = None
    path: TensorVariable | None = None


def loss_graph(
    problem: Problem,
    z0: TensorVariable,
    plan: DrawPlan,
    *,
    loop: Loop,
    replacements: Mapping[Variable, Variable] | None = None,
) -> TensorVariable:
    """Return the loss as one differentiable scalar, in nats.

    Parameters
    ----------
    z0 : TensorVariable, shape (draws, dim)
        Base draws.
    plan : DrawPlan
        How draws go through the log density.
    """
    z, log_det = problem.draw(z0, loop)
    log_q = base_log_prob(z0) - log_det
    density = problem.density
    if z0.type.shape[0] == 1:
        prior, data = density.single(z[0], replacements)
    elif plan.micro_batch is None:
        prior, data = density.looped(z, replacements)
    else:
        prior, data = density.batched(z, replacements)
    return (problem.beta * (log_q - prior) - data).mean() / problem.scale


def loss_and_gradients(
    problem: Problem,
    z0: TensorVariable,
    plan: DrawPlan,
    *,
    loop: Loop,
    theta: TensorVariable | None = None,
    guide: Guide | None = None,
    extra: Sequence[SharedVariable] = (),
    replacements: Mapping[Variable, Variable] | None = None,
) -> tuple[TensorVariable, list[TensorVariable]]:
    """Return the loss and its gradients w.r.t. the flow's parameters, then w.r.t. ``extra``.

    With a ``guide`` the gradients w.r.t. the flow are another estimate of their expectation, or
    those of a tempered density; the loss is the same. With ``theta`` (n,), a vector of all
    parameters, the flow's gradient is one with respect to it.

    The model's gradient is taken at the points z, in micro-batches where the plan says so, and
    pulled back through the flow: equal to the gradient of `loss_graph`, without a reverse pass
    through any loop over draws.
    """
    wrt: list[TensorVariable] = problem.flat_params
    if theta is not None:
        blocks = split_by_block(problem.chain, theta, loop)
        problem = replace(problem, params=tuple(blocks))
        wrt = [v for b in blocks for v in (b.values() if isinstance(b, dict) else [b])]
    guide = guide or Guide()
    inside, log_det = problem.chain.forward_and_log_det(z0, problem.params, loop=loop)
    # Variables of their own, whose gradients are known below.
    inside, log_det = pt.tensor_copy(inside), pt.tensor_copy(log_det + problem.frame.log_det)
    z = pt.tensor_copy(problem.frame.place(inside))
    n_draws, dim = z0.type.shape
    # Those of the mean loss: what is multiplied here costs no pass over the gradient afterwards.
    weights = [-problem.beta / problem.scale / n_draws, -1.0 / problem.scale / n_draws]
    (prior, data), z_grad, extra_grads = problem.density.value_and_grad(
        z,
        weights=weights,
        micro_batch=plan.micro_batch,
        extra=extra,
        replacements=replacements,
    )
    # Of a vector: a sum over two axes takes numba 4 s to compile.
    noise = z0.ravel()
    base = -0.5 * (pt.sqr(noise).sum() / n_draws + np.asarray(dim * _LOG_2PI, dtype=z0.dtype))
    log_q = base - log_det.mean()
    loss = (problem.beta * (log_q - prior.mean()) - data.mean()) / problem.scale
    z_grad = z_grad.astype(z.dtype)
    if guide.temper is not None:
        z_grad = guide.temper * z_grad
    weight = problem.beta / problem.scale / n_draws
    known = {z: z_grad, log_det: pt.full_like(log_det, -weight)}
    if guide.path is not None:
        score = weight * problem.chain.score(z0, problem.params, loop=loop)
        use_path = pt.neq(guide.path, 0)
        score = ifelse(use_path, score, pt.zeros_like(score))
        known = {
            inside: pytensor.grad(None, inside, known_grads={z: z_grad}) + score,
            log_det: pt.switch(use_path, 0, known[log_det]),
        }
    grads = pytensor.grad(None, wrt, known_grads=known, disconnected_inputs="ignore")
    if theta is not None:
        grads = [join(grads)]
    return loss, [*grads, *extra_grads]
