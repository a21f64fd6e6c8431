"""`NormalizingFlow`: a chain of flow layers as a PyMC approximation.

With `inference`, the only module that builds on PyMC's variational base classes; what they need is
one group that knows its parameters, its draws and its log q.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, overload

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
from numpy.typing import ArrayLike
from pymc.util import RandomState, _get_seeds_per_chain
from pymc.variational.opvi import Approximation, Group, VIState, node_property
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Variable
from pytensor.graph.replace import graph_replace, vectorize_graph
from pytensor.tensor.variable import TensorVariable
from xarray import Dataset

from pymc_flows import draws as _draws
from pymc_flows.density import ModelDensity
from pymc_flows.errors import FlowError, FlowShapeError, ModelError
from pymc_flows.evaluate import forward_and_log_det, inverse_and_log_det
from pymc_flows.flows import Chain, Loc, build_chain
from pymc_flows.flows.chain import Loop
from pymc_flows.formula import Formula
from pymc_flows.objective import Problem, base_log_prob

# Draws behind the moments of a chain that is not affine; the noise is fixed.
MOMENT_DRAWS = 4096
# Above this many repeats a graph that PyTensor compiles loops over layers instead of copying them.
_MAX_UNROLLED = 4


class NormalizingFlowGroup(Group):
    """A flow on a group of variables, for PyMC's `Approximation`.

    Parameters
    ----------
    group : list of TensorVariable or None
        Free variables of the model; None for all that no other group has.
    flow : str or Formula
        Formula of the chain.
    vfam, options
        Only for PyMC's ``Group(vars, vfam=formula)``.
    params, random_seed, model, jitter, start
        As for `NormalizingFlow`.
    """

    def __init__(
        self,
        group: Sequence[TensorVariable] | None,
        vfam: str | None = None,
        params: Mapping[int, Mapping[str, ArrayLike]] | None = None,
        random_seed: RandomState = None,
        model: pm.Model | None = None,
        options: dict[str, Any] | None = None,
        *,
        flow: str | Formula | None = None,
        jitter: float = 0.01,
        start: Mapping[str, ArrayLike] | None = None,
    ):
        if flow is None:
            flow = "scale-loc" if vfam is None else vfam
        self.formula = Formula(flow)
        self._initial = dict(params or {})
        self._jitter = _check_jitter(jitter)
        self._start = start
        self.seeds = np.random.SeedSequence(_get_seeds_per_chain(random_seed, 1)[0])
        super().__init__(
            group,
            random_seed=self.seeds.generate_state(1)[0],
            model=model,
            options=options,
        )

    def __init_group__(self, group: Sequence[TensorVariable]) -> None:
        """Lay the variables out and create the parameters; PyMC may delay this."""
        density = ModelDensity(self.model)
        super().__init_group__(group)
        self.chain = build_chain(self.formula, self.ddim)
        point = {s.name: v for s, v in zip(density.slots, density.split(self._start), strict=True)}
        start = np.concatenate([np.ravel(point[name]) for name in self.ordering])
        dtype = pytensor.config.floatX
        rng = np.random.default_rng(self.seeds.spawn(1)[0])
        values = self.chain.initial_params(jitter=self._jitter, rng=rng, dtype=dtype)
        center = np.zeros(self.ddim)
        if isinstance(self.chain.blocks[-1].layer, Loc):
            values[-1]["loc"][-1] += start.astype(dtype)
        else:
            center = start
        _set_initial(self.chain, values, self._initial)
        self.center = pt.constant(center.astype(dtype), name="center")
        self.blocks = tuple(
            {name: pytensor.shared(v, name, shape=v.shape) for name, v in block.items()}
            for block in values
        )
        self._finalize_init()

    @property
    def params(self) -> list[SharedVariable]:
        """Shared variables, block by block, alphabetical inside a block."""
        return [value for block in self.blocks for _, value in sorted(block.items())]

    @property
    def params_dict(self) -> dict[str, SharedVariable]:
        """The same by unique name, ``{block}_{word}_{param}``."""
        return {
            f"{i}_{block.layer.word}_{name}": value
            for i, (block, params) in enumerate(zip(self.chain.blocks, self.blocks, strict=True))
            for name, value in sorted(params.items())
        }

    @property
    def graph_loop(self) -> Loop:
        """How repeats enter graphs that PyTensor compiles with its default backend."""
        return "scan" if max(b.count for b in self.chain.blocks) > _MAX_UNROLLED else "unroll"

    @node_property
    def _draw_and_logq(self) -> tuple[TensorVariable, TensorVariable]:
        z0 = self.symbolic_initial
        z, log_det = self.chain.forward_and_log_det(z0, self.blocks, loop=self.graph_loop)
        return z + self.center, base_log_prob(z0) - log_det

    @node_property
    def symbolic_random(self) -> TensorVariable:
        """Draws (draws, dim), from the group's symbolic base noise."""
        return self._draw_and_logq[0]

    @node_property
    def symbolic_logq_not_scaled(self) -> TensorVariable:
        """Log q (draws,) of `symbolic_random`, in nats."""
        return self._draw_and_logq[1]

    def _points(self, z0: np.ndarray) -> TensorVariable:
        z, _ = self.chain.forward_and_log_det(pt.constant(z0), self.blocks, loop=self.graph_loop)
        return z

    @cached_property
    def _moment_points(self) -> TensorVariable:
        noise = np.random.default_rng(0).standard_normal((MOMENT_DRAWS, self.ddim))
        return self._points(noise.astype(pytensor.config.floatX))

    @cached_property
    def _columns(self) -> TensorVariable:
        """Rows are the columns of A, for an affine chain z = A z0 + c."""
        corners = np.vstack([np.zeros(self.ddim), np.eye(self.ddim)])
        points = self._points(corners.astype(pytensor.config.floatX))
        return points[1:] - points[0]

    @node_property
    def mean(self) -> TensorVariable:
        """Mean (dim,) in the unconstrained space: exact if affine, else from fixed noise."""
        if self.chain.is_affine:
            zero = np.zeros((1, self.ddim), pytensor.config.floatX)
            return self._points(zero)[0] + self.center
        return self._moment_points.mean(axis=0) + self.center

    @node_property
    def std(self) -> TensorVariable:
        """Standard deviation (dim,): exact if affine, else from fixed noise."""
        if self.chain.is_elementwise and self.chain.is_affine:
            ends = np.vstack([np.zeros(self.ddim), np.ones(self.ddim)])
            points = self._points(ends.astype(pytensor.config.floatX))
            return pt.abs(points[1] - points[0])
        if self.chain.is_affine:
            return pt.sqrt(pt.sqr(self._columns).sum(axis=0))
        return self._moment_points.std(axis=0, ddof=1)

    @node_property
    def cov(self) -> TensorVariable:
        """Covariance (dim, dim): exact if affine, else from fixed noise."""
        if self.chain.is_affine:
            return self._columns.T @ self._columns
        centred = self._moment_points - self._moment_points.mean(axis=0)
        return centred.T @ centred / (MOMENT_DRAWS - 1)

    def values(self) -> tuple[dict[str, np.ndarray], ...]:
        """Current raw parameters, one dict per block."""
        return tuple({k: np.asarray(v.get_value()) for k, v in b.items()} for b in self.blocks)

    def __str__(self) -> str:
        """Name, dimension and formula."""
        dim = "undefined" if self.group is None else self.ddim
        return f"NormalizingFlowGroup[{dim}]({self.formula})"


class NormalizingFlow(Approximation):
    """Normalizing-flow approximation of a model's posterior: z = c + T(z0), z0 ~ N(0, I).

    Parameters
    ----------
    flow : str or Formula
        Formula of the chain T, in order of application, such as ``'scale-hh*4-loc'``.
    model : pymc.Model, optional
        Defaults to the model on the context stack.
    jitter : float
        Standard deviation of the noise on the raw start parameters.
    start : dict of str to array-like, optional
        Start point by variable name; what it does not name comes from ``model.initial_point()``.
        It is the constant c, or the start of a final ``loc`` layer, and then c = 0.
    params : dict of int to dict of str to array-like, optional
        Initial raw values by layer: position in the expanded formula (0 is applied first) and
        name, shapes as for one layer. They replace the drawn ones, without jitter.
    random_seed : int, Generator, RandomState, optional
        Seeds the start parameters and, where no other seed is given, fits and draws.

    Attributes
    ----------
    formula : Formula
    chain : Chain
    density : ModelDensity
    params : list of SharedVariable
        One per parameter per block, repeats on the leading axis; blocks in order of application,
        alphabetical inside.
    hist : ndarray
        Losses of all iterations so far, in nats.

    Raises
    ------
    FormulaError
        If ``flow`` is not a formula.
    ModelError
        If the model has no continuous free variable, a discrete one, or ``start`` does not fit.
    """

    def __init__(
        self,
        flow: str | Formula = "scale-loc",
        *,
        model: pm.Model | None = None,
        jitter: float = 0.01,
        start: Mapping[str, ArrayLike] | None = None,
        params: Mapping[int, Mapping[str, ArrayLike]] | None = None,
        random_seed: RandomState = None,
    ):
        formula = Formula(flow)
        model = pm.modelcontext(model)
        self.density = ModelDensity(model)
        group = NormalizingFlowGroup(
            None,
            flow=formula,
            model=model,
            jitter=jitter,
            start=start,
            params=params,
            random_seed=random_seed,
        )
        self.hist = np.asarray(())
        super().__init__([group], model=model)
        self._sample_rng = np.random.default_rng(group.seeds.spawn(1)[0])

    @property
    def _group(self) -> NormalizingFlowGroup:
        return self.groups[0]

    @property
    def formula(self) -> Formula:
        """The formula of the chain."""
        return self._group.formula

    @property
    def chain(self) -> Chain:
        """The layers, in order of application."""
        return self._group.chain

    @property
    def rng(self) -> np.random.RandomState:
        """Seeds what PyMC compiles from this approximation."""
        return self._group.rng

    @property
    def state(self) -> VIState:
        """Mean and standard deviation by variable, as PyMC's approximations give them."""
        return self._group.state

    @property
    def mean_data(self) -> Dataset:
        """Mean by unconstrained variable."""
        return self._group.mean_data

    @property
    def std_data(self) -> Dataset:
        """Standard deviation by unconstrained variable."""
        return self._group.std_data

    @property
    def mean(self) -> TensorVariable:
        """Mean (dim,) in the unconstrained space: exact for affine chains, else from fixed noise."""
        return self._group.mean

    @property
    def std(self) -> TensorVariable:
        """Standard deviation (dim,) in the unconstrained space; as `mean`."""
        return self._group.std

    @property
    def cov(self) -> TensorVariable:
        """Covariance (dim, dim) in the unconstrained space; as `mean`."""
        return self._group.cov

    @property
    def graph_loop(self) -> Loop:
        """How repeats enter graphs that PyTensor compiles with its default backend."""
        return self._group.graph_loop

    def center_point(self) -> np.ndarray:
        """The point (dim,) that the approximation draws from a zero of the base."""
        zero = np.zeros((1, self.ddim), pytensor.config.floatX)
        z, _ = forward_and_log_det(self.chain, zero, self._group.values())
        return z[0] + self._group.center.data

    def problem(self, beta: float = 1.0) -> Problem:
        """What a fit optimises: this flow against the model's log density."""
        group = self._group
        scale = self.symbolic_normalizing_constant if self._has_minibatch else 1.0
        return Problem(group.chain, group.blocks, group.center, self.density, beta, scale)

    @property
    def _has_minibatch(self) -> bool:
        from pymc.variational.minibatch_rv import MinibatchRandomVariable

        rvs = [*self.model.observed_RVs, *self.model.free_RVs]
        return any(isinstance(rv.owner.op, MinibatchRandomVariable) for rv in rvs)

    # ------------------------------------------------------------------- vectorised over draws

    def symbolic_sample_over_posterior(
        self,
        node: Variable | list[Variable],
        more_replacements: Mapping[Variable, Variable] | None = None,
    ) -> Any:
        """Evaluate nodes for all draws at once; PyMC's own version scans over draws."""
        nodes = list(node) if isinstance(node, list | tuple) else [node]
        if more_replacements:
            nodes = graph_replace(nodes, dict(more_replacements), strict=False)
        values = self.density.unpack(self.symbolic_random)
        try:
            sampled = vectorize_graph(nodes, values)
        except Exception:  # noqa: BLE001 - an Op that cannot be vectorised can still be scanned over
            return super().symbolic_sample_over_posterior(node, more_replacements)
        n = self.symbolic_random.shape[0]
        sampled = [
            new if new.ndim > old.ndim else pt.broadcast_to(new, (n, *new.shape))
            for old, new in zip(nodes, sampled, strict=True)
        ]
        return sampled if isinstance(node, list | tuple) else sampled[0]

    @node_property
    def _sized_symbolic_varlogp_and_datalogp(self) -> list[TensorVariable]:
        return self.symbolic_sample_over_posterior(self.density.terms)

    # ------------------------------------------------------------------------ draws and density

    def sample_and_log_prob(
        self, n: int, *, random_seed: RandomState = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw points of the unconstrained space with their log density under the approximation.

        Parameters
        ----------
        n : int
            Number of draws.
        random_seed : int, Generator, RandomState, optional
            Without one, draws continue the approximation's own stream.

        Returns
        -------
        points : ndarray, shape (n, dim)
        log_prob : ndarray, shape (n,)
            ln q, in nats.
        """
        if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1:
            raise FlowError(f"the number of draws must be an integer of at least 1, got {n!r}")
        rng = self._sample_rng
        if random_seed is not None:
            rng = np.random.default_rng(_get_seeds_per_chain(random_seed, 1)[0])
        dtype = np.dtype(pytensor.config.floatX)
        z0 = rng.standard_normal((n, self.ddim), dtype=dtype)
        z, log_det = forward_and_log_det(self.chain, z0, self._group.values())
        return z + self._group.center.data, _base_log_prob(z0) - log_det

    @overload
    def log_prob(self, points: np.ndarray) -> np.ndarray: ...

    @overload
    def log_prob(self, points: TensorVariable) -> TensorVariable: ...

    def log_prob(self, points: Any) -> Any:
        """Log density of the approximation at any points, exact through the chain's inverse.

        Parameters
        ----------
        points : array-like or TensorVariable, shape (n, dim) or (dim,)
            Points of the unconstrained space. A symbolic argument gives a symbolic result.

        Returns
        -------
        ndarray or TensorVariable, shape (n,) or ()
            ln q, in nats.

        Raises
        ------
        FlowShapeError
            If the last axis is not ``dim``.
        NotInvertibleError
            If a layer of the chain has no inverse.
        """
        center = self._group.center
        if isinstance(points, Variable):
            z0, log_det = self.chain.inverse_and_log_det(
                points - center, self._group.blocks, loop=self._group.graph_loop
            )
            return base_log_prob(z0) - log_det
        array = np.asarray(points, dtype=pytensor.config.floatX)
        if array.ndim == 0 or array.shape[-1] != self.ddim:
            raise FlowShapeError(
                f"points must have shape (n, {self.ddim}): one column per unconstrained scalar of "
                f"the model\ngot {array.shape}"
            )
        flat = array.reshape(-1, self.ddim) - center.data
        z0, log_det = inverse_and_log_det(self.chain, flat, self._group.values())
        return (_base_log_prob(z0) - log_det).reshape(array.shape[:-1])

    def sample(
        self,
        draws: int = 500,
        *,
        random_seed: RandomState = None,
        return_inferencedata: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Draw from the approximation, all draws at once.

        Parameters
        ----------
        draws : int
            Number of draws.
        random_seed : int, Generator, RandomState, optional
            Without one, draws continue the approximation's own stream.
        return_inferencedata : bool
            False gives PyMC's MultiTrace.
        **kwargs
            Passed to `pymc.to_inference_data`, such as ``include_transformed``.

        Returns
        -------
        DataTree
            Groups ``posterior`` (free variables and deterministics, with dims and coords),
            ``observed_data`` and ``constant_data``.
        """
        if not return_inferencedata:
            return super().sample(
                draws, random_seed=random_seed, return_inferencedata=False, **kwargs
            )
        self.density.check_shapes()
        model = pm.Model.get_context(error_if_none=False) or self.model
        points, _ = self.sample_and_log_prob(draws, random_seed=random_seed)
        values = {
            s.name: points[:, s.slice].reshape((draws, *s.shape)).astype(s.dtype)
            for s in self.density.slots
        }
        missing = [v.name for v in model.value_vars if v.name not in values]
        if missing:
            raise ModelError(
                f"the model in context has a free variable {missing[0]!r} that this approximation "
                "does not know\nCall sample() outside of that context."
            )
        everything = self._draws_function(model)(values)
        return _draws.to_datatree(model, everything, **{"log_likelihood": False, **kwargs})

    def _draws_function(self, model: pm.Model) -> Any:
        key = (id(model), tuple(_draws.variables_of(model)))
        cache = self.__dict__.setdefault("_draws_cache", {})
        if key not in cache:
            cache.clear()
            cache[key] = _draws.draws_function(model)
        return cache[key]

    # --------------------------------------------------------------------------------- display

    def __str__(self) -> str:
        """Formula and dimension."""
        return f"NormalizingFlow({str(self.formula)!r}, dim={self.ddim})"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.formula.table(self.ddim)._repr_html_()

    # -------------------------------------------------------------------------------- pickling

    def __getstate__(self) -> dict[str, Any]:
        """Leave compiled functions out; make plain pickle say what to do instead."""
        state = super().__getstate__()
        state.pop("_draws_cache", None)
        # First, so that plain pickle meets it before anything of the model.
        return {"_pickle_guard": _OnlyCloudpickle(), **state}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore."""
        state.pop("_pickle_guard", None)
        super().__setstate__(state)


class _OnlyCloudpickle:
    """Pickles with cloudpickle alone, which PyMC models need; plain pickle's error says so."""

    def __reduce__(self) -> Any:
        def guard() -> None:
            return None

        # Plain pickle looks a function up by this name and quotes it when that fails;
        # cloudpickle then pickles it by value.
        guard.__qualname__ = guard.__name__ = (
            "a NormalizingFlow: a PyMC model cannot be pickled with pickle, "
            "use cloudpickle.dumps(approx)"
        )
        return guard, ()


def _base_log_prob(z0: np.ndarray) -> np.ndarray:
    return -0.5 * ((z0**2).sum(axis=-1) + z0.shape[-1] * np.log(2 * np.pi)).astype(z0.dtype)


def _check_jitter(jitter: float) -> float:
    if isinstance(jitter, bool) or not isinstance(jitter, int | float | np.number):
        raise FlowError(f"jitter must be a number, got {jitter!r}")
    if not np.isfinite(jitter) or jitter < 0:
        raise FlowError(f"jitter must be finite and at least 0, got {jitter!r}")
    return float(jitter)


def _set_initial(
    chain: Chain,
    values: Sequence[dict[str, np.ndarray]],
    initial: Mapping[int, Mapping[str, ArrayLike]],
) -> None:
    """Overwrite drawn start values with the user's, given by layer of the expanded formula."""
    layers = [(i, k) for i, block in enumerate(chain.blocks) for k in range(block.count)]
    for position, given in initial.items():
        if not isinstance(position, int | np.integer) or not 0 <= position < len(layers):
            raise FlowError(
                f"params has values for layer {position!r}\n"
                f"expected positions 0 to {len(layers) - 1}, 0 is the first applied"
            )
        i, k = layers[position]
        word = chain.blocks[i].layer.word
        for name, value in given.items():
            if name not in values[i]:
                raise FlowError(
                    f"params has a value for {name!r} of layer {position} ({word})\n"
                    f"expected one of {', '.join(values[i])}"
                )
            target = values[i][name]
            array = np.asarray(value, dtype=target.dtype)
            if array.shape != target.shape[1:]:
                raise FlowShapeError(
                    f"the value of {name!r} of layer {position} ({word}) has the wrong shape\n"
                    f"expected {target.shape[1:]}, got {array.shape}"
                )
            target[k] = array
