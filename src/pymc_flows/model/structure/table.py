"""A structure as text and as HTML."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pymc_flows.support.tables import html_table, text_table

if TYPE_CHECKING:
    from pymc_flows.model.structure.reader import Structure

_MAX_NAMES = 6

type Row = tuple[str, str]


def structure_text(structure: Structure) -> str:
    """Lay a structure out as lines of text."""
    return f"{_title(structure)}\n{text_table(_rows(structure))}"


def structure_html(structure: Structure) -> str:
    """Lay a structure out as HTML."""
    return html_table(_rows(structure), title=_title(structure))


def _title(structure: Structure) -> str:
    n = sum(structure.n_factors.values())
    return f"Structure: {n:,} factors of {structure.dim:,} latents"


def _rows(structure: Structure) -> list[Row]:
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
