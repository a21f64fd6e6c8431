"""Draws of an approximation as the DataTree that PyMC returns, all draws at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
from pymc.backends.arviz import DataTreeConverter
from pytensor.graph.basic import Variable
from pytensor.graph.replace import graph_replace, vectorize_graph
from pytensor.graph.traversal import toposort
from pytensor.scan.op import Scan
from pytensor.tensor.blockwise import Blockwise
from xarray import DataTree

from pymc_flows.modes import NUMPY

type Draws = dict[str, np.ndarray]


def variables_of(model: pm.Model) -> dict[str, Variable]:
    """Everything that a draw of the model consists of, as graphs in its value variables.

    Value variables, untransformed free variables, and deterministics, by name.
    """
    return {var.name: var for var in model.unobserved_value_vars}


def draws_function(model: pm.Model) -> Callable[[Mapping[str, np.ndarray]], Draws]:
    """Return a function from values of the value variables to everything in `variables_of`.

    Arrays have a leading draw axis, in arguments and results. Data of the model are read at each
    call, so that ``pm.set_data`` needs no new function.
    """
    variables = variables_of(model)
    outputs = list(variables.values())
    inputs = [
        pt.tensor(v.name, shape=(None, *v.type.shape), dtype=v.dtype) for v in model.value_vars
    ]
    batched = _vectorized(outputs, dict(zip(model.value_vars, inputs, strict=True)))
    # A loop inside the model is the one thing that NumPy cannot run for all draws at once.
    mode = None if any(isinstance(node.op, Scan) for node in toposort(batched)) else NUMPY
    fn = pytensor.function(inputs, batched, mode=mode, on_unused_input="ignore")

    def draws(values: Mapping[str, np.ndarray]) -> Draws:
        arrays = [np.asarray(values[v.name], dtype=v.dtype) for v in model.value_vars]
        return dict(zip(variables, fn(*arrays), strict=True))

    return draws


def _vectorized(outputs: list[Variable], given: dict[Variable, Variable]) -> list[Variable]:
    n = next(iter(given.values())).shape[0]
    try:
        batched = vectorize_graph(outputs, given)
        if any(
            isinstance(node.op, Blockwise) and isinstance(node.op.core_op, Scan)
            for node in toposort(batched)
        ):
            batched = _looped(outputs, given)
    except Exception:  # noqa: BLE001 - whatever an Op raises here, a loop over draws does not need it
        batched = _looped(outputs, given)
    # A deterministic of data alone is the same for each draw.
    return [
        new if new.ndim > old.ndim else pt.broadcast_to(new, (n, *new.shape))
        for old, new in zip(outputs, batched, strict=True)
    ]


def _looped(outputs: list[Variable], given: dict[Variable, Variable]) -> list[Variable]:
    def one(*values: Variable) -> list[Variable]:
        return graph_replace(outputs, dict(zip(given, values, strict=False)), strict=False)

    results = pytensor.scan(one, sequences=list(given.values()), return_updates=False)
    return list(results) if isinstance(results, list | tuple) else [results]


class _Trace(dict[str, np.ndarray]):
    """The part of PyMC's trace interface that its DataTree converter reads: one chain of draws."""

    nchains = 1
    stat_names = frozenset[str]()
    report = SimpleNamespace(n_draws=None)

    @property
    def varnames(self) -> list[str]:
        return list(self)

    def __len__(self) -> int:
        return len(next(iter(self.values())))

    def __getitem__(self, key: Any) -> Any:
        return self if isinstance(key, slice) else super().__getitem__(key)

    def get_values(self, name: str, **_: object) -> list[np.ndarray]:
        return [super().__getitem__(name)]


def to_datatree(model: pm.Model, draws: Draws, **kwargs: Any) -> DataTree:
    """Assemble the DataTree: posterior with dims and coords, observed and constant data.

    Parameters
    ----------
    model : pymc.Model
    draws : dict of str to ndarray
        Each with a leading draw axis.
    **kwargs
        As for `pymc.to_inference_data`.
    """
    converter = DataTreeConverter(trace=_Trace(draws), model=model, save_warmup=False, **kwargs)
    return converter.to_inference_data()
