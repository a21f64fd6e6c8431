"""Graphs of a model for all draws at once, and draws as the DataTree that PyMC returns."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
from pytensor.compile.builders import OpFromGraph
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.replace import clone_replace, graph_replace, vectorize_graph
from pytensor.graph.rewriting.basic import dfs_rewriter, node_rewriter
from pytensor.graph.traversal import graph_inputs, toposort
from xarray import Dataset, DataTree

from pymc_flows.backends.graphs import frontier, join_batches, switch_parameter_checks
from pymc_flows.backends.modes import NUMPY
from pymc_flows.errors import ModelError
from pymc_flows.support.compat import (
    Blockwise,
    DataTreeConverter,
    MultiTrace,
    NDArray,
    RandomGeneratorType,
    RandomVariable,
    Scan,
    Shape,
    ViewOp,
    change_dist_size,
    inline_ofg_node,
)

type Draws = dict[str, np.ndarray]
type DrawsFunction = Callable[[Mapping[str, np.ndarray], np.random.Generator], Draws]


# --------------------------------------------------------------------------- all draws in one graph


def vectorized(
    outputs: Sequence[Variable], given: Mapping[Variable, Variable], *, keep_checks: bool
) -> list[Variable]:
    """Evaluate graphs for all draws at once.

    Parameters
    ----------
    outputs : sequence of Variable
        Graphs of one draw.
    given : mapping of Variable to Variable
        What the graphs depend on, and its values with a leading draw axis.
    keep_checks : bool
        Whether PyMC's parameter checks stay, each draw answering for itself.

    Returns
    -------
    list of Variable
        With a leading draw axis each, also those that no draw changes. A random variable that
        does not depend on the draws gets a value per draw. Graphs that cannot be vectorised
        become one `pytensor.scan` over the draws.
    """
    n = next(iter(given.values())).shape[0]
    noise = _own_noise(outputs, given, n)
    dependent = _dependent(outputs, [*given, *noise])
    changing = [v for v in outputs if v in dependent]
    # What no draw changes is computed once. It stays the same variable, so that PyMC can still
    # replace it (a minibatch by the whole data, say) when the graph is in use.
    fixed = frontier(changing, [*given, *noise])
    stand_ins = {v: v.type() for v in [*noise, *fixed]}
    core = graph_replace(changing, stand_ins, strict=False) if stand_ins else changing
    rows = {**given, **{stand_ins[v]: batch for v, batch in noise.items()}}
    core = switch_parameter_checks(core, rows, keep=keep_checks)
    try:
        batched = join_batches(vectorize_graph(core, rows))
        if any(_is_loop(node) and isinstance(node.op, Blockwise) for node in toposort(batched)):
            batched = _looped(core, rows, [stand_ins[v] for v in fixed])
    except Exception:  # whatever an Op raises here, a loop over draws does not need it
        batched = _looped(core, rows, [stand_ins[v] for v in fixed])
    batched = graph_replace(batched, {stand_ins[v]: v for v in fixed}, strict=False)
    new = dict(zip(changing, batched, strict=True))
    return [_with_draw_axis(v, new.get(v, v), n) for v in outputs]


def _dependent(outputs: Sequence[Variable], on: Sequence[Variable]) -> set[Variable]:
    found = set(on)
    for node in toposort(outputs):
        if not found.isdisjoint(node.inputs):
            found.update(node.outputs)
    return found


def _own_noise(
    outputs: Sequence[Variable], given: Mapping[Variable, Variable], n: Variable
) -> dict[Variable, Variable]:
    """Random variables that no draw changes, and the same with a draw axis in their size."""
    found: dict[Variable, Variable] = {}
    dependent = set(given)
    for node in toposort(outputs):
        if not dependent.isdisjoint(node.inputs):
            dependent.update(node.outputs)
        elif isinstance(node.op, RandomVariable):
            value = node.outputs[1]
            found[value] = change_dist_size(value, (n,), expand=True)
            dependent.add(value)
    return found


def _is_loop(node: Apply) -> bool:
    op = node.op.core_op if isinstance(node.op, Blockwise) else node.op
    return isinstance(op, Scan)


def _looped(
    outputs: Sequence[Variable], rows: Mapping[Variable, Variable], fixed: Sequence[Variable]
) -> list[Variable]:
    def one(*values: Variable) -> list[Variable]:
        return graph_replace(outputs, dict(zip([*rows, *fixed], values, strict=True)), strict=False)

    results = pytensor.scan(
        one, sequences=list(rows.values()), non_sequences=list(fixed), return_updates=False
    )
    return list(results) if isinstance(results, list | tuple) else [results]


def _with_draw_axis(old: Variable, new: Variable, n: Variable) -> Variable:
    return new if new.ndim > old.ndim else pt.broadcast_to(new, (n, *new.shape))


# ------------------------------------------------------------------------------- draws of a model


def variables_of(model: pm.Model) -> dict[str, Variable]:
    """Everything that a draw of the model consists of, as graphs in its value variables.

    Value variables, untransformed free variables, and deterministics, by name.
    """
    return {var.name: var for var in model.unobserved_value_vars}


def draws_function(model: pm.Model, shapes: Mapping[str, tuple[int, ...]]) -> DrawsFunction:
    """Return a function from values of the value variables to everything in `variables_of`.

    Arrays have a leading draw axis, in arguments and results. Data of the model are read at each
    call, so that ``pm.set_data`` needs no new function. The generator is for random variables
    that deterministics contain.

    Parameters
    ----------
    model : pymc.Model
    shapes : mapping of str to tuple of int
        Shape of each value variable: more than the model may say, whose dims can change.
    """
    variables = variables_of(model)
    types = {v.name: (shapes[v.name], v.dtype) for v in model.value_vars}
    one = [pt.tensor(name, shape=shape, dtype=dtype) for name, (shape, dtype) in types.items()]
    inputs = [
        pt.tensor(name, shape=(None, *shape), dtype=dtype) for name, (shape, dtype) in types.items()
    ]
    outputs = clone_replace(list(variables.values()), dict(zip(model.value_vars, one, strict=True)))
    batched = vectorized(
        _without_wrappers(outputs),
        dict(zip(one, inputs, strict=True)),
        keep_checks=model.check_bounds,
    )
    rngs = [v for v in graph_inputs(batched) if isinstance(v.type, RandomGeneratorType)]
    rng_inputs = [v.type() for v in rngs]
    if rngs:
        batched = graph_replace(batched, dict(zip(rngs, rng_inputs, strict=True)), strict=False)
    # A loop inside the model is the one thing that NumPy cannot run for all draws at once.
    mode = None if any(_is_loop(node) for node in toposort(batched)) else NUMPY
    fn = pytensor.function([*inputs, *rng_inputs], batched, mode=mode, on_unused_input="ignore")

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
        self._variables: tuple[object, ...] = ()
        self._function: DrawsFunction | None = None

    def of(self, model: pm.Model) -> DrawsFunction:
        """Return the function of a model; raise `ModelError` if its free variables are others."""
        _check_variables(model, self._shapes)
        variables = (model, *model.value_vars, *model.free_RVs, *model.deterministics)
        if self._function is None or not _same(variables, self._variables):
            self._variables, self._function = variables, draws_function(model, self._shapes)
        return self._function

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


def _same(some: Sequence[object], others: Sequence[object]) -> bool:
    return len(some) == len(others) and all(map(operator.is_, some, others))


@node_rewriter([ViewOp, OpFromGraph, Shape])
def _unwrap(fgraph: FunctionGraph, node: Apply) -> list[Variable] | None:
    if isinstance(node.op, ViewOp):
        return [node.inputs[0]]
    if isinstance(node.op, OpFromGraph):
        return inline_ofg_node(node)
    shape = node.inputs[0].type.shape
    return None if None in shape else [pt.constant(np.array(shape, dtype="int64"))]


def _without_wrappers(outputs: Sequence[Variable]) -> list[Variable]:
    """Take out what would keep NumPy from working on all draws at once.

    Name tags of deterministics, Ops with a graph of their own and shapes that are known would
    each become a Python loop over draws.
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
    """A group of values per chain and draw, with the coordinates and attrs of the posterior's."""
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
