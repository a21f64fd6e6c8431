"""Hyperparameters and field: which latents scale others, and which are scaled."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pytensor
from pymc.distributions.transforms import ZeroSumTransform
from pytensor.graph.traversal import ancestors
from pytensor.tensor.variable import TensorVariable

from pymc_flows.backends.functions import function_of
from pymc_flows.backends.modes import NUMPY
from pymc_flows.errors import ArgumentError
from pymc_flows.model.batching import NO_DERIVATIVE
from pymc_flows.model.logp import ModelDensity
from pymc_flows.model.structure.graph import read

# A flow over more hyperparameters costs more than it saves.
MAX_HYPER = 50
# Unbounded hubs (fixed effects) join the hyperparameters up to this number of both together: the
# mode of a skewed field is not its mean, and fixed effects in it would inherit the difference.
MAX_WITH_HUBS = 20


@dataclass(frozen=True)
class Roles:
    """Value variables by role.

    Parameters
    ----------
    hyper : list of int
        Positions of hyperparameters in the density's slots.
    local : list of int
        Positions of bounded variables that are too large for hyperparameters.
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
    """Tell hyperparameters from the field by their transforms and by the variables they scale.

    A hyperparameter is a variable whose transform is not linear (a scale, a correlation, a length
    scale), or one that changes the curvature of another variable's prior near a point (dim,), by
    default the model's initial point.
    """
    model = density.model
    names = [rv.name for rv in model.free_RVs]
    check_names(hyper, field, names)
    bounded = [_is_bounded(model.rvs_to_transforms[rv]) for rv in model.free_RVs]
    near = density.start() if near is None else near
    scaling = _scaling(density, terms, [i for i, on in enumerate(bounded) if not on], near)
    found = Roles([], [])
    for i, name in enumerate(names):
        if name in hyper or (i in scaling and name not in field):
            found.hyper.append(i)
        elif bounded[i] and name not in field:
            (found.hyper if density.slots[i].size <= MAX_HYPER else found.local).append(i)
    return found


def check_names(hyper: Sequence[str], field: Sequence[str], names: Collection[str]) -> None:
    """Raise `ArgumentError` unless each name is that of a free variable, and in one list only."""
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
    """Unbounded variables that change the curvature of another variable's prior.

    Row sums of the other's Hessian are compared at two values of the candidate: graphs of
    derivatives may contain variables that cancel.
    """
    values = density.values
    users: dict[int, list[int]] = {}  # by candidate, positions in curvatures
    curvatures: list[TensorVariable] = []
    for i, rv in enumerate(density.model.free_RVs):
        used = set(ancestors([terms[rv.name]]))
        mine = [j for j in candidates if j != i and values[j] in used]
        found = _second_derivative(terms[rv.name], values[i]) if mine else None
        if found is None:
            continue
        used = set(ancestors([found]))
        mine = [j for j in mine if values[j] in used]
        if mine:
            for j in mine:
                users.setdefault(j, []).append(len(curvatures))
            curvatures.append(found)
    if not users:
        return set()
    fn = function_of(values, curvatures, mode=NUMPY)

    def scaling(point: np.ndarray | None) -> list[set[int]]:
        here = density.start() if point is None else point
        base = here + 0.1 * np.random.default_rng(0).standard_normal(density.dim)
        found = set()
        with np.errstate(all="ignore"):
            before = fn(*density.split(base))
            for j, places in users.items():
                moved = base.copy()
                moved[density.slots[j].slice] += 0.3
                after = fn(*density.split(moved))
                same = (np.allclose(before[k], after[k], rtol=1e-6, atol=1e-12) for k in places)
                if not all(same):
                    found.add(j)
        return [found]

    [found] = read(scaling, near)
    return found


def _second_derivative(term: TensorVariable, value: TensorVariable) -> TensorVariable | None:
    """Row sums of the Hessian of a term; None if it cannot be differentiated twice."""
    try:
        first = pytensor.grad(term.sum(), value, disconnected_inputs="ignore")
        return pytensor.grad(first.sum(), value, disconnected_inputs="ignore")
    except NO_DERIVATIVE:
        return None
