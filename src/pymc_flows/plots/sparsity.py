"""The pattern of a model's Hessian."""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pymc as pm

from pymc_flows.errors import ArgumentError
from pymc_flows.model.structure import Structure
from pymc_flows.model.structure import structure as structure_of
from pymc_flows.plots.axes import new_axes, pyplot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

type Ints = npt.NDArray[np.intp]
type Floats = npt.NDArray[np.float64]

# Most cells on each side. A cell is the darker, the larger its share of entries, but never so light
# that an entry is invisible.
_MAX_CELLS = 300
_LIGHTEST = 0.35
# Hyperparameters, separator, and two colours for neighbouring groups.
_COLOURS = ("tab:red", "tab:orange", "tab:blue", "tab:cyan")


def structure(structure: Structure | pm.Model, ax: "Axes | None" = None) -> "Axes":
    """Draw which pairs of latents share a factor: the pattern of the Hessian.

    Latents are in order: hyperparameters, the separator, then group by group. An entry has the
    colour of the part of its row or its column, whichever comes first.

    Parameters
    ----------
    structure : Structure or pymc.Model
    ax : matplotlib.axes.Axes, optional

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ArgumentError
        If it is neither a structure nor a model.
    """
    found = structure_of(structure) if isinstance(structure, pm.Model) else structure
    if not isinstance(found, Structure):
        raise ArgumentError(
            f"expected a structure or a model\ngot {type(found).__name__}\n"
            "take pymc_flows.structure(model)"
        )
    order, kind = _order(found)
    n = len(order)
    ax = new_axes((6, 6)) if ax is None else ax
    ax.imshow(_image(found, order, kind), extent=(0, n, n, 0), interpolation="nearest")
    _mark(ax, found, kind)
    ax.set_xlabel("latents")
    ax.set_title(f"{found.hessian_density:.2%} of the Hessian of {n:,} latents", fontsize="medium")
    return ax


def _order(structure: Structure) -> tuple[Ints, Ints]:
    """Latents in the order of the picture, and the colour of each, by position in `_COLOURS`."""
    groups = structure.groups
    grouped = np.flatnonzero(groups >= 0)
    by_group = grouped[np.argsort(groups[grouped], kind="stable")]
    order = np.concatenate(
        [structure.hyperparameters, structure.separator, structure.field[by_group]]
    )
    kinds = [
        np.zeros_like(structure.hyperparameters),
        np.ones_like(structure.separator),
        2 + groups[by_group] % 2,
    ]
    return order, np.concatenate(kinds)


def _image(structure: Structure, order: Ints, kind: Ints) -> Floats:
    """Colours (cells, cells, 3) of the pattern, dark where it is dense."""
    from matplotlib.colors import to_rgb

    n = len(order)
    place = np.empty(n, dtype=np.intp)
    place[order] = np.arange(n)
    entries = structure.hessian.tocoo()
    row, column = place[entries.row], place[entries.col]
    colour = np.minimum(kind[row], kind[column])
    cells = min(n, _MAX_CELLS)
    size = np.bincount(np.arange(n) * cells // n, minlength=cells)
    cell = (row * cells // n) * cells + column * cells // n
    flat = np.bincount(cell * len(_COLOURS) + colour, minlength=cells**2 * len(_COLOURS))
    counts = flat.reshape(cells, cells, len(_COLOURS))
    total = counts.sum(axis=-1, keepdims=True)
    palette = np.array([to_rgb(name) for name in _COLOURS])
    mixed = (counts / np.maximum(total, 1)) @ palette
    share = total / (size[:, None, None] * size[None, :, None])
    dark = np.where(total > 0, _LIGHTEST + (1 - _LIGHTEST) * np.sqrt(share), 0)
    found: Floats = 1 - dark * (1 - mixed)
    return found


def _mark(ax: "Axes", structure: Structure, kind: Ints) -> None:
    """Draw lines between the parts, and the legend of the colours."""
    counts = np.array([np.sum(kind == 0), np.sum(kind == 1), np.sum(kind >= 2)])
    for end in np.cumsum(counts)[:-1]:
        if 0 < end < len(kind):
            ax.axhline(end, color="black", linewidth=0.5)
            ax.axvline(end, color="black", linewidth=0.5)
    groups = f"{structure.n_groups:,} group{'s' if structure.n_groups != 1 else ''}"
    names = ["hyperparameters", "separator", groups]
    patch = pyplot().matplotlib.patches.Patch
    handles = [
        patch(color=colour, label=f"{name} ({n:,})")
        for name, n, colour in zip(names, counts, _COLOURS, strict=False)
        if n
    ]
    ax.legend(
        handles=handles,
        fontsize="small",
        loc="upper center",
        bbox_to_anchor=(0.5, -0.1),
        ncols=len(handles),
        frameon=False,
    )
