"""Values of a model's variables by name, as points of the unconstrained space."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
from numpy.typing import ArrayLike
from pytensor.graph.basic import Variable
from pytensor.graph.replace import graph_replace
from pytensor.tensor.variable import TensorVariable
from xarray import Dataset, DataTree

from pymc_flows.backends.modes import no_compiler
from pymc_flows.errors import ArgumentError, FlowShapeError, ModelError
from pymc_flows.model.batching import batched_draws, compiled
from pymc_flows.model.layout import rv_shapes, tensors, with_names_of
from pymc_flows.model.logp import ModelDensity
from pymc_flows.support.compat import ChainedTransform

_log = logging.getLogger(__name__)

type _Map = Callable[..., list[np.ndarray]]

# Functions of each density, by the names of the values and whether they return log-determinants.
_MAPS: WeakKeyDictionary[ModelDensity, dict[tuple[tuple[str, ...], bool], _Map]]
_MAPS = WeakKeyDictionary()

# A value is in the support if it comes back from the unconstrained space with at most this error.
_RTOL, _ATOL = 1e-4, 1e-6
# Dims of draws, in the order in which they come first.
_SAMPLE_DIMS = ("chain", "draw", "sample")


@dataclass(frozen=True, eq=False)
class Unconstrained:
    """Points of the unconstrained space that were given as values of variables.

    Attributes
    ----------
    points : ndarray, shape (n, dim)
    batch : tuple of int
        Shape that the n points were given in.
    log_det : ndarray, shape (n,) or ()
        log|det ∂constrained/∂unconstrained|, in nats; 0 if it was not asked for.
    inside : ndarray of bool, shape (n,)
        Whether a point lies in the support. Values that are NaN count as inside.
    """

    points: np.ndarray
    batch: tuple[int, ...]
    log_det: np.ndarray
    inside: np.ndarray


def is_named(points: object) -> bool:
    """Whether points are given as values by name: a mapping, a Dataset or a tree of groups."""
    return isinstance(points, Mapping | Dataset | DataTree) or hasattr(points, "posterior")


def to_unconstrained(
    density: ModelDensity, points: Any, *, with_log_det: bool = False
) -> Unconstrained:
    """Map values of variables to the unconstrained space.

    Parameters
    ----------
    density : ModelDensity
    points : mapping of str to array-like, Dataset, or tree with a group ``posterior``
        A value for each free variable, under its own name or, in the unconstrained space, under
        that of its value variable (``"sigma_log__"``), of shape (..., *shape of the variable).
        Names that are no free variables are ignored in a Dataset or a tree.
    with_log_det : bool
        Whether to compute the log-determinant of the map back.

    Raises
    ------
    ArgumentError
        If a name is missing, unknown or given twice.
    FlowShapeError
        If a value has the wrong shape.
    ModelError
        If the log-determinant does not exist, since a transform changes the shape of a variable
        or is not one to one.
    """
    model = density.model
    arrays = _chosen(model, points)
    if with_log_det:
        _check_has_density(density)
    shapes = rv_shapes(model) | {slot.name: slot.shape for slot in density.slots}
    batch = _batch_shape(arrays, shapes)
    n = int(np.prod(batch, dtype=int))
    if n == 0:
        return Unconstrained(
            np.zeros((0, density.dim)), batch, np.zeros(0), np.zeros(0, dtype=bool)
        )
    rows = [value.reshape((n, *value.shape[len(batch) :])) for value in arrays.values()]
    outputs = _function_of(density, tuple(arrays), with_log_det=with_log_det)(*rows)
    k = len(density.slots)
    values, backs, log_dets = outputs[:k], outputs[k : 2 * k], outputs[2 * k :]
    inside = np.ones(n, dtype=bool)
    for rv, back in zip(model.free_RVs, backs, strict=True):
        if rv.name in arrays:
            given = arrays[rv.name].reshape(back.shape)
            same = np.isclose(back, given, rtol=_RTOL, atol=_ATOL) | np.isnan(given)
            inside &= same.reshape((n, -1)).all(axis=1)
    flat = np.concatenate([value.reshape((n, -1)) for value in values], axis=1)
    return Unconstrained(flat, batch, np.sum(log_dets, axis=0), inside)


def _chosen(model: pm.Model, points: Any) -> dict[str, np.ndarray]:
    """One array for each free variable, in order, with the axes of the draws first."""
    pairs = [(rv.name, model.rvs_to_values[rv].name) for rv in model.free_RVs]
    if isinstance(points, Mapping) and not isinstance(points, Dataset | DataTree):
        known = {name for pair in pairs for name in pair}
        for name in points:
            if name not in known:
                raise ArgumentError(
                    f"points have a value for {name!r}, which is not a free variable of the model\n"
                    f"Free variables: {', '.join(sorted(known))}."
                )
        for outer, inner in pairs:
            if outer != inner and outer in points and inner in points:
                raise ArgumentError(
                    f"points have two values for one variable: {outer!r} and {inner!r}"
                )
        values: dict[str, Any] = dict(points)
    else:
        values = _arrays_of(points)
    arrays = {}
    for outer, inner in pairs:
        name = inner if inner in values else outer
        if name not in values:
            either = f"{outer!r}" if outer == inner else f"{outer!r} or {inner!r}"
            raise ArgumentError(
                f"points have no value for {either}\n"
                f"A value for each free variable is needed; got {', '.join(map(str, values))}."
            )
        arrays[name] = _numeric(name, values[name])
    return arrays


def _arrays_of(points: Any) -> dict[str, np.ndarray]:
    """Variables of a Dataset, or of the posterior of a tree, with chain and draw first."""
    if not is_named(points):
        shape = f" of shape {points.shape}" if isinstance(points, np.ndarray) else ""
        raise ArgumentError(
            "draws must be given by name: a DataTree, as pm.sample returns it, a Dataset, or a "
            f"dict of arrays\ngot {type(points).__name__}{shape}"
        )
    if isinstance(points, DataTree):
        points = points.children.get("posterior", points).to_dataset()
    elif not isinstance(points, Dataset):
        points = points.posterior
    lead = [dim for dim in _SAMPLE_DIMS if dim in points.dims]
    return {
        str(name): variable.transpose(*lead, ...).to_numpy()
        for name, variable in points.data_vars.items()
        if set(lead) <= set(variable.dims)
    }


def _numeric(name: str, value: ArrayLike) -> np.ndarray:
    try:
        return np.asarray(value, dtype=pytensor.config.floatX)
    except (TypeError, ValueError):
        raise ArgumentError(f"the value of {name!r} in points is not numeric: {value!r}") from None


def _batch_shape(
    arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[int, ...]:
    found: dict[str, tuple[int, ...]] = {}
    for name, value in arrays.items():
        lead = value.ndim - len(shapes[name])
        if lead < 0 or value.shape[lead:] != shapes[name]:
            expected = ", ".join(["...", *map(str, shapes[name])])
            raise FlowShapeError(
                f"the value of {name!r} in points has the wrong shape\n"
                f"expected ({expected}), got {value.shape}"
            )
        found[name] = value.shape[:lead]
    if len(set(found.values())) > 1:
        listed = ", ".join(f"{name} {shape}" for name, shape in found.items())
        raise FlowShapeError(f"points are not equally many for all variables\ngot {listed}")
    return next(iter(found.values()))


def _check_has_density(density: ModelDensity) -> None:
    shapes = rv_shapes(density.model)
    for rv, slot in zip(density.model.free_RVs, density.slots, strict=True):
        shape = shapes[rv.name]
        if _is_circular(density.model.rvs_to_transforms[rv]):
            raise ModelError(
                f"{rv.name!r} is an angle: each of its values stands for many points of the "
                "unconstrained space\nUse space='unconstrained'."
            )
        if shape != slot.shape:
            raise ModelError(
                f"the values of {rv.name!r} have no density of their own: they have shape {shape}, "
                f"and {slot.shape} in the unconstrained space\n"
                "A simplex, say, has no volume among all vectors. Use space='unconstrained'."
            )


def _is_circular(transform: Any) -> bool:
    """Whether a transform, or one in a chain, wraps the real line around a circle."""
    if isinstance(transform, ChainedTransform):
        return any(map(_is_circular, transform.transform_list))
    # By name: `pymc.dims` has a class of its own for such a transform.
    return getattr(transform, "name", None) == "circular"


def _function_of(density: ModelDensity, names: tuple[str, ...], *, with_log_det: bool) -> _Map:
    known = _MAPS.setdefault(density, {})
    if (names, with_log_det) not in known:
        known[names, with_log_det] = _function(density, names, with_log_det=with_log_det)
    return known[names, with_log_det]


def _function(density: ModelDensity, names: tuple[str, ...], *, with_log_det: bool) -> _Map:
    """Make a function of values under the given names, for all draws at once.

    It returns unconstrained values, then the constrained values that these stand for (the given
    ones, if they lie in the support), then log-determinants.
    """
    model = density.model
    constrained: dict[Variable, Variable] = {}
    given: dict[Variable, Variable] = {}
    values, backs, log_dets = [], [], []

    def of_points(graph: TensorVariable) -> TensorVariable:
        return graph_replace([graph], constrained, strict=False)[0] if constrained else graph

    for rv, slot in zip(model.free_RVs, density.slots, strict=True):
        transform, inputs = model.rvs_to_transforms[rv], rv.owner.inputs
        inner = slot.name in names
        template = model.rvs_to_values[rv] if inner else rv
        row = pt.tensor(shape=template.type.shape, dtype=template.dtype)
        given[row] = pt.tensor(shape=(None, *template.type.shape), dtype=template.dtype)
        one = with_names_of(template, row)
        value, back = one, one
        log_det = pt.zeros(())
        if transform is not None:
            if not inner:
                value = of_points(transform.forward(one, *inputs))
            back = of_points(transform.backward(value, *inputs))
            log_det = of_points(transform.log_jac_det(value, *inputs)).sum()
        constrained[rv] = back if inner else one
        values.append(value)
        backs.append(back)
        log_dets.append(log_det)
    with no_compiler():
        outputs = tensors([*values, *backs, *(log_dets if with_log_det else [])])
        batch, reason = batched_draws(outputs, given, "a transform", keep_checks=False)
    if reason:
        _log.warning("Points are mapped to the unconstrained space one by one: %s.", reason)
    function = compiled(list(given.values()), batch)

    def call(*arrays: np.ndarray) -> list[np.ndarray]:
        with np.errstate(all="ignore"):
            return [np.asarray(value) for value in function(*arrays)]

    return call
