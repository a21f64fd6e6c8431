"""Adapters that make a `State` one of PyMC's variational approximations.

Only this module imports PyMC's variational classes, so a change of theirs is followed here alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
from numpy.typing import ArrayLike
from pymc.variational import Approximation, Group, Inference, KLqp
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Variable
from pytensor.graph.replace import graph_replace
from pytensor.tensor.variable import TensorVariable
from xarray import Dataset

from pymc_flows.approximation.start import LayerParams, check_jitter, start_state
from pymc_flows.approximation.state import State
from pymc_flows.backends.modes import NUMPY, no_compiler
from pymc_flows.flows.frame import Frame
from pymc_flows.formula import Formula
from pymc_flows.model.batching import batched_draws
from pymc_flows.model.examine import plan_draws
from pymc_flows.model.layout import tensors
from pymc_flows.model.logp import ModelDensity, density_of
from pymc_flows.support.arguments import check_integer
from pymc_flows.support.compat import KL, ObjectiveFunction, node_property
from pymc_flows.support.seeds import RandomState, integer_seed
from pymc_flows.training.objectives.loss import loss_graph

__all__ = [
    "Approximation",
    "FlowKL",
    "Group",
    "Inference",
    "KLqp",
    "NormalizingFlowGroup",
    "StateApproximation",
]


class NormalizingFlowGroup(Group):
    """A distribution of a group of variables, for PyMC's `Approximation`.

    Parameters
    ----------
    group : list of TensorVariable or None
        Free variables of the model; None for all that no other group has.
    vfam, options
        Only for PyMC's ``Group(vars, vfam=formula)``.
    flow : str or Formula
        Formula of the chain.
    params, random_seed, model, jitter, start
        As for `NormalizingFlow`.
    q : State, optional
        The distribution, if it exists already.

    Attributes
    ----------
    q : State
    """

    q: State

    def __init__(
        self,
        group: Sequence[TensorVariable] | None,
        vfam: str | None = None,
        params: LayerParams | None = None,
        random_seed: RandomState | np.random.SeedSequence = None,
        model: pm.Model | None = None,
        options: dict[str, Any] | None = None,
        *,
        flow: str | Formula | None = None,
        jitter: float = 0.01,
        start: Mapping[str, ArrayLike] | Frame | None = None,
        q: State | None = None,
    ):
        given = "scale-loc" if vfam is None else vfam
        self.formula = Formula(given if flow is None else flow)
        self._given = q
        self._make = partial(
            start_state, self.formula, jitter=check_jitter(jitter), start=start, params=params
        )
        if not isinstance(random_seed, np.random.SeedSequence):
            random_seed = np.random.SeedSequence(integer_seed(random_seed))
        self._seeds = random_seed
        seed = random_seed.generate_state(1)[0]
        super().__init__(group, random_seed=seed, model=model, options=options)

    def __init_group__(self, group: Sequence[TensorVariable]) -> None:
        """Lay the variables out and create the parameters; PyMC may delay this."""
        density = density_of(self.model)
        super().__init_group__(group)
        self.q = self._given or self._make(
            density, list(self.ordering), seed=self._seeds.spawn(1)[0]
        )
        self._finalize_init()

    @property
    def params(self) -> list[SharedVariable]:
        """Shared variables, block by block, alphabetical inside a block."""
        return self.q.params

    @property
    def params_dict(self) -> dict[str, SharedVariable]:
        """The parameters by unique name, ``{block}_{word}_{param}``."""
        return self.q.params_dict

    @node_property
    def _draw_and_logq(self) -> tuple[TensorVariable, TensorVariable]:
        return self.q.draw_graph(self.symbolic_initial)

    @node_property
    def symbolic_random(self) -> TensorVariable:
        """Draws (draws, dim), from the group's symbolic base noise."""
        return self._draw_and_logq[0]

    @node_property
    def symbolic_logq_not_scaled(self) -> TensorVariable:
        """Log q (draws,) of `symbolic_random`, in nats."""
        return self._draw_and_logq[1]

    @node_property
    def mean(self) -> TensorVariable:
        """Mean (dim,) in the unconstrained space."""
        return self.q.mean()

    @node_property
    def std(self) -> TensorVariable:
        """Standard deviation (dim,)."""
        return self.q.std()

    @node_property
    def cov(self) -> TensorVariable:
        """Covariance (dim, dim)."""
        return self.q.cov()

    def var_to_data(self, shared: TensorVariable) -> Dataset:
        """Split a flat vector into variables, as PyMC does, but without compiling its graph."""
        return super().var_to_data(_Value(shared.eval(mode=NUMPY)))

    def __str__(self) -> str:
        """Name, dimension and formula."""
        dim = "undefined" if self.group is None else self.ddim
        return f"NormalizingFlowGroup[{dim}]({self.formula})"

    __repr__ = __str__


class _Value(NamedTuple):
    """The part of a tensor variable that PyMC's `var_to_data` uses."""

    value: np.ndarray

    def eval(self) -> np.ndarray:
        return self.value


def _of_group(name: str, doc: str) -> Any:
    """A property that is an attribute of the approximation's only group."""
    return property(lambda approx: getattr(approx.groups[0], name), doc=doc)


class StateApproximation(Approximation):
    """PyMC's approximation of a whole model by one distribution.

    Parameters
    ----------
    q : State
    density : ModelDensity
    model : pymc.Model
    seeds : SeedSequence
    """

    groups: list[NormalizingFlowGroup]
    q: State

    def __init__(
        self, q: State, density: ModelDensity, model: pm.Model, seeds: np.random.SeedSequence
    ):
        self.q, self._density = q, density
        with no_compiler():  # PyMC compiles a function for the initial point
            group = NormalizingFlowGroup(None, flow=q.formula, q=q, random_seed=seeds, model=model)
            super().__init__([group], model=model)

    @property
    def density(self) -> ModelDensity:
        """Log density of the model, made anew if data that lengths depend on have changed."""
        if not self._density.has_its_lengths():
            self._density = density_of(self.model)
        return self._density

    @property
    def include_transformed(self) -> bool:
        """Whether `state` has the unconstrained variables as well."""
        return bool(getattr(self.groups[0], "include_transformed", False))

    @include_transformed.setter
    def include_transformed(self, value: bool) -> None:
        self.groups[0].include_transformed = value

    rng = _of_group("rng", "Seeds what PyMC compiles from this approximation.")
    state = _of_group("state", "Mean and standard deviation by variable, as PyMC gives them.")
    mean_data = _of_group("mean_data", "Mean by unconstrained variable.")
    std_data = _of_group("std_data", "Standard deviation by unconstrained variable.")
    mean = _of_group("mean", "Mean (dim,), unconstrained: exact if affine, else by fixed noise.")
    std = _of_group("std", "Standard deviation (dim,) in the unconstrained space; as `mean`.")
    cov = _of_group("cov", "Covariance (dim, dim) in the unconstrained space; as `mean`.")

    def symbolic_sample_over_posterior(
        self,
        node: Variable | list[Variable],
        more_replacements: Mapping[Variable, Variable] | None = None,
    ) -> Any:
        """Evaluate nodes for all draws at once; PyMC's own version scans over draws."""
        nodes = list(node) if isinstance(node, list | tuple) else [node]
        if more_replacements:
            nodes = graph_replace(nodes, dict(more_replacements), strict=False)
        nodes = tensors(nodes, dict(zip(self.model.value_vars, self.density.values, strict=True)))
        values = self.density.unpack(self.symbolic_random)
        sampled, _ = batched_draws(nodes, values, "the graph", keep_checks=self.model.check_bounds)
        return sampled if isinstance(node, list | tuple) else sampled[0]


class FlowObjective(ObjectiveFunction):
    """PyMC's objective function with the loss of a flow, vectorised over draws."""

    def __call__(self, nmc: int | None, **kwargs: Any) -> TensorVariable:
        """Return the symbolic loss in nats, from ``nmc`` draws (None: one).

        It has a random generator of its own with a default update: each evaluation of it or of
        its gradient draws anew.
        """
        approx = self.approx
        n_draws = check_integer("nmc", 1 if nmc is None else nmc)
        seed = int(approx.rng.randint(2**30, dtype=np.int64))
        rng = pytensor.shared(np.random.default_rng(seed), name="objective_rng")
        next_rng, z0 = pt.random.normal(
            size=(n_draws, approx.ddim),
            rng=rng,
            dtype=pytensor.config.floatX,
            return_next_rng=True,
        )
        with warnings.catch_warnings():
            # PyTensor deprecates this, but nothing else draws anew at each `eval`.
            warnings.simplefilter("ignore", DeprecationWarning)
            rng.default_update = next_rng
        replacements = kwargs.get("more_replacements")
        plan = plan_draws(approx.density, n_draws, approx.center_point(), "numba", replacements)
        problem = approx.problem(float(self.op.beta))
        return loss_graph(problem, z0, plan, loop=approx.graph_loop, replacements=replacements)


class FlowKL(KL):
    """PyMC's KL operator with `FlowObjective`."""

    objective_class = FlowObjective
