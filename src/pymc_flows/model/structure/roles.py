"""Hyperparameters and field: which latents scale others, and which are scaled."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytensor
from pymc.distributions.transforms import ZeroSumTransform
from pytensor.graph.traversal import ancestors
from pytensor.tensor.variable import TensorVariable

from pymc_flows.backends.functions import function_of
from pymc_flows.backends.modes import NUMPY
from pymc_flows.errors import ArgumentError
from pymc_flows.model.logp import ModelDensity
from pymc_flows.model.structure.graph import read, split_point

# A flow over more hyperparameters than this costs more than it saves.
MAX_HYPER = 50
# Unbounded hubs (fixed effects) join the hyperparameters up to this number of both together: the
# mode of a skewed field is not its mean, and they would inherit the difference.
MAX_WITH_HUBS = 20


@dataclass(frozen=True)
class Roles:
    """Value variables by role.

    Parameters
    ----------
    hyper : list of int
        Positions in the density's slots of what transforms or scales other variables.
    local : list of int
        Positions of bounded variables that are too large for a hyperparameter.
    """

    hyper: list[int]
    local: list[int]


def roles(
    density: ModelDensity,
    terms: dict[str, TensorVariable],
    *,
    hyper: Sequence[str],
    field: Sequence[str],
    near: np.ndarray | None = None,
) -> Roles:
    """Tell hyperparameters from the field by their transforms and by what they scale.

    A hyperparameter is a variable whose transform is not linear (a scale, a correlation, a length
    scale), or one that changes the curvature of another variable's prior near a point (dim,), by
    default the model's initial point.
    """
    model = density.model
    names = [rv.name for rv in model.free_RVs]
    check_names(hyper, field, names)
    bounded = [_is_bounded(model.rvs_to_transforms[rv]) for rv in model.free_RVs]
    sizes = [slot.slice.stop - slot.slice.start for slot in density.slots]
    near = density.start() if near is None else near
    scaling = _scaling(density, terms, [i for i, on in enumerate(bounded) if not on], near)
    found = Roles([], [])
    for i, name in enumerate(names):
        if name in hyper:
            found.hyper.append(i)
        elif name in field:
            continue
        elif i in scaling:
            found.hyper.append(i)
        elif bounded[i]:
            (found.hyper if sizes[i] <= MAX_HYPER else found.local).append(i)
    return found


def check_names(hyper: Sequence[str], field: Sequence[str], names: Collection[str]) -> None:
    """Raise `ArgumentError` unless each name is a free variable's, in one of the two."""
    for argument, given in (("hyper", hyper), ("field", field)):
        if isinstance(given, str):
            raise ArgumentError(f"{argument} must be a list of names, got the string {given!r}")
        unknown = [name for name in given if name not in names]
        if unknown:
            raise ArgumentError(
                f"{argument} has names that are no free variable of the model: "
                f"{', '.join(map(repr, unknown))}\nFree variables: {', '.join(names)}."
            )
    if both := set(hyper) & set(field):
        raise ArgumentError(
            f"{', '.join(sorted(both))}: given as hyper and as field, and can be only one of them"
        )


def _is_bounded(transform: object) -> bool:
    return transform is not None and not isinstance(transform, ZeroSumTransform)


def _scaling(
    density: ModelDensity,
    terms: dict[str, TensorVariable],
    candidates: list[int],
    near: np.ndarray,
) -> set[int]:
    """Unbounded variables that change the curvature of another one's prior.

    The diagonal of the other's Hessian is compared at two values of the candidate: graphs of
    derivatives mention variables that cancel.
    """
    model = density.model
    values = density.values
    pairs: list[tuple[int, int]] = []
    curvatures: dict[int, TensorVariable] = {}
    for i, rv in enumerate(model.free_RVs):
        used = set(ancestors([terms[rv.name]]))
        mine = [j for j in candidates if j != i and values[j] in used]
        if not mine:
            continue
        found = _second_derivative(terms[rv.name], values[i])
        if found is None:
            continue
        used = set(ancestors([found]))
        mine = [j for j in mine if values[j] in used]
        if mine:
            curvatures[i] = found
            pairs.extend((i, j) for j in mine)
    if not pairs:
        return set()
    fn = function_of(values, list(curvatures.values()), mode=NUMPY)

    def scaling(point: np.ndarray | None) -> list[set[int]]:
        here = density.start() if point is None else point
        return [_changed(density, fn, list(curvatures), pairs, here)]

    [found] = read(scaling, near)
    return found


def _second_derivative(term: TensorVariable, value: TensorVariable) -> TensorVariable | None:
    """Row sums of the Hessian of a term; None if it cannot be differentiated twice."""
    try:
        first = pytensor.grad(term.sum(), value, disconnected_inputs="ignore")
        return pytensor.grad(first.sum(), value, disconnected_inputs="ignore")
    except NotImplementedError:
        return None


def _changed(
    density: ModelDensity,
    fn: object,
    order: list[int],
    pairs: list[tuple[int, int]],
    near: np.ndarray,
) -> set[int]:
    rng = np.random.default_rng(0)
    base = near + 0.1 * rng.standard_normal(density.dim)

    def at(z: npt.NDArray[np.float64]) -> list[npt.NDArray[np.float64]]:
        with np.errstate(all="ignore"):
            return fn(*split_point(density, z))  # type: ignore[operator]

    before = at(base)
    scaling = set()
    for j in sorted({j for _, j in pairs}):
        moved = base.copy()
        moved[density.slots[j].slice] += 0.3
        after = at(moved)
        for i, k in pairs:
            at_i = order.index(i)
            if k == j and not np.allclose(before[at_i], after[at_i], rtol=1e-6, atol=1e-12):
                scaling.add(j)
    return scaling
