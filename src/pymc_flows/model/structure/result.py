"""The result of `structure`: the parts of a posterior, their names, and a table of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy

from pymc_flows.model.layout import Slot
from pymc_flows.model.logp import ModelDensity
from pymc_flows.model.structure.factors import Factors
from pymc_flows.model.structure.groups import pattern_of
from pymc_flows.model.structure.rows import Ints
from pymc_flows.support.tables import html_table, text_table

_MAX_NAMES = 6


@dataclass(frozen=True)
class _Variable:
    """A free variable: its place in the flat vector, and its dims."""

    name: str
    slot: Slot
    dims: tuple[str | None, ...]

    def positions(self, indices: Ints) -> tuple[Ints, ...]:
        """Positions of elements, by flat indices, along each axis."""
        shape = self.slot.shape
        return np.unravel_index(indices - self.slot.slice.start, shape) if shape else ()


@dataclass(frozen=True)
class Names:
    """Names of the elements of a flat vector."""

    variables: tuple[_Variable, ...]
    coords: Mapping[str | None, Sequence[Any]]

    @classmethod
    def of(cls, density: ModelDensity) -> Names:
        """Read the dims and coords of a density's model."""
        model = density.model
        coords: dict[str | None, tuple[Any, ...]] = {
            str(name): tuple(values) for name, values in model.coords.items() if values is not None
        }
        variables = []
        for rv, slot in zip(model.free_RVs, density.slots, strict=True):
            dims: tuple[str | None, ...] = tuple(model.named_vars_to_dims.get(rv.name, ()))
            # Coordinates do not name elements of a variable that a transform has shortened.
            same = len(dims) == len(slot.shape) and all(
                n == len(coords.get(dim, range(n))) for dim, n in zip(dims, slot.shape, strict=True)
            )
            variables.append(_Variable(rv.name, slot, dims if same else (None,) * len(slot.shape)))
        return cls(tuple(variables), coords)

    def element(self, index: int) -> str:
        """Name one element: ``intercept[Aitkin]``."""
        [owner] = self._owners(np.array([index]))
        var = self.variables[owner]
        places = zip(var.dims, var.positions(np.array([index])), strict=True)
        labels = [self._label(dim, at[0]) for dim, at in places]
        return f"{var.name}[{', '.join(labels)}]" if labels else var.name

    def covering(self, indices: Ints) -> tuple[str, ...]:
        """Names of the variables that elements belong to."""
        return tuple(self.variables[i].name for i in np.unique(self._owners(indices)))

    def common(self, indices: Ints) -> str:
        """Name the labels that elements share: ``county=Aitkin``; without any, the elements."""
        if not len(indices):
            return "nothing"
        owners = self._owners(indices)
        labels: list[dict[str, str]] = []
        for i in np.unique(owners):
            var = self.variables[i]
            places = zip(var.dims, var.positions(indices[owners == i]), strict=True)
            labels.append(
                {dim: self._label(dim, at[0]) for dim, at in places if dim and np.ptp(at) == 0}
            )
        shared = [
            f"{dim}={label}"
            for dim, label in labels[0].items()
            if all(other.get(dim) == label for other in labels)
        ]
        if shared:
            return ", ".join(shared)
        first = self.element(int(indices[0]))
        return first if len(indices) == 1 else f"{first} and {len(indices) - 1} more"

    def _owners(self, indices: Ints) -> Ints:
        """Positions of the variables that elements belong to."""
        begins = [var.slot.slice.start for var in self.variables]
        end = self.variables[-1].slot.slice.stop
        if not (0 <= indices.min(initial=0) and indices.max(initial=0) < end):
            raise IndexError(f"expected indices from 0 to {end - 1}, got {indices}")
        return np.searchsorted(begins, indices, side="right") - 1

    def _label(self, dim: str | None, position: int) -> str:
        return str(self.coords[dim][position]) if dim in self.coords else str(position)


@dataclass(frozen=True, eq=False)
class Structure:
    """What the graph of a model says about its posterior.

    The log density is a sum of factors, each of which sees few latents (elements of the flat
    unconstrained vector). *Hyperparameters* scale other latents; the rest is the *field*. Given the
    hyperparameters and a *separator*, the *groups* of the field are independent of each other.

    Attributes
    ----------
    slots : tuple of Slot
        Layout of the flat vector.
    dim : int
        Number of latents.
    n_factors : dict of str to int
        Number of factors of each random variable and potential.
    factors : Factors
        Which factor sees which latent; ``incidence`` has it as a matrix.
    hyper_names, field_names : tuple of str
        Names of the free variables with elements among the hyperparameters, or in the field.
    hyperparameters, field : ndarray of int
        Flat indices, ascending.
    effects : ndarray of int
        Flat indices of hyperparameters that scale nothing: fixed effects, means of groups. They are
        few, and not in the field, since the mode of a skewed field is not its mean.
    hubs : ndarray of int
        Flat indices of elements of the field that are connected to at least a fifth of the others:
        fixed effects, levels of crossed factors.
    separator : ndarray of int
        Flat indices of the elements of the field that must be given for groups to be independent.
    groups : ndarray of int, shape (len(field),)
        The group of each element of ``field``, from 0; −1 in the separator.
    factor_groups : ndarray of int, shape (factors,)
        The group whose elements a factor sees; −1 if it sees none.
    unknown : dict of str to int
        Names of Ops about which nothing is known, with their numbers: each of their outputs counts
        as depending on all of their inputs.
    why_not : str or None
        Why a flow over the hyperparameters and a Gaussian field given them do not fit the model;
        None if nothing speaks against them.
    """

    slots: tuple[Slot, ...]
    n_factors: Mapping[str, int]
    factors: Factors
    hyper_names: tuple[str, ...]
    field_names: tuple[str, ...]
    hyperparameters: Ints
    effects: Ints
    field: Ints
    hubs: Ints
    separator: Ints
    groups: Ints
    factor_groups: Ints
    unknown: Mapping[str, int]
    why_not: str | None
    names: Names

    @property
    def dim(self) -> int:
        """Number of latents."""
        return self.slots[-1].slice.stop

    @property
    def n_groups(self) -> int:
        """Number of groups."""
        return int(self.groups.max(initial=-1)) + 1

    @cached_property
    def group_sizes(self) -> Ints:
        """Number of elements of each group."""
        return np.bincount(self.groups[self.groups >= 0], minlength=self.n_groups)

    @cached_property
    def incidence(self) -> scipy.sparse.csr_array:
        """Which factor sees which latent: bool, shape (factors, dim)."""
        return self.factors.distinct[self.factors.index]

    @cached_property
    def hessian(self) -> scipy.sparse.csr_array:
        """Pattern of the Hessian, shape (dim, dim): pairs of latents that share a factor."""
        return pattern_of(self.factors.distinct)

    @property
    def hessian_density(self) -> float:
        """Share of the Hessian's entries that are not zero by structure."""
        return self.hessian.nnz / self.dim**2

    def group_elements(self, group: int) -> Ints:
        """Flat indices of a group's elements."""
        return self.field[self.groups == group]

    def group_name(self, group: int) -> str:
        """Name a group by the labels that its elements share, ``county=Aitkin`` for example."""
        return self.names.common(self.group_elements(group))

    def element_name(self, index: int) -> str:
        """Name a latent: its variable, and the coordinates of the element."""
        return self.names.element(index)

    def __repr__(self) -> str:
        return f"{self._title()}\n{text_table(_rows(self))}"

    def _repr_html_(self) -> str:
        return html_table(_rows(self), title=self._title())

    def _title(self) -> str:
        n = sum(self.n_factors.values())
        return f"Structure: {n:,} factors of {self.dim:,} latents"


def _rows(structure: Structure) -> list[tuple[str, str]]:
    rows = [
        ("factors", _listed([f"{name} {n:,}" for name, n in structure.n_factors.items()])),
        ("hyperparameters", _counted(structure.hyperparameters, structure.hyper_names)),
        ("field", _counted(structure.field, structure.field_names)),
        ("groups", _groups(structure)),
    ]
    if len(structure.separator):
        names = structure.names.covering(structure.separator)
        rows.append(("given", _counted(structure.separator, names)))
    if len(structure.hubs):
        rows.append(("hubs", _counted(structure.hubs, structure.names.covering(structure.hubs))))
    rows.append(("Hessian", f"{structure.hessian_density:.2%} of its entries"))
    if structure.unknown:
        counts = [f"{name} ({n})" for name, n in structure.unknown.items()]
        rows.append(("count as dense", _listed(counts)))
    rows.append(("field given hyper", structure.why_not or "applies"))
    return rows


def _counted(indices: Ints, names: tuple[str, ...]) -> str:
    return f"{len(indices):,}: {_listed(list(names))}" if len(indices) else "none"


def _groups(structure: Structure) -> str:
    sizes = structure.group_sizes
    if not len(sizes):
        return "none"
    if len(sizes) == 1:
        return f"1 of {sizes[0]:,}"
    each = f"{sizes[0]:,}" if sizes.min() == sizes.max() else f"{sizes.min():,} to {sizes.max():,}"
    largest = structure.group_name(int(sizes.argmax()))
    return f"{len(sizes):,} of {each}, for example {largest}"


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:_MAX_NAMES])
    return shown if len(names) <= _MAX_NAMES else f"{shown}, {len(names) - _MAX_NAMES} more"
