"""One model whose data are exchanged, so that its compiled functions serve all data sets."""

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
        A model, for which data sets are dicts of new values by name, of its data (`pymc.Data`)
        and its observed variables. Or a function that makes a model from a data set of any kind;
        its models may only differ in the values of `pymc.Data` and of observed variables.
    first : object
        A data set, from which a function makes the model that is kept.
    """

    def __init__(self, builder: Builder, first: Any):
        self._builder, self._first = builder, first
        self._model: pm.Model | None = None
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what each process makes for itself."""
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
                self._density: ModelDensity = density_of(self._model)  # keeps compiled functions
            if callable(self._builder):
                copy_data(self._built(data), self._model)
            else:
                set_data(self._model, data)
            self._density.check_shapes()
            self._density = density_of(self._model)  # a new one if lengths have changed
            yield self._model

    def own(self, data: Any) -> pm.Model:
        """A new model for a data set, which nothing else uses."""
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
    """Replace constant values of observed variables by shared variables, which can be set.

    Raises
    ------
    ModelError
        If a value is computed, such as a minibatch.
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
        If the model has no such name, or a value has the wrong shape or type, or missing values.
    """
    if not isinstance(data, Mapping):
        raise ArgumentError(
            f"a data set must be a dict of values by name, got {data!r:.200}\n"
            "For data sets of another kind, give a function that makes a model of one."
        )
    named = {v.name: v for v in model.data_vars}
    observed = observed_values(model)
    for name, value in data.items():
        target = named.get(name, observed.get(name))
        if target is None:
            known = ", ".join([*named, *(n for n in observed if n not in named)])
            raise ArgumentError(f"the model has no data {name!r}\nIt has: {known or 'none'}.")
        if target.name in named:
            model.set_data(target.name, _converted(name, value, target.dtype))
        else:
            _set_observed(name, target, value)


def _converted(name: str, value: ArrayLike, dtype: str) -> np.ndarray:
    """Values as an array of a dtype; raise if one is masked, or is no integer where it must be."""
    if np.ma.is_masked(value):
        raise ArgumentError(f"the values of {name!r} are partly masked: fill them in")
    array = np.asarray(value)
    with np.errstate(invalid="ignore"):  # of NaN as an integer
        found = array.astype(dtype)
    if found.dtype.kind in "iub" and (found != array).any():
        raise ArgumentError(
            f"the values of {name!r} must be of type {dtype}, like those of the model\n"
            f"got {array.dtype}, and not all of them can be converted without loss"
        )
    return found


def _set_observed(name: str, target: Any, value: ArrayLike) -> None:
    expected, array = target.type.shape, _converted(name, value, target.dtype)
    fits = len(expected) == array.ndim and all(
        n in (None, m) for n, m in zip(expected, array.shape, strict=True)
    )
    if not fits:
        raise ArgumentError(
            f"the observed values of {name!r} have shape {array.shape}, expected {expected}"
        )
    target.set_value(array)


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
            "Put everything that differs between data sets into pm.Data(name, value) or observed=."
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
            is_shared = isinstance(value, SharedVariable)
            _set_observed(name, kept[name], value.get_value() if is_shared else value.data)


def _same_structure(one: pm.Model, other: pm.Model) -> bool:
    """Whether two models are the same graphs, apart from data and observed values."""
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
