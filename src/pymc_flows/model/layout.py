"""The free variables of a model as one flat vector, and start points in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pymc as pm
import pytensor
from pytensor.tensor.variable import TensorVariable

from pymc_flows.backends.modes import PLAIN, no_compiler
from pymc_flows.errors import ArgumentError, ModelError
from pymc_flows.support.compat import ChainedTransform, make_initial_point_fn

type Point = dict[str, np.ndarray]


@dataclass(frozen=True)
class Slot:
    """Where one value variable sits in the flat vector."""

    name: str
    slice: slice
    shape: tuple[int, ...]
    dtype: str


def layout(model: pm.Model) -> tuple[Slot, ...]:
    """Lay the value variables of a model out in one vector, in the order of ``model.free_RVs``.

    Raises
    ------
    ModelError
        If there is nothing to lay out, or a free variable is discrete.
    """
    _check_free_variables(model)
    point = initial_point(model)
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
        if not isinstance(model.rvs_to_values[rv], TensorVariable):
            raise ModelError(
                f"free variable {rv.name!r} has named dimensions ({model.rvs_to_values[rv].type})\n"
                "Variables of pymc.dims are not supported: use the distribution of the same name "
                "in pymc, with dims=."
            )


def sizes(slots: Iterable[Slot]) -> tuple[tuple[str, int], ...]:
    """Names and sizes of the unconstrained variables."""
    return tuple((slot.name, slot.slice.stop - slot.slice.start) for slot in slots)


def fingerprint(model: pm.Model, slots: tuple[Slot, ...]) -> list[dict[str, str | list[int]]]:
    """What the free variables of a model are, in order, as JSON has it.

    Not in it: distributions, data, and the bounds of a transform.
    """
    return [
        {
            "name": rv.name,
            "value": slot.name,
            "shape": [int(n) for n in slot.shape],
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


def initial_point(model: pm.Model) -> Point:
    """Return the model's initial point: values in the unconstrained space by name."""
    with no_compiler():
        return dict(model.initial_point(0))


def start_point(
    model: pm.Model, slots: tuple[Slot, ...], start: Mapping[str, object] | None
) -> Point:
    """Return the model's initial point with ``start`` laid over it.

    Parameters
    ----------
    model : pymc.Model
    slots : tuple of Slot
    start : mapping of str to array-like, optional
        Values by variable name; a transformed name (``"sigma_log__"``) means a value in the
        unconstrained space, as everywhere in PyMC. Values are broadcast to the variable.

    Raises
    ------
    ArgumentError
        If ``start`` is not a mapping.
    ModelError
        If a name is unknown, a value is not numeric, a shape does not fit, or a value lies
        outside the support.
    """
    given = _checked(model, slots, {} if start is None else start)
    inner = {slot.name for slot in slots if slot.name in given}
    outer = {name: value for name, value in given.items() if name not in inner}
    plain = {rv.name for rv, value in model.rvs_to_values.items() if rv.name == value.name}
    overrides = outer | {name: given[name] for name in inner & plain}
    if overrides:
        with no_compiler():
            fn = make_initial_point_fn(model=model, overrides=overrides, jitter_rvs=set())
            point = dict(fn(0))
    else:
        point = initial_point(model)
    point |= {name: given[name] for name in inner}
    for slot in slots:
        value = point[slot.name]
        if np.shape(value) != slot.shape:
            raise _wrong_shape(slot.name, slot.shape, np.shape(value))
        if not np.isfinite(value).all():
            raise ModelError(
                f"start value of {slot.name!r} is not finite in the unconstrained space: "
                f"{value!r}\nGive a start inside the support of the variable."
            )
    _check_support(model, outer, point)
    return point


def _checked(
    model: pm.Model, slots: tuple[Slot, ...], start: Mapping[str, object]
) -> dict[str, np.ndarray]:
    """``start`` as arrays of the variables' shapes."""
    if not isinstance(start, Mapping):
        raise ArgumentError(
            f"start must be a dict from variable name to value, got {type(start).__name__} "
            f"{start!r}\nFree variables: {_names(model)}."
        )
    values = {rv.name: model.rvs_to_values[rv].name for rv in model.free_RVs}
    shapes = {slot.name: slot.shape for slot in slots}
    if any(name in values and name not in shapes for name in start):
        with no_compiler():
            shapes = model.eval_rv_shapes() | shapes
    given: dict[str, np.ndarray] = {}
    for name, value in start.items():
        if name not in shapes:
            raise ModelError(
                f"start has a value for {name!r}, which is not a free variable of the model\n"
                f"Free variables: {_names(model)}."
            )
        if values.get(name, name) != name and values[name] in start:
            raise ModelError(
                f"start has two values for one variable: {name!r} and {values[name]!r}"
            )
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
    """Names under which free variables can be given a start, either scale."""
    return ", ".join(sorted({v.name for v in (*model.free_RVs, *model.value_vars)}))


def _wrong_shape(name: str, expected: tuple[int, ...], got: tuple[int, ...]) -> ModelError:
    return ModelError(
        f"start value of {name!r} has the wrong shape\n"
        f"expected {tuple(map(int, expected))}, got {got}"
    )


def _check_support(model: pm.Model, given: Mapping[str, np.ndarray], point: Point) -> None:
    """Refuse what a transform maps to the real line, but back to another value: no simplex, say."""
    rvs = [rv for rv in model.free_RVs if rv.name in given]
    if not rvs:
        return
    values = model.value_vars
    outputs = model.replace_rvs_by_values(rvs)
    fn = pytensor.function(values, outputs, mode=PLAIN, on_unused_input="ignore")
    back = fn(*(np.asarray(point[v.name], v.dtype) for v in values))
    for rv, value in zip(rvs, back, strict=True):
        if not np.allclose(value, given[rv.name], rtol=1e-4, atol=1e-6):
            raise ModelError(
                f"start value of {rv.name!r} lies outside the support of the variable: "
                f"{given[rv.name]!r}\nIts transform would make {value!r} of it."
            )
