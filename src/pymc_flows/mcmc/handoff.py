"""From a flow to MCMC: NUTS in the coordinates of a flow, and its draws as proposals.

In the base space of a fitted flow a posterior is close to N(0, I): ridges are straight and funnels
open, so that NUTS needs few and long steps (NeuTra, see `neutra`). Where modes are apart, draws of
the flow are proposals that reach all of them (independence Metropolis-Hastings).
"""

from __future__ import annotations

import importlib.util
import logging
from typing import Any, Literal, get_args

import numpy as np
import pymc as pm
from xarray import Dataset, DataTree

from pymc_flows.approximation import NormalizingFlow
from pymc_flows.backends.modes import training_mode
from pymc_flows.errors import ArgumentError, BackendError, ModelError
from pymc_flows.flows.state import base_log_prob
from pymc_flows.mcmc.independence import FlowJump, independence_chains
from pymc_flows.model import draws as _draws
from pymc_flows.model.backend import choose_backend, layer_loop
from pymc_flows.model.examine import check_backend
from pymc_flows.model.layout import tensors
from pymc_flows.model.streams import stream_of
from pymc_flows.support.arguments import check_integer
from pymc_flows.support.seeds import RandomState

_log = logging.getLogger(__name__)

type Method = Literal["nuts", "imh", "nuts+imh"]
type Sampler = Literal["nutpie", "numpyro", "blackjax", "pymc"]

JAX_SAMPLERS: tuple[Sampler, ...] = ("numpyro", "blackjax")
# Arguments of `pm.sample` that have another name here, or make no sense in base space.
_NOT_PASSED_ON = (
    "backend",
    "compile_kwargs",
    "discard_tuned_samples",
    "idata_kwargs",
    "initvals",
    "model",
    "nuts_sampler",
    "return_inferencedata",
    "step",
    "trace",
    "var_names",
)


def neutra(
    approx: NormalizingFlow, *, model: pm.Model | None = None, backend: str | None = None
) -> pm.Model:
    """Write a posterior in the base coordinates of a flow.

    The new model has one free variable z0 ~ N(0, I), and a potential ``log_weight`` = ln p(z) −
    ln q(z) at z = c + A T(z0), so that its log density is ln p(z) + log|det ∂z/∂z0|: the posterior
    of the model in the coordinates z0 [1]_. Initial points are draws of N(0, I), and thus draws of
    the flow in the model's own coordinates. `pymc.sample` runs on the new model with any sampler,
    and returns draws of the variables of ``model`` under their own names.

    Parameters
    ----------
    approx : NormalizingFlow
        A fitted flow. Its parameters are copied: later fits do not change the new model.
    model : pymc.Model, optional
        The model of the posterior, if it is not ``approx.model``. It must have the same free
        variables, such as a model with all data where the fit used minibatches. Defaults to the
        model on the context stack, then to ``approx.model``.
    backend : {'numba', 'jax'}, optional
        The backend that will compile the new model. By default the graph suits both; with 'numba',
        repeats of planar, radial, tril and lowrank layers compile four times as fast, but do not
        run on JAX.

    Returns
    -------
    pymc.Model
        Free variable ``z0``, shape (dim,); deterministics under the names of the free variables
        and deterministics of ``model``, with their dims and coords. The two models share their
        data. For posterior predictive draws and log likelihoods use ``model`` itself, with draws
        of the new one.

    Raises
    ------
    ModelError
        If the log density is random (a minibatch), or the free variables of ``model`` are not those
        of the approximation.
    NotInvertibleError
        If the approximation is not one flow over all variables.
    BackendError
        If the backend is unknown or not installed.

    References
    ----------
    .. [1] Hoffman, Sountsov, Dillon, Langmore, Tran & Vasudevan, NeuTra-lizing Bad Geometry in
       Hamiltonian Monte Carlo Using Neural Transport, 2019, arXiv:1903.03704.

    Examples
    --------
    >>> import pymc as pm
    >>> import pymc_flows as pmf
    >>> with pm.Model():
    ...     sigma = pm.HalfNormal("sigma")
    ...     base = pmf.neutra(pmf.NormalizingFlow("scale-loc"))
    >>> [v.name for v in base.free_RVs], [v.name for v in base.deterministics]
    (['z0'], ['sigma'])
    """
    check_backend(backend)
    model = _posterior(approx, model)
    base, point = _base_model(approx, model, backend)
    variables = _draws.variables_of(model)
    hidden = {value.name for value in model.value_vars} - {rv.name for rv in model.free_RVs}
    shown = {name: graph for name, graph in variables.items() if name not in hidden}
    values = approx.density_of(model).unpack(point).values()
    graphs = tensors(list(shown.values()), dict(zip(model.value_vars, values, strict=True)))
    with base:
        for name, labels in model.coords.items():
            base.add_coord(name, labels, length=model.dim_lengths[name])
        for name, graph in zip(shown, graphs, strict=True):
            pm.Deterministic(name, graph, dims=model.named_vars_to_dims.get(name))
    return base


def sample(
    approx: NormalizingFlow,
    draws: int = 1000,
    *,
    tune: int = 1000,
    chains: int = 4,
    method: Method = "nuts",
    sampler: Sampler | None = None,
    target_accept: float = 0.9,
    model: pm.Model | None = None,
    random_seed: RandomState = None,
    progressbar: bool = True,
    **kwargs: Any,
) -> DataTree:
    """Sample a posterior by MCMC with the help of a flow; the draws are asymptotically exact.

    Parameters
    ----------
    approx : NormalizingFlow
    draws, tune, chains : int
        Draws kept and discarded of each chain; number of chains. Each starts at a draw of the flow.
    method : {'nuts', 'imh', 'nuts+imh'}
        ``'nuts'`` runs NUTS on `neutra` (approx): for posteriors that are narrow, curved or
        correlated. ``'imh'``, independence Metropolis-Hastings, proposes draws of the flow and
        accepts them by their importance weights p/q: it needs no gradient, evaluates all proposals
        at once, and moves freely between all modes that the flow covers, but gets stuck where the
        flow has too little mass. ``'nuts+imh'`` alternates a NUTS transition and such a proposal:
        for several modes, whose weights the proposals correct.
    sampler : {'nutpie', 'numpyro', 'blackjax', 'pymc'}, optional
        Implementation of NUTS for ``method='nuts'``. Default: nutpie if it is installed; else, if
        JAX can run the model, numpyro or blackjax; else PyMC's own, on numba. ``'nuts+imh'``
        always uses PyMC's.
    target_accept : float
        Acceptance rate to which NUTS adapts its step size. In base coordinates 0.9 takes hardly
        more steps than the 0.8 of `pymc.sample`, and gives fewer divergences.
    model : pymc.Model, optional
        As for `neutra`.
    random_seed : int, Generator, RandomState, optional
        Without one, the seed comes from the approximation's own stream.
    progressbar : bool
    **kwargs
        Passed to `pymc.sample`, such as ``cores``, ``compute_convergence_checks`` or ``nuts``;
        not allowed with ``'imh'``.

    Returns
    -------
    DataTree
        Group ``posterior`` with free variables and deterministics of the model, dims and coords,
        shape (chains, draws, ...); ``sample_stats``; ``observed_data`` and ``constant_data``. The
        statistics are those of the sampler, ``diverging`` among them. ``'imh'`` has ``lp`` and
        ``log_q`` (log density of the model, in the unconstrained space, and of the flow, in nats),
        ``accepted`` and ``acceptance_rate``; ``'nuts+imh'`` adds ``jump_accepted`` and
        ``jump_acceptance_rate``.

    Raises
    ------
    ArgumentError
        If an argument has a wrong value, or has no effect with this method.
    ModelError, NotInvertibleError
        As for `neutra`; the second one only with NUTS.
    BackendError
        If the sampler is not installed, or needs JAX, which cannot run the model.
    FitError
        If no proposal of ``'imh'`` has a finite density.
    """
    n_draws = check_integer("draws", draws)
    n_tune = check_integer("tune", tune, minimum=0)
    n_chains = check_integer("chains", chains)
    _check(method, sampler, target_accept, kwargs)
    model = _posterior(approx, model)
    seed = approx.draw_seeds(1, random_seed)[0]
    rng = np.random.default_rng(seed)
    if method == "imh":
        points, stats = independence_chains(
            approx, approx.density_of(model), n_draws, n_tune, n_chains, rng
        )
        attrs: dict[str, Any] = {"tuning_steps": n_tune}
    else:
        run = {
            "draws": n_draws,
            "tune": n_tune,
            "chains": n_chains,
            "random_seed": seed,
            "progressbar": progressbar,
            **kwargs,
            "nuts": {"target_accept": target_accept, **kwargs.get("nuts", {})},
        }
        z0, stats, attrs = _run(approx, model, sampler, run, with_jumps=method == "nuts+imh")
        points = approx.forward(z0)
    everything = approx.draws_at(points.reshape(-1, approx.ddim), model, rng)
    result = _draws.to_datatree(model, everything, chains=n_chains)
    result["posterior"].attrs.update(attrs)
    result["sample_stats"] = _draws.with_coords_of(result.children["posterior"], stats)
    return result


def _check(method: Any, sampler: Any, target_accept: Any, kwargs: dict[str, Any]) -> None:
    methods = get_args(Method.__value__)
    if method not in methods:
        raise ArgumentError(f"method must be one of {_listed(methods)}, got {method!r}")
    samplers = get_args(Sampler.__value__)
    if sampler is not None and sampler not in samplers:
        raise ArgumentError(f"sampler must be one of {_listed(samplers)}, got {sampler!r}")
    if method != "nuts" and sampler not in (None, "pymc"):
        raise ArgumentError(
            f"sampler={sampler!r} has no effect with method={method!r}\n"
            "Only method='nuts' runs on samplers other than PyMC's."
        )
    if not isinstance(target_accept, float) or not 0 < target_accept < 1:
        raise ArgumentError(f"target_accept must be between 0 and 1, got {target_accept!r}")
    for name in kwargs:
        if method == "imh":
            raise ArgumentError(f"{name}= has no effect with method='imh'")
        if name in _NOT_PASSED_ON:
            raise ArgumentError(
                f"{name}= cannot be passed on to pymc.sample\n"
                "Call pymc.sample(model=pymc_flows.neutra(approx), ...) for full control."
            )


def _run(
    approx: NormalizingFlow,
    model: pm.Model,
    sampler: Sampler | None,
    run: dict[str, Any],
    *,
    with_jumps: bool,
) -> tuple[np.ndarray, Dataset, dict[str, Any]]:
    """Draws of the base (chains, draws, dim), statistics and attrs of a run of `pm.sample`."""
    chosen, backend = ("pymc", "numba") if with_jumps else _choose(approx, model, sampler)
    base, _ = _base_model(approx, model, backend)
    z0, values = base.free_RVs[0], base.value_vars
    if chosen == "pymc":
        # This mode compiles matrix products, as in frames and networks, ten times as fast.
        run["compile_kwargs"] = {"mode": training_mode(backend)}
    if with_jumps:
        options = {**run.pop("nuts"), "compile_kwargs": run["compile_kwargs"]}
        jump = FlowJump(values, model=base, **run["compile_kwargs"])
        run["step"] = [pm.NUTS(values, model=base, **options), jump]
    elif chosen == "numpyro" and _on_one_cpu():
        # numpyro would do the same, after a warning.
        run["nuts"].setdefault("chain_method", "sequential")
    elif chosen == "nutpie" and backend == "jax":
        run["backend"] = "jax"
    _log.info("NUTS of %s on %s.", chosen, backend)
    tree = pm.sample(model=base, nuts_sampler=chosen, var_names=[z0.name], **run)
    posterior = tree["posterior"]
    return posterior[z0.name].to_numpy(), tree["sample_stats"].to_dataset(), posterior.attrs


def _choose(
    approx: NormalizingFlow, model: pm.Model, sampler: Sampler | None
) -> tuple[Sampler, str]:
    """The implementation of NUTS, and the backend that compiles the log density for it."""
    if sampler is not None and sampler != "pymc" and not _has(sampler):
        raise BackendError(
            f"sampler {sampler!r} is not installed\n"
            f"install {sampler}, or leave sampler out to use what is installed"
        )
    if sampler == "pymc":
        return sampler, "numba"
    wanted = "jax" if sampler in JAX_SAMPLERS else None
    backend = choose_backend(
        wanted, approx.chain, approx.density_of(model), 1, start=approx.center_point()
    )
    if sampler is not None:
        return sampler, backend
    ranked: tuple[Sampler, ...] = ("nutpie", *(JAX_SAMPLERS if backend == "jax" else ()))
    for name in ranked:
        if _has(name):
            return name, backend
    return "pymc", "numba"


def _has(sampler: str) -> bool:
    return importlib.util.find_spec(sampler) is not None


def _on_one_cpu() -> bool:
    import jax

    return [device.platform for device in jax.local_devices()] == ["cpu"]


def _listed(words: tuple[str, ...]) -> str:
    return ", ".join(map(repr, words))


def _posterior(approx: NormalizingFlow, model: pm.Model | None) -> pm.Model:
    """The model given, in context or of the approximation, if its free variables fit."""
    if model is None:
        model = pm.Model.get_context(error_if_none=False) or approx.model
    approx.density_of(model).check_shapes()
    return model


def _base_model(
    approx: NormalizingFlow, model: pm.Model, backend: str | None
) -> tuple[pm.Model, Any]:
    """The model in base coordinates, without deterministics; and the graph of z (dim,) in it."""
    density = approx.density_of(model)
    if stream_of(density) is not None:
        raise ModelError(
            "the model sees its rows batch by batch, and NUTS would take one batch for all rows\n"
            "Give model= the same model with all of the data, or use method='imh', which reads all "
            "rows."
        )
    taken = set(model.named_vars)
    loop = approx.graph_loop if backend is None else layer_loop(backend)
    # model=None, so that it does not become a part of a model in context.
    with pm.Model(model=None) as base:
        z0 = pm.Normal(_free("z0", taken), shape=approx.ddim, initval="prior")
        # The kernels of repeated layers take points (n, dim).
        points, log_dets = approx.flow.graph(z0[None], loop, fixed=True)
        point, log_det = points[0], log_dets[0]
        log_p = sum(density.single(point))
        pm.Potential(_free("log_weight", taken), log_p + log_det - base_log_prob(z0))
    return base, point


def _free(name: str, taken: set[str]) -> str:
    """The name, or the first of name_, name__, ... that the model does not have."""
    while name in taken:
        name += "_"
    return name
