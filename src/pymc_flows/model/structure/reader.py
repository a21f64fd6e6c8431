"""What the graph of a model says about its posterior: `structure`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pymc as pm
import scipy

from pymc_flows.model.layout import Start
from pymc_flows.model.logp import ModelDensity, density_of
from pymc_flows.model.structure.factors import factor_incidence
from pymc_flows.model.structure.graph import Readings, prepared, why_not_twice
from pymc_flows.model.structure.groups import hubs_of, partition, pattern_of
from pymc_flows.model.structure.result import Names, Structure
from pymc_flows.model.structure.roles import MAX_HYPER, MAX_WITH_HUBS, Roles, roles
from pymc_flows.model.structure.rows import Bools, Ints
from pymc_flows.support.arguments import model_or_context

# The smallest field that is worth a family of its own.
MIN_FIELD = 2


def structure(
    model: pm.Model | None = None,
    *,
    hyper: Sequence[str] = (),
    field: Sequence[str] = (),
    start: Start | None = None,
) -> Structure:
    """Read the structure of a model's posterior off its graph.

    Nothing is sampled or compiled. Sets of latents are carried through the graph of the log
    density, and its arrays are evaluated once.

    Parameters
    ----------
    model : pymc.Model, optional
        By default the model on the context stack.
    hyper, field : sequence of str
        Names of free variables whose roles are given rather than found.
    start : dict of str to array-like, optional
        Values of variables at which arrays are evaluated, by default the model's initial point.

    Returns
    -------
    Structure

    Raises
    ------
    ArgumentError
        If a name is no free variable of the model, or is in both lists.
    ModelError
        If the model has no free variable or a discrete one.
    """
    density = density_of(model_or_context(model))
    near = None if start is None else density.start(start, finite=False)
    return structure_of(density, hyper=hyper, field=field, near=near)


def structure_of(
    density: ModelDensity,
    *,
    hyper: Sequence[str] = (),
    field: Sequence[str] = (),
    near: np.ndarray | None = None,
) -> Structure:
    """Return the `structure` of a density, evaluated near a point (dim,) if one is given.

    It is kept with the density, and read again if data have changed that it follows from.
    """
    key = "structure", tuple(hyper), tuple(field)
    known: tuple[Structure, Readings] | None = density.kept.get(key)
    if known is not None and known[1].are_current(near):
        return replace(known[0], names=Names.of(density))
    readings = Readings()
    with readings.recorded():
        found = _read(density, hyper, field, near)
    if readings.are_kept:
        density.kept[key] = found, readings
    return found


def _read(
    density: ModelDensity, hyper: Sequence[str], field: Sequence[str], near: np.ndarray | None
) -> Structure:
    found = roles(density, prepared(density).terms, hyper=hyper, field=field, near=near)
    factors = factor_incidence(density, near)
    owner = np.repeat(np.arange(len(density.slots)), [slot.size for slot in density.slots])
    is_hyper = np.isin(owner, found.hyper)
    rest = np.flatnonzero(~is_hyper)
    pattern = pattern_of(factors.distinct[:, rest])
    hubs = hubs_of(pattern)
    fixed = [i for i, rv in enumerate(density.model.free_RVs) if rv.name in field]
    moved = _moved(pattern, hubs, owner[rest], int(is_hyper.sum()), fixed)
    effects = rest[moved]
    is_hyper[effects] = True
    kept = ~moved
    rest, hubs, pattern = rest[kept], hubs[kept], pattern[kept][:, kept] if moved.any() else pattern
    local = [np.flatnonzero(owner[rest] == i) for i in np.unique(owner[rest])]
    label = partition(pattern, hubs, local)
    return Structure(
        slots=density.slots,
        n_factors=factors.counts,
        factors=factors,
        hyper_names=_names(density, owner[is_hyper]),
        field_names=_names(density, owner[rest]),
        hyperparameters=np.flatnonzero(is_hyper),
        effects=effects,
        field=rest,
        hubs=rest[hubs],
        separator=rest[label < 0],
        groups=label,
        factor_groups=_group_of_rows(factors.distinct[:, rest], label)[factors.index],
        unknown=factors.unknown,
        why_not=_why_not(density, found, owner, is_hyper, pattern),
        names=Names.of(density),
    )


def _names(density: ModelDensity, owners: Ints) -> tuple[str, ...]:
    free = density.model.free_RVs
    return tuple(free[i].name for i in np.unique(owners))


def _moved(
    pattern: scipy.sparse.csr_array,
    hubs: Bools,
    owner: Ints,
    n_hyper: int,
    fixed: Sequence[int],
) -> Bools:
    """Mask of the elements of the field that join the hyperparameters: fixed effects, if few.

    Elements of one variable of that kind share factors; levels of a crossed factor do not. The
    variables ``fixed`` stay in the field.
    """
    moved = np.zeros(len(owner), dtype=bool)
    variables = [np.flatnonzero(owner == i) for i in np.unique(owner[hubs]) if i not in fixed]
    for mine in sorted(variables, key=len):
        if n_hyper + len(mine) > MAX_WITH_HUBS or moved.sum() + len(mine) == len(owner):
            break
        if hubs[mine].all() and pattern[mine][:, mine].nnz == len(mine) ** 2:
            moved[mine] = True
            n_hyper += len(mine)
    return moved


def _group_of_rows(inner: scipy.sparse.csr_array, label: Ints) -> Ints:
    """The one group that each row sees, −1 where it sees none."""
    found = np.full(inner.shape[0], -1, dtype=np.intp)
    rows = np.repeat(np.arange(inner.shape[0]), np.diff(inner.indptr))
    seen = label[inner.indices]
    kept = seen >= 0
    found[rows[kept]] = seen[kept]
    return found


def _why_not(
    density: ModelDensity,
    found: Roles,
    owner: Ints,
    is_hyper: Bools,
    pattern: scipy.sparse.csr_array,
) -> str | None:
    free = density.model.free_RVs
    n_hyper, n_field = int(is_hyper.sum()), int((~is_hyper).sum())
    if n_hyper > MAX_HYPER:
        large = max(found.hyper, key=lambda i: density.slots[i].size)
        return (
            f"{n_hyper} hyperparameters, more than {MAX_HYPER}: "
            f"{free[large].name} alone has {density.slots[large].size}"
        )
    owner = owner[~is_hyper]
    is_other = ~np.isin(owner, found.local)
    for i in found.local:
        touched = np.unique(pattern[np.flatnonzero(owner == i)].indices)
        coupled = touched[is_other[touched]]
        if len(coupled) > MAX_WITH_HUBS:
            other = free[owner[coupled[0]]].name
            return (
                f"{free[i].name} has {density.slots[i].size} bounded elements that scale those "
                f"of {other}: no small set of hyperparameters"
            )
    if n_field < MIN_FIELD:
        return f"{n_field} latents besides the hyperparameters: no field"
    if n_hyper == 0:
        return "no hyperparameter: nothing scales other latents"
    pairs = zip(density.values, density.slots, strict=True)
    of_field = [value for value, slot in pairs if not is_hyper[slot.slice].all()]
    return why_not_twice(density, of_field) or None
