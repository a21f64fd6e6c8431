"""A structure in words: names of latents and of groups of them, and a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pymc_flows.model.logp import ModelDensity
from pymc_flows.support.tables import html_table, text_table

_MAX_NAMES = 6

type Row = tuple[str, str]


@dataclass(frozen=True)
class _Variable:
    """A free variable: its first and last flat index, its shape, its dims where it has them."""

    name: str
    begin: int
    end: int
    shape: tuple[int, ...]
    dims: tuple[str | None, ...]


@dataclass(frozen=True)
class Names:
    """Names of the elements of a flat vector.

    Parameters
    ----------
    variables : tuple of _Variable
    coords : mapping of str to sequence
    """

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
            # A transform that shortens a variable leaves nothing that coordinates could name.
            same = len(dims) == len(slot.shape) and all(
                n == len(coords.get(dim, range(n))) for dim, n in zip(dims, slot.shape, strict=True)
            )
            if not same:
                dims = (None,) * len(slot.shape)
            variables.append(
                _Variable(rv.name, slot.slice.start, slot.slice.stop, slot.shape, dims)
            )
        return cls(tuple(variables), coords)

    def element(self, index: int) -> str:
        """Name one element: ``intercept[Aitkin]``."""
        var, position = self._find(index)
        if not position:
            return var.name
        labels = [self._label(d, i) for d, i in zip(var.dims, position, strict=True)]
        return f"{var.name}[{', '.join(labels)}]"

    def covering(self, indices: npt.NDArray[np.intp]) -> tuple[str, ...]:
        """Names of the variables that elements belong to."""
        begins = [var.begin for var in self.variables]
        owners = np.unique(np.searchsorted(begins, indices, side="right") - 1)
        return tuple(self.variables[i].name for i in owners)

    def common(self, indices: npt.NDArray[np.intp]) -> str:
        """Name what elements have in common: ``county=Aitkin``; their names if that is nothing."""
        if not len(indices):
            return "nothing"
        found: list[dict[str, str]] = []
        for index in indices[:64].tolist():
            var, position = self._find(index)
            found.append(
                {
                    d: self._label(d, i)
                    for d, i in zip(var.dims, position, strict=True)
                    if d is not None
                }
            )
        shared = {
            dim: label for dim, label in found[0].items() if all(f.get(dim) == label for f in found)
        }
        if shared:
            return ", ".join(f"{dim}={label}" for dim, label in shared.items())
        first = self.element(int(indices[0]))
        return first if len(indices) == 1 else f"{first} and {len(indices) - 1} more"

    def _find(self, index: int) -> tuple[_Variable, tuple[int, ...]]:
        for var in self.variables:
            if var.begin <= index < var.end:
                position = np.unravel_index(index - var.begin, var.shape) if var.shape else ()
                return var, tuple(int(i) for i in position)
        raise IndexError(f"expected an index below {self.variables[-1].end}, got {index}")

    def _label(self, dim: str | None, position: int) -> str:
        return str(self.coords[dim][position]) if dim in self.coords else str(position)


def structure_text(structure: Any) -> str:
    """Lay a `Structure` out as lines of text."""
    return f"{_title(structure)}\n{text_table(_rows(structure))}"


def structure_html(structure: Any) -> str:
    """Lay a `Structure` out as HTML."""
    return html_table(_rows(structure), title=_title(structure))


def _title(structure: Any) -> str:
    n = sum(structure.n_factors.values())
    return f"Structure: {n:,} factors of {structure.dim:,} latents"


def _rows(structure: Any) -> list[Row]:
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


def _counted(indices: np.ndarray, names: tuple[str, ...]) -> str:
    return f"{len(indices):,}: {_listed(list(names))}" if len(indices) else "none"


def _groups(structure: Any) -> str:
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
