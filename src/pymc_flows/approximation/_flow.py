"""The approximation of a whole model by one flow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, overload

import numpy as np
import pymc as pm
import pytensor
from numpy.typing import ArrayLike
from pymc.backends.base import MultiTrace
from pymc.util import RandomState, _get_seeds_per_chain
from pymc.variational.minibatch_rv import MinibatchRandomVariable
from pymc.variational.opvi import Approximation, VIState
from pytensor.graph.basic import Variable
from pytensor.graph.replace import graph_replace
from pytensor.tensor.variable import TensorVariable
from xarray import Dataset, DataTree

from pymc_flows import draws as _draws
from pymc_flows.approximation._group import NormalizingFlowGroup
from pymc_flows.approximation._pickling import OnlyCloudpickle, deep_copy
from pymc_flows.approximation._start import LayerParams
from pymc_flows.density import ModelDensity
from pymc_flows.errors import ArgumentError, FlowShapeError
from pymc_flows.evaluate import forward_and_log_det, inverse_and_log_det
from pymc_flows.flows import Chain
from pymc_flows.flows.chain import Loop
from pymc_flows.formula import Formula
from pymc_flows.frame import Frame
from pymc_flows.objective import Problem, base_log_prob


class NormalizingFlow(Approximation):
    """Normalizing-flow approximation of a model's posterior: z = c + A T(z0), z0 ~ N(0, I).

    Parameters
    ----------
    flow : str or Formula
        Formula of the chain T, in order of application, such as ``'scale-hh*4-loc'``.
    model : pymc.Model, optional
        Defaults to the model on the context stack.
    jitter : float
        Standard deviation of the noise on the raw start parameters.
    start : dict of str to array-like or Frame, optional
        Start point by variable name; what it does not name comes from ``model.initial_point()``.
        It is the constant c, or the start of a final ``loc`` layer, and then c = 0; A = I. A
        `Frame`, such as `find_frame` returns, is c and A.
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
    ArgumentError
        If ``jitter`` is not a standard deviation, or ``params`` names a layer or a parameter that
        the flow does not have.
    FlowShapeError
        If a value of ``params`` has the wrong shape.

    Examples
    --------
    >>> import numpy as np
    >>> import pymc as pm
    >>> import pymc_flows as pmf
    >>> with pm.Model():
    ...     x = pm.Normal("x", shape=2)
    ...     approx = pmf.NormalizingFlow("loc", jitter=0, start={"x": [1, 2]})
    >>> approx
    NormalizingFlow('loc', dim=2)
    >>> bool(np.isclose(approx.log_prob([1, 2]), -np.log(2 * np.pi)))
    True
    """

    def __init__(
        self,
        flow: str | Formula = "scale-loc",
        *,
        model: pm.Model | None = None,
        jitter: float = 0.01,
        start: Mapping[str, ArrayLike] | Frame | None = None,
        params: LayerParams | None = None,
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
        self._draws_functions = _draws.DrawsFunctions(
            {slot.name: slot.shape for slot in self.density.slots}
        )

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
        """Mean (dim,) in the unconstrained space: exact if affine, else from fixed noise."""
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
        """How repeats enter graphs that PyTensor compiles with any backend."""
        return self._group.graph_loop

    def center_point(self) -> np.ndarray:
        """The point (dim,) that the approximation draws from a zero of the base."""
        zero = np.zeros((1, self.ddim), pytensor.config.floatX)
        z, _ = forward_and_log_det(self.chain, zero, self._group.values())
        return self._group.frame.place(z[0])

    def problem(self, beta: float = 1.0) -> Problem:
        """What a fit optimises: this flow against the model's log density."""
        group = self._group
        scale = self.symbolic_normalizing_constant if self._has_minibatch else 1.0
        return Problem(group.chain, group.blocks, group.frame, self.density, beta, scale)

    @property
    def _has_minibatch(self) -> bool:
        rvs = [*self.model.observed_RVs, *self.model.free_RVs]
        return any(isinstance(rv.owner.op, MinibatchRandomVariable) for rv in rvs)

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
        sampled = _draws.vectorized(nodes, values, keep_checks=self.model.check_bounds)
        return sampled if isinstance(node, list | tuple) else sampled[0]

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

        Raises
        ------
        ArgumentError
            If ``n`` is not an integer of at least 1.
        """
        return self._draw(n, self._rng_for(random_seed))

    def _rng_for(self, random_seed: RandomState) -> np.random.Generator:
        if random_seed is None:
            return self._sample_rng
        return np.random.default_rng(_get_seeds_per_chain(random_seed, 1)[0])

    def _draw(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1:
            raise ArgumentError(f"the number of draws must be an integer of at least 1, got {n!r}")
        dtype = np.dtype(pytensor.config.floatX)
        z0 = rng.standard_normal((n, self.ddim), dtype=dtype)
        z, log_det = forward_and_log_det(self.chain, z0, self._group.values())
        frame = self._group.frame
        return frame.place(z), _base_log_prob(z0) - log_det - frame.log_det

    @overload
    def log_prob(self, points: ArrayLike) -> np.ndarray: ...

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
        frame = self._group.frame
        if isinstance(points, Variable):
            self._check_points(points.type.shape)
            z0, log_det = self.chain.inverse_and_log_det(
                frame.take(points), self._group.blocks, loop=self.graph_loop
            )
            return base_log_prob(z0) - log_det - frame.log_det
        array = np.asarray(points, dtype=pytensor.config.floatX)
        self._check_points(array.shape)
        flat = frame.take(array.reshape(-1, self.ddim))
        z0, log_det = inverse_and_log_det(self.chain, flat, self._group.values())
        return (_base_log_prob(z0) - log_det - frame.log_det).reshape(array.shape[:-1])

    def _check_points(self, shape: tuple[int | None, ...]) -> None:
        if not shape or shape[-1] not in (None, self.ddim):
            raise FlowShapeError(
                f"points must have shape (n, {self.ddim}): one column per unconstrained scalar of "
                f"the model\ngot {shape}"
            )

    def sample(
        self,
        draws: int = 500,
        *,
        random_seed: RandomState = None,
        return_inferencedata: bool = True,
        **kwargs: Any,
    ) -> DataTree | MultiTrace:
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

        Raises
        ------
        ArgumentError
            If ``draws`` is not an integer of at least 1.
        ModelError
            If a free variable has changed its shape, or the model in context has one that the
            approximation does not know.
        """
        model = pm.Model.get_context(error_if_none=False) or self.model
        rng = self._rng_for(random_seed)
        points, _ = self._draw(draws, rng)
        self.density.check_shapes()
        values = {s.name: points[:, s.slice].reshape((draws, *s.shape)) for s in self.density.slots}
        everything = self._draws_functions.of(model)(values, rng)
        if not return_inferencedata:
            return _draws.to_multitrace(model, everything)
        return _draws.to_datatree(model, everything, **kwargs)

    # --------------------------------------------------------------------------------- display

    def __str__(self) -> str:
        """Formula and dimension."""
        return f"NormalizingFlow({str(self.formula)!r}, dim={self.ddim})"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.formula.table(self.ddim)._repr_html_()

    # -------------------------------------------------------------------------------- copying

    def __getstate__(self) -> dict[str, Any]:
        """Make plain pickle say what to do instead."""
        # First, so that plain pickle meets it before anything of the model.
        return {"_pickle_guard": OnlyCloudpickle(), **super().__getstate__()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore."""
        state.pop("_pickle_guard")
        super().__setstate__(state)

    def __deepcopy__(self, memo: dict[int, Any]) -> NormalizingFlow:
        """Copy with the model."""
        return deep_copy(self)


def _base_log_prob(z0: np.ndarray) -> np.ndarray:
    return -0.5 * ((z0**2).sum(axis=-1) + z0.shape[-1] * np.log(2 * np.pi)).astype(z0.dtype)
