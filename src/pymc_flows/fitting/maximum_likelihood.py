"""Fit a flow to draws by maximum likelihood: the forward Kullback-Leibler divergence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pymc as pm
import pytensor

from pymc_flows.approximation import NormalizingFlow
from pymc_flows.backends.jax import has_jax
from pymc_flows.errors import ArgumentError, FlowShapeError, NotInvertibleError
from pymc_flows.fitting.held_out import CHECKS, HeldOut
from pymc_flows.flows import build_chain
from pymc_flows.flows.frame import Frame
from pymc_flows.formula import Formula
from pymc_flows.model.examine import check_backend, warn_if_affine
from pymc_flows.model.logp import ModelDensity, density_of
from pymc_flows.model.points import is_named, to_unconstrained
from pymc_flows.start.options import MAX_DENSE
from pymc_flows.support.arguments import check_integer, model_or_context
from pymc_flows.support.compat import default_progress_theme
from pymc_flows.support.seeds import RandomState, integer_seeds
from pymc_flows.training.config import FitConfig
from pymc_flows.training.objectives.likelihood import Likelihood
from pymc_flows.training.optimizers import Optimizer
from pymc_flows.training.state import FitState
from pymc_flows.training.trainer import Trainer

MIN_DRAWS = 10


def fit_draws(
    draws: Any,
    formula: str | Formula,
    model: pm.Model | None = None,
    *,
    n: int = 5_000,
    batch: int = 256,
    held_out: float = 0.1,
    obj_optimizer: Optimizer | None = None,
    backend: str | None = None,
    random_seed: RandomState = None,
    progressbar: bool = True,
) -> NormalizingFlow:
    """Fit a normalizing flow to draws of a posterior, by maximum likelihood.

    Minimises the mean of −ln q over the draws, and with it KL(p ‖ q), which penalises missing mass
    where there are draws: the flow covers all modes of the draws, while `fit`, by KL(q ‖ p), may
    lose some. Draws of short chains, one in each mode, are enough: `sample` (approx, method='imh')
    corrects the weights of modes. The model's log density is not evaluated: `report` says how good
    the flow is. A flow with networks needs about as many draws as it has parameters
    (`Formula.table` counts them); with fewer, take fewer layers and a smaller step size.

    Parameters
    ----------
    draws : DataTree, Dataset, dict of str to array-like, or array-like
        As for `NormalizingFlow.log_prob`: values of the free variables by name (of a DataTree, its
        group ``posterior``), or points (n, dim) of the unconstrained space.
    formula : str or Formula
        Formula of the flow. Each step inverts it: `iaf` takes ``dim`` passes for that, and `maf`,
        its mirror image, one.
    model : pymc.Model, optional
        Defaults to the model on the context stack.
    n : int
        Number of steps.
    batch : int
        Draws per step, chosen at random; at most all of them.
    held_out : float
        Share of the draws, the last ones of each chain, that steps do not use. The fit keeps the
        parameters with the smallest mean of −ln q there, so that rich flows do not learn few draws
        by heart; if later steps did, a warning is logged (logger ``pymc_flows``). There are at
        least 20 looks, more frequent early in a fit. 0 uses all draws and keeps the last
        parameters.
    obj_optimizer : callable, optional
        As in `NFVI.fit`.
    backend : {'numba', 'jax'}, optional
        Default: JAX if it is installed. On numba, repeats of a layer are compiled one by one.
    random_seed : int, Generator, RandomState, optional
        Seeds the start parameters and the choice of draws.
    progressbar : bool

    Returns
    -------
    NormalizingFlow
        In the coordinates in which the draws have mean 0 and covariance I (standard deviations 1
        for a formula that does not mix coordinates, or above 300 dimensions). Its ``hist`` are the
        means of −ln q over the batches, in nats.

    Raises
    ------
    ArgumentError
        If a variable is missing, draws are not finite or outside of the support, all equal in a
        coordinate, or fewer than 10; or another argument cannot be used.
    FlowShapeError
        If the draws have the wrong shape.
    NotInvertibleError
        If a layer of the formula has no inverse.
    FitError
        If 100 steps in a row failed.

    References
    ----------
    .. [1] Papamakarios, Nalisnick, Rezende, Mohamed & Lakshminarayanan, Normalizing Flows for
       Probabilistic Modeling and Inference, JMLR 22(57), 2021, section 2.3.1.

    Examples
    --------
    >>> import numpy as np
    >>> import pymc as pm
    >>> import pymc_flows as pmf
    >>> with pm.Model():
    ...     x = pm.Normal("x")
    ...     draws = {"x": np.random.default_rng(1).normal(3, 2, 400)}
    ...     approx = pmf.fit_draws(draws, "scale-loc", n=0)
    >>> approx.center_point().round()
    array([3.])
    """
    n, batch = check_integer("n", n, minimum=0), check_integer("batch", batch)
    if isinstance(held_out, bool) or not isinstance(held_out, int | float) or not 0 <= held_out < 1:
        raise ArgumentError(f"held_out must be a share from 0 to less than 1, got {held_out!r}")
    check_backend(backend)
    model = model_or_context(model)
    density = density_of(model)
    flow = Formula(formula)
    chain = build_chain(flow, density.dim)
    if without := chain.words_without_inverse:
        raise NotInvertibleError(
            f"{', '.join(without)} in {str(flow)!r} has no inverse, which the density of given "
            "draws needs\nTake another flow, or fit by pymc_flows.fit."
        )
    warn_if_affine(chain)
    used, kept_back = _split(_points(density, draws), held_out)
    frame = _frame_of(used, density, dense=not chain.is_elementwise)
    start_seed, fit_seed = integer_seeds(random_seed, 2)
    approx = NormalizingFlow(flow, model=model, start=frame, random_seed=start_seed)
    config = FitConfig(
        n=n,
        obj_n_mc=min(batch, len(used)),
        obj_optimizer=obj_optimizer,
        backend=backend or ("jax" if has_jax() else "numba"),
    )
    every = max(1, n // CHECKS)
    state = FitState.prepare(Likelihood(approx.flow, used), config, lambda: int(fit_seed), every)
    state.begin(n)
    hooks = []
    if len(kept_back):
        hooks.append(HeldOut(approx.flow, kept_back, every, epoch=len(used) // config.obj_n_mc))
    trainer = Trainer(state, hooks)
    try:
        outcome = trainer.run(default_progress_theme, show=progressbar)
    finally:
        approx.hist = trainer.losses.copy()
    for held_out_draws in hooks:
        held_out_draws.keep_best(used)
    outcome.tell(stacklevel=2)
    return approx


def _points(density: ModelDensity, draws: Any) -> np.ndarray:
    """Points (..., dim) of the unconstrained space, the last axis but one along a chain."""
    if is_named(draws):
        placed = to_unconstrained(density, draws)
        points, inside = placed.points, placed.inside
        shape = (*placed.batch, density.dim)
    else:
        points = np.asarray(draws, dtype=pytensor.config.floatX)
        if points.ndim < 2 or points.shape[-1] != density.dim:
            raise FlowShapeError(
                f"draws must have shape (n, {density.dim}): one column per unconstrained scalar "
                f"of the model\ngot {points.shape}"
            )
        inside, shape = np.ones(points.shape[:-1], bool), points.shape
    usable = inside & np.isfinite(points).all(axis=-1)
    if not usable.all():
        raise ArgumentError(
            f"{(~usable).sum():,} of {usable.size:,} draws are not finite, or outside of the "
            "support of a variable\nAre they draws of this model?"
        )
    if usable.size < MIN_DRAWS:
        raise ArgumentError(f"at least {MIN_DRAWS} draws are needed, got {usable.size}")
    return points.reshape(shape)


def _split(points: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Points (n, dim) for the steps, and the last of each chain to judge by."""
    length, dim = points.shape[-2:]
    stop = length - int(share * length)
    return points[..., :stop, :].reshape(-1, dim), points[..., stop:, :].reshape(-1, dim)


def _frame_of(points: np.ndarray, density: ModelDensity, *, dense: bool) -> Frame:
    """Coordinates in which the points (n, dim) have mean 0 and covariance I."""
    n, dim = points.shape
    sd = points.std(axis=0)
    if not (sd > 0).all():
        coordinate = int(np.argmin(sd))
        slot = next(s for s in density.slots if coordinate < s.slice.stop)
        raise ArgumentError(
            f"all draws are equal in coordinate {coordinate - slot.slice.start} of {slot.name!r}"
        )
    if not dense or dim > MAX_DENSE or n <= 2 * dim:
        return Frame(points.mean(axis=0), sd)
    correlation = np.atleast_2d(np.corrcoef(points.T))
    # Two equal variables would make the matrix singular.
    correlation += 1e-6 * np.eye(dim)
    return Frame(points.mean(axis=0), sd[:, None] * np.linalg.cholesky(correlation))
