"""One model whose data are exchanged: what is compiled for it serves all data sets."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pymc as pm
import pytensor
from numpy.typing import ArrayLike
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Variable, equal_computations
from pytensor.graph.traversal import graph_inputs
from pytensor.tensor import TensorConstant

from pymc_flows.approximation import deep_copy
from pymc_flows.errors import ArgumentError, ModelError
from pymc_flows.model.logp import ModelDensity, density_of

type Builder = pm.Model | Callable[[Any], pm.Model]


class Template:
    """A model that takes one data set after the other.

    Parameters
    ----------
    builder : pymc.Model or callable
        A model, of which data sets are dicts of new values by name: of its data (`pymc.Data`) and
        of its observed variables. Or what makes a model of a data set, of any kind; then nothing
        but values of `pymc.Data` and of observed variables may differ between the models.
    first : object
        A data set, of which a callable makes the model that is kept.
    """

    def __init__(self, builder: Builder, first: Any):
        self._builder, self._first = builder, first
        self._model: pm.Model | None = None
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        """Leave what a process makes for itself."""
        return {**self.__dict__, "_model": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore."""
        self.__dict__.update(state)
        self._lock = threading.RLock()

    @contextmanager
    def with_data(self, data: Any) -> Iterator[pm.Model]:
        """The model with a data set, for one thread at a time."""
        with self._lock:
            if self._model is None:
                self._model = self.own(self._first)
                self._density: ModelDensity = density_of(self._model)  # held: it knows functions
            if callable(self._builder):
                copy_data(self._built(data), self._model)
            else:
                set_data(self._model, data)
            self._density.check_shapes()
            self._density = density_of(self._model)  # another one, where data decide lengths
            yield self._model

    def own(self, data: Any) -> pm.Model:
        """A model of its own for a data set."""
        if callable(self._builder):
            model = self._built(data)
        else:
            model = deep_copy(self._builder)
        free_observed(model)
        if not callable(self._builder):
            set_data(model, data)
        return model

    def _built(self, data: Any) -> pm.Model:
        assert callable(self._builder)
        model = self._builder(data)
        if not isinstance(model, pm.Model):
            raise ArgumentError(f"the builder must return a pymc.Model, got {model!r:.200}")
        return model


def free_observed(model: pm.Model) -> None:
    """Let the values of observed variables be exchanged: shared variables instead of constants.

    Raises
    ------
    ModelError
        If they are neither constants nor data: a minibatch, or what is computed.
    """
    for rv in model.observed_RVs:
        value = model.rvs_to_values[rv]
        if isinstance(value, SharedVariable):
            continue
        if not isinstance(value, TensorConstant):
            raise ModelError(
                f"the observed values of {rv.name!r} are computed: they cannot be exchanged\n"
                "Give them as an array, or as pm.Data."
            )
        shared = pytensor.shared(value.data, name=value.name or rv.name, shape=value.type.shape)
        model.rvs_to_values[rv] = shared
        model.values_to_rvs.pop(value)
        model.values_to_rvs[shared] = rv


def observed_values(model: pm.Model) -> dict[str, Variable]:
    """Values of observed variables by name."""
    return {rv.name: model.rvs_to_values[rv] for rv in model.observed_RVs}


def set_data(model: pm.Model, data: Mapping[str, ArrayLike]) -> None:
    """Give a model new values of its data and its observed variables.

    Raises
    ------
    ArgumentError
        If there is no such name, or a value has another number of dimensions.
    """
    if not isinstance(data, Mapping):
        raise ArgumentError(
            f"a data set must be a dict of values by name, got {data!r:.200}\n"
            "Give a function that makes a model of it instead of a model."
        )
    named = {v.name: v for v in model.data_vars}
    observed = observed_values(model)
    for name, value in data.items():
        target = named.get(name, observed.get(name))
        if target is None:
            known = ", ".join([*named, *(n for n in observed if n not in named)])
            raise ArgumentError(f"the model has no data {name!r}\nIt has: {known or 'none'}.")
        if target.name in named:
            model.set_data(target.name, np.asarray(value).astype(target.dtype))
        else:
            _set_observed(name, target, np.asarray(value))


def _set_observed(name: str, target: Any, value: np.ndarray) -> None:
    expected = target.type.shape
    fits = len(expected) == value.ndim and all(
        n in (None, m) for n, m in zip(expected, value.shape, strict=True)
    )
    if not fits:
        raise ArgumentError(
            f"the observed values of {name!r} have shape {value.shape}, expected {expected}"
        )
    target.set_value(value.astype(target.dtype))


def copy_data(source: pm.Model, target: pm.Model) -> None:
    """Give a model the data of another one with the same structure.

    Raises
    ------
    ArgumentError
        If more than data differs, such as an array that is not `pymc.Data`.
    """
    if not _same_structure(source, target):
        raise ArgumentError(
            "the builder made models that differ in more than their data\n"
            "Put what differs between data sets into pm.Data(name, value), or into observed=."
        )
    for data in source.data_vars:
        dims = source.named_vars_to_dims.get(data.name, ())
        coords = {
            dim: source.coords[dim]
            for dim in dims
            if dim is not None and source.coords.get(dim) is not None
        }
        target.set_data(data.name, data.get_value(), coords=coords or None)
    kept = observed_values(target)
    for name, value in observed_values(source).items():
        if kept[name].name not in {v.name for v in target.data_vars}:
            _set_observed(name, kept[name], np.asarray(value.data))


def _same_structure(one: pm.Model, other: pm.Model) -> bool:
    """Whether two models are the same graphs, but for data and observed values."""
    graphs = []
    for model in (one, other):
        variables = [*model.free_RVs, *model.observed_RVs, *model.potentials]
        names = [v.name for v in variables]
        data = [v for v in graph_inputs(variables) if isinstance(v, SharedVariable)]
        kinds = [type(model.rvs_to_transforms.get(rv)) for rv in model.free_RVs]
        graphs.append((variables, names, data, kinds))
    (xs, names, shared, kinds), (ys, *others) = graphs
    if [names, len(shared), kinds] != [others[0], len(others[1]), others[2]]:
        return False
    types = [(a.type.dtype, a.type.ndim) for a in shared if hasattr(a.type, "dtype")]
    if types != [(b.type.dtype, b.type.ndim) for b in others[1] if hasattr(b.type, "dtype")]:
        return False
    return bool(equal_computations(xs, ys, shared, others[1]))
