"""The free variables of a model as one flat vector, and start points in it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pymc as pm
import pytensor.tensor as pt
from pytensor.compile.mode import optdb
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.replace import graph_replace
from pytensor.graph.traversal import graph_inputs, toposort
from pytensor.tensor import TensorConstant
from pytensor.tensor.variable import TensorVariable

from pymc_flows.backends.functions import function_of
from pymc_flows.backends.modes import PLAIN, no_compiler
from pymc_flows.backends.ops import first_line
from pymc_flows.errors import ArgumentError, ModelError
from pymc_flows.support.compat import (
    LOWER_NAMES,
    ChainedTransform,
    XTensorType,
    make_initial_point_fn,
    xtensor_from_tensor,
)

type Point = dict[str, np.ndarray]
# Values of variables, or how to find them, by name or variable, as in `pymc.sample`'s initvals.
type Start = Mapping[str, object] | Mapping[Variable, object]

DIMS_OF_DRAWS = ("chain", "draw")
STRATEGIES = ("support_point", "prior")


@dataclass(frozen=True)
class Slot:
    """Where one value variable sits in the flat vector."""

    name: str
    slice: slice
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.slice.stop - self.slice.start


def layout(model: pm.Model) -> tuple[Slot, ...]:
    """Lay the value variables of a model out in one vector, in the order of ``model.free_RVs``.

    Raises
    ------
    ModelError
        If there is nothing to lay out, a free variable is discrete, the model has no initial point,
        or draws could not be returned with its names or labels.
    """
    _check_free_variables(model)
    _check_labels(model)
    try:
        point = initial_point(model)
    except Warning:  # which a user has made an error
        raise
    except Exception as error:  # whatever PyMC and the model's Ops raise
        raise ModelError(
            f"PyMC finds no initial point of the model: {type(error).__name__}: "
            f"{first_line(error)}\n"
            "model.initial_point() must work; initval= of a variable may help."
        ) from error
    if renamed := {value.name for value in model.value_vars} - set(point):
        raise ModelError(
            f"variables have got another name since they were made: {', '.join(sorted(renamed))}\n"
            "pm.Potential(name, x) renames x itself: write pm.Potential(name, 1 * x)."
        )
    slots, begin = [], 0
    for value in model.value_vars:
        array = np.asarray(point[value.name])
        end = begin + array.size
        slots.append(Slot(value.name, slice(begin, end), array.shape, str(value.dtype)))
        begin = end
    if begin == 0:
        shapes = ", ".join(f"{slot.name} {slot.shape}" for slot in slots)
        raise ModelError(
            f"all free variables of the model have size 0: {shapes}\n"
            "Give the model data or coordinates before the approximation is made."
        )
    return tuple(slots)


def _check_free_variables(model: pm.Model) -> None:
    if not model.free_RVs:
        observed = ", ".join(rv.name for rv in model.observed_RVs)
        what = f"only observed ones ({observed})" if observed else "no random variables at all"
        raise ModelError(
            f"the model has no free random variable, {what}: there is nothing to approximate\n"
            "Build the model first, then create the approximation in its context or pass model=."
        )
    for rv in model.free_RVs:
        if np.dtype(rv.dtype).kind in "biu":
            raise ModelError(
                f"free variable {rv.name!r} is discrete ({rv.dtype})\n"
                "A flow needs continuous variables: marginalise it out "
                "(pymc_extras.marginalize does that for finite ones) or sample it with MCMC."
            )


def _check_labels(model: pm.Model) -> None:
    """Refuse names and labels with which PyMC cannot return draws, before a fit and not after."""
    for variable in model.unobserved_RVs:
        if variable.name in DIMS_OF_DRAWS:
            raise ModelError(
                f"{variable.name!r} is the name of a dimension of draws, and of a variable of the "
                "model\nRename the variable: draws would come without it."
            )
    dims = {dim for of_one in model.named_vars_to_dims.values() for dim in of_one}
    for dim in sorted(map(str, dims)):
        if any(isinstance(label, tuple) for label in model.coords.get(dim) or ()):
            raise ModelError(
                f"the labels of {dim!r} are a MultiIndex, with which PyMC cannot return draws\n"
                "Give labels of one level, such as [f'{a} {b}' for a, b in index]."
            )


def sizes(slots: Iterable[Slot]) -> tuple[tuple[str, int], ...]:
    """Names and sizes of the unconstrained variables."""
    return tuple((slot.name, slot.size) for slot in slots)


def fingerprint(model: pm.Model, slots: tuple[Slot, ...]) -> list[dict[str, str | list[int]]]:
    """Describe the free variables of a model, in order, by values that JSON can hold.

    Distributions, data, and the bounds of transforms are left out.
    """
    return [
        {
            "name": rv.name,
            "value": slot.name,
            "shape": list(slot.shape),
            "dtype": slot.dtype,
            "transform": _transform_name(model.rvs_to_transforms[rv]),
        }
        for rv, slot in zip(model.free_RVs, slots, strict=True)
    ]


def _transform_name(transform: object) -> str:
    if transform is None:
        return "none"
    if isinstance(transform, ChainedTransform):
        return " ∘ ".join(map(_transform_name, reversed(transform.transform_list)))
    return type(transform).__name__


# Functions that compute initial points, and the parts of the model that they were made from. A fit
# asks for several initial points, since data may have changed, and PyMC would compile each time.
_INITIAL: WeakKeyDictionary[pm.Model, tuple[list[Any], Callable[[int], Point]]]
_INITIAL = WeakKeyDictionary()


def initial_point(model: pm.Model) -> Point:
    """Return the model's initial point: values in the unconstrained space by name."""
    parts = [
        *model.free_RVs,
        *model.rvs_to_transforms.values(),
        *model.rvs_to_initial_values.values(),
    ]
    with no_compiler():  # one thread at a time
        made_from, compute = _INITIAL.get(model, ([], None))
        if compute is None or not are_same(parts, made_from):
            compute = make_initial_point_fn(model=model, overrides=None, jitter_rvs=set())
            _INITIAL[model] = parts, compute
        return dict(compute(0))


def are_same(some: Sequence[object], others: Sequence[object]) -> bool:
    """Whether two sequences hold the very same objects."""
    return len(some) == len(others) and all(map(operator.is_, some, others))


def rv_shapes(model: pm.Model) -> dict[str, tuple[int, ...]]:
    """Shapes of the free variables by name, before their transforms.

    They are computed only if data or coords can change one of them.
    """
    shapes = {rv.name: rv.type.shape for rv in model.free_RVs}
    if any(None in shape for shape in shapes.values()):
        with no_compiler():
            shapes = model.eval_rv_shapes()
    return {rv.name: tuple(map(int, shapes[rv.name])) for rv in model.free_RVs}


def fixed_lengths(model: pm.Model) -> dict[Variable, TensorConstant]:
    """Lengths of the dims of free variables, as constants.

    PyMC lets any length change. Those of free variables must not change while an approximation
    lives, and JAX must know how long arrays and loops are.
    """
    dims = {dim for rv in model.free_RVs for dim in model.named_vars_to_dims.get(rv.name, ())}
    lengths = [model.dim_lengths[dim] for dim in sorted(filter(None, dims))]
    return {
        length: pt.constant(length.get_value(), dtype=length.type.dtype)
        for length in lengths
        if isinstance(length, SharedVariable)
    }


# -------------------------------------------------------------------------------- named dimensions
# With `pymc.dims`, log densities, transforms and deterministics are graphs of xtensors. They are
# lowered to tensors, whose axes are the dims in order: no other module needs to know of names.


def has_names(var: Variable) -> bool:
    """Whether a variable has named dimensions."""
    return isinstance(var.type, XTensorType)


def tensor_values(model: pm.Model, shapes: Sequence[tuple[int, ...]]) -> tuple[TensorVariable, ...]:
    """Return a tensor of known shape for each value variable: itself, if it is one.

    What a graph computes from shapes is constant then, as JAX and PyTensor's rewrites need it.
    """
    return tuple(map(_tensor_value, model.value_vars, shapes))


# One for each variable and shape: the graphs of two densities of a model may be used together.
_VALUES: WeakKeyDictionary[Variable, dict[tuple[int, ...], TensorVariable]] = WeakKeyDictionary()


def _tensor_value(value: Variable, shape: tuple[int, ...]) -> TensorVariable:
    if not has_names(value) and value.type.shape == shape:
        return value
    known = _VALUES.setdefault(value, {})
    return known.setdefault(shape, pt.TensorType(value.type.dtype, shape)(value.name))


def with_names_of(template: Variable, value: Any) -> Variable:
    """Give a tensor the named dimensions of a template, if the template has any."""
    if not has_names(template):
        return value
    return xtensor_from_tensor(value, dims=template.type.dims)


def tensors(
    outputs: Sequence[Variable], given: Mapping[Variable, Variable] | None = None
) -> list[TensorVariable]:
    """Replace inputs of graphs, and turn variables with named dimensions into tensors.

    Parameters
    ----------
    outputs : sequence of Variable
        Tensors or xtensors.
    given : mapping of Variable to TensorVariable, optional
        Tensors in the place of inputs, which may have named dimensions.
    """
    given = {old: with_names_of(old, new) for old, new in (given or {}).items() if old is not new}
    found = [pt.as_tensor(var, allow_xtensor_conversion=True) for var in outputs]
    found = graph_replace(found, given, strict=False) if given else found
    if not mentions_names(found):
        return found
    fgraph = FunctionGraph(outputs=found, clone=True, copy_inputs=False, copy_orphans=False)
    optdb.query(LOWER_NAMES).rewrite(fgraph)
    return list(fgraph.outputs)


def mentions_names(outputs: Sequence[Variable]) -> bool:
    """Whether a graph has variables with named dimensions."""
    computed = (v for node in toposort(outputs) for v in node.outputs)
    return any(map(has_names, (*graph_inputs(outputs), *computed)))


# ------------------------------------------------------------------------------------------- starts


def start_point(model: pm.Model, slots: tuple[Slot, ...], start: Start | None) -> Point:
    """Return the model's initial point with ``start`` laid over it: see `ModelDensity.start`."""
    given = _checked(model, slots, {} if start is None else start)
    inner = {slot.name for slot in slots if slot.name in given}
    outer = {name: value for name, value in given.items() if name not in inner}
    plain = {rv.name for rv, value in model.rvs_to_values.items() if rv.name == value.name}
    overrides = outer | {name: given[name] for name in inner & plain}
    if overrides:
        with no_compiler():
            by_rv = {model[name]: value for name, value in overrides.items()}
            fn = make_initial_point_fn(model=model, overrides=by_rv, jitter_rvs=set())
            point = dict(fn(0))
    else:
        point = initial_point(model)
    values = {name: value for name, value in given.items() if not isinstance(value, str)}
    point |= {name: values[name] for name in inner if name in values}
    for slot in slots:
        if np.shape(point[slot.name]) != slot.shape:
            raise _wrong_shape(slot.name, slot.shape, np.shape(point[slot.name]))
    named = {model.rvs_to_values[rv].name for rv in model.free_RVs if rv.name in values}
    check_finite({name: point[name] for name in (inner & values.keys()) | named})
    _check_support(model, slots, {k: v for k, v in values.items() if k not in inner}, point)
    return point


def check_finite(point: Mapping[str, np.ndarray]) -> None:
    """Raise `ModelError` if a value, by name, is not finite in the unconstrained space."""
    for name, value in point.items():
        if not np.isfinite(value).all():
            raise ModelError(
                f"start value of {name!r} is not finite in the unconstrained space: "
                f"{value!r}\nGive a start inside the support of the variable."
            )


def names_without_value(model: pm.Model, start: Start | None) -> set[str]:
    """Names of the value variables to which ``start`` gives nothing, or only a strategy."""
    pairs = (start or {}).items()
    given = {_name(key) for key, value in pairs if not isinstance(value, str | None)}
    values = {rv.name: model.rvs_to_values[rv].name for rv in model.free_RVs}
    return {inner for outer, inner in values.items() if given.isdisjoint((outer, inner))}


def _name(key: Any) -> Any:
    return key.name if isinstance(key, Variable) else key


def _checked(model: pm.Model, slots: tuple[Slot, ...], start: Start) -> dict[str, np.ndarray | str]:
    """``start`` by name: strategies, and arrays of the variables' shapes."""
    if not isinstance(start, Mapping):
        raise ArgumentError(
            f"start must be a dict from variable name to value, got {type(start).__name__} "
            f"{start!r}\nFree variables: {_names(model)}."
        )
    by_name = {_name(key): value for key, value in start.items()}
    values = {rv.name: model.rvs_to_values[rv].name for rv in model.free_RVs}
    shapes = {slot.name: slot.shape for slot in slots}
    if any(name in values and name not in shapes for name in by_name):
        shapes = rv_shapes(model) | shapes
    given: dict[str, np.ndarray | str] = {}
    for name, value in by_name.items():
        if name not in shapes:
            raise ModelError(
                f"start has a value for {name!r}, which is not a free variable of the model\n"
                f"Free variables: {_names(model)}."
            )
        if values.get(name, name) != name and values[name] in by_name:
            raise ModelError(
                f"start has two values for one variable: {name!r} and {values[name]!r}"
            )
        if value is None:
            continue
        if isinstance(value, str) and value in STRATEGIES and name in values:
            given[name] = value
            continue
        try:
            array = np.asarray(value, dtype=float)
        except (TypeError, ValueError):
            raise ModelError(f"start value of {name!r} is not numeric: {value!r}") from None
        try:
            given[name] = np.array(np.broadcast_to(array, shapes[name]))
        except ValueError:
            raise _wrong_shape(name, shapes[name], array.shape) from None
    return given


def _names(model: pm.Model) -> str:
    """Names under which free variables can be given a start, constrained or not."""
    return ", ".join(sorted({v.name for v in (*model.free_RVs, *model.value_vars)}))


def _wrong_shape(name: str, expected: tuple[int, ...], got: tuple[int, ...]) -> ModelError:
    return ModelError(
        f"start value of {name!r} has the wrong shape\nexpected {expected}, got {got}"
    )


def _check_support(
    model: pm.Model, slots: tuple[Slot, ...], given: Mapping[str, np.ndarray], point: Point
) -> None:
    """Refuse values that a transform maps back to other ones: a vector that is no simplex, say."""
    rvs = [rv for rv in model.free_RVs if rv.name in given]
    if not rvs:
        return
    values = tensor_values(model, [slot.shape for slot in slots])
    named = dict(zip(model.value_vars, values, strict=True))
    outputs = tensors(model.replace_rvs_by_values(rvs), named)
    fn = function_of(values, outputs, mode=PLAIN)
    back = fn(*(np.asarray(point[v.name], v.dtype) for v in values))
    for rv, value in zip(rvs, back, strict=True):
        if not np.allclose(value, given[rv.name], rtol=1e-4, atol=1e-6):
            raise ModelError(
                f"start value of {rv.name!r} lies outside the support of the variable: "
                f"{given[rv.name]!r}\nIts transform would make {value!r} of it."
            )
