"""Draws of all variables of a model, and the containers in which PyMC returns draws."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pymc as pm
import pytensor.tensor as pt
from pytensor.compile.builders import OpFromGraph
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.replace import clone_replace
from pytensor.graph.rewriting.basic import dfs_rewriter, node_rewriter
from xarray import Dataset, DataTree

from pymc_flows.backends.ops import random_inputs
from pymc_flows.errors import ModelError
from pymc_flows.model.batching import batched_draws, compiled, replaced
from pymc_flows.model.layout import are_same, mentions_names, tensors
from pymc_flows.support.compat import (
    DataTreeConverter,
    MultiTrace,
    NDArray,
    Shape,
    ViewOp,
    inline_ofg_node,
)

_log = logging.getLogger(__name__)

type Draws = dict[str, np.ndarray]
type DrawsFunction = Callable[[Mapping[str, np.ndarray], np.random.Generator], Draws]


# ------------------------------------------------------------------------------- draws of a model


def variables_of(model: pm.Model) -> dict[str, Variable]:
    """Variables that a draw of the model consists of, by name, as graphs in its value variables.

    They are the value variables, the free variables before their transforms, and deterministics.
    """
    return {var.name: var for var in model.unobserved_value_vars}


def draws_function(model: pm.Model, shapes: Mapping[str, tuple[int, ...]]) -> DrawsFunction:
    """Return a function from values of the value variables to values of all `variables_of`.

    Arrays have a leading draw axis, in arguments and results. Data of the model are read at each
    call, so that ``pm.set_data`` needs no new function. The generator is for random variables
    that deterministics contain.

    Parameters
    ----------
    model : pymc.Model
    shapes : mapping of str to tuple of int
        Shape of each value variable; the model may not know it, since dims can change.
    """
    variables = variables_of(model)
    types = {v.name: (shapes[v.name], v.dtype) for v in model.value_vars}
    one = [pt.TensorType(dtype, shape)(name) for name, (shape, dtype) in types.items()]
    inputs = [pt.TensorType(dtype, (None, *shape))(name) for name, (shape, dtype) in types.items()]
    given = dict(zip(model.value_vars, one, strict=True))
    outputs = list(variables.values())
    if mentions_names(outputs):
        outputs = tensors(_without_wrappers(outputs), given)
    else:
        outputs = clone_replace(outputs, given)
    batch, reason = batched_draws(
        _without_wrappers(outputs),
        dict(zip(one, inputs, strict=True)),
        "the graph of a draw",
        keep_checks=model.check_bounds,
    )
    if reason:
        _log.warning("Variables of the model are computed draw by draw: %s.", reason)
    rngs = random_inputs(batch)
    rng_inputs = [v.type() for v in rngs]
    batch = replaced(batch, dict(zip(rngs, rng_inputs, strict=True)))
    fn = compiled([*inputs, *rng_inputs], batch)

    def draws(values: Mapping[str, np.ndarray], rng: np.random.Generator) -> Draws:
        arrays = [np.asarray(values[name], dtype) for name, (_, dtype) in types.items()]
        return dict(zip(variables, fn(*arrays, *rng.spawn(len(rngs))), strict=True))

    return draws


class DrawsFunctions:
    """Keeps the `draws_function` of the last model, until that model has other variables.

    Parameters
    ----------
    shapes : mapping of str to tuple of int
        Shape of each value variable.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._shapes = dict(shapes)
        # Variables and their function in one value, so that other threads see both or neither.
        self._known: tuple[tuple[object, ...], DrawsFunction] | None = None

    def of(self, model: pm.Model) -> DrawsFunction:
        """Return the function of a model.

        Raises
        ------
        ModelError
            If the model has other free variables, or free variables of other shapes.
        """
        _check_variables(model, self._shapes)
        variables = (model, *model.value_vars, *model.free_RVs, *model.deterministics)
        known = self._known
        if known is None or not are_same(variables, known[0]):
            known = self._known = (variables, draws_function(model, self._shapes))
        return known[1]

    def __reduce__(self) -> tuple[type[DrawsFunctions], tuple[dict[str, tuple[int, ...]]]]:
        """Pickle without the function: it is made again when needed."""
        return type(self), (self._shapes,)


def _check_variables(model: pm.Model, shapes: Mapping[str, tuple[int, ...]]) -> None:
    if not model.value_vars:
        raise ModelError("the model in context has no free variable\nCall sample() outside of it.")
    for var in model.value_vars:
        if var.name not in shapes:
            raise ModelError(
                f"the model in context has a free variable {var.name!r} that this approximation "
                "does not know\nCall sample() outside of that context."
            )
        expected, shape = var.type.shape, shapes[var.name]
        if len(expected) != len(shape) or any(
            n not in (None, m) for n, m in zip(expected, shape, strict=True)
        ):
            raise ModelError(
                f"the model in context has a free variable {var.name!r} of another shape\n"
                f"expected {shape}, got {expected}\nCall sample() outside of that context."
            )


@node_rewriter([ViewOp, OpFromGraph, Shape])
def _unwrap(fgraph: FunctionGraph, node: Apply) -> list[Variable] | None:
    if isinstance(node.op, ViewOp):
        return [node.inputs[0]]
    if isinstance(node.op, OpFromGraph):
        return inline_ofg_node(node)
    shape = node.inputs[0].type.shape
    return None if None in shape else [pt.constant(np.array(shape, dtype="int64"))]


def _without_wrappers(outputs: Sequence[Variable]) -> list[Variable]:
    """Take out Ops that NumPy would apply in a Python loop over draws.

    These are the name tags of deterministics, Ops with a graph of their own, and known shapes.
    """
    fgraph = FunctionGraph(outputs=list(outputs), clone=True, copy_inputs=False, copy_orphans=False)
    dfs_rewriter(_unwrap).rewrite(fgraph)
    return list(fgraph.outputs)


# ------------------------------------------------------------------------------ containers of draws


class _Trace(dict[str, np.ndarray]):
    """The part of PyMC's trace interface that its DataTree converter reads.

    Parameters
    ----------
    draws : dict of str to ndarray, shape (chains · draws, ...)
        Chain after chain.
    nchains : int
    """

    stat_names = frozenset[str]()
    report = SimpleNamespace(n_draws=None)

    def __init__(self, draws: Draws, nchains: int):
        super().__init__(draws)
        self.nchains = nchains

    @property
    def varnames(self) -> list[str]:
        return list(self)

    def __len__(self) -> int:
        return len(next(iter(self.values()))) // self.nchains

    def __getitem__(self, key: Any) -> Any:
        return self if isinstance(key, slice) else super().__getitem__(key)

    def get_values(self, name: str, **_: object) -> list[np.ndarray]:
        return np.split(super().__getitem__(name), self.nchains)


def to_datatree(model: pm.Model, draws: Draws, *, chains: int = 1, **kwargs: Any) -> DataTree:
    """Assemble the DataTree: posterior with dims and coords, observed and constant data.

    Parameters
    ----------
    model : pymc.Model
    draws : dict of str to ndarray
        Each with a leading draw axis, chain after chain.
    chains : int
        Number of chains, equally long.
    **kwargs
        As for `pymc.to_inference_data`.
    """
    options = {"save_warmup": False, **kwargs}
    trace = _Trace(draws, chains)
    return DataTreeConverter(trace=trace, model=model, **options).to_inference_data()


def with_coords_of(posterior: DataTree, stats: Dataset) -> DataTree:
    """Give a group of values per chain and draw the coordinates and attrs of the posterior."""
    coords = {dim: posterior.coords[dim] for dim in ("chain", "draw")}
    attrs = {**posterior.attrs, **stats.attrs}
    return DataTree(stats.assign_coords(coords).assign_attrs(attrs))


def to_multitrace(model: pm.Model, draws: Draws) -> MultiTrace:
    """Assemble PyMC's older container, with one chain.

    Parameters
    ----------
    model : pymc.Model
    draws : dict of str to ndarray
        Each with a leading draw axis.
    """
    trace = NDArray(
        model=model,
        fn=_no_more_draws,
        var_shapes={name: value.shape[1:] for name, value in draws.items()},
        var_dtypes={name: value.dtype for name, value in draws.items()},
    )
    n = len(next(iter(draws.values())))
    trace.setup(draws=n, chain=0)
    trace.samples.update(draws)
    trace.draw_idx = n
    return MultiTrace([trace])


def _no_more_draws(*_: object) -> None:
    raise NotImplementedError("a trace of an approximation's draws is complete")
