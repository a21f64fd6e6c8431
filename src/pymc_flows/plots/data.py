"""Arrays for the plots: draws of coordinates, thinned losses, tracked parameters."""

import itertools
import math
import re
import warnings
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from pymc_flows.errors import FlowShapeError

type Floats = npt.NDArray[np.float64]
type Names = str | Sequence[str] | None

_SAMPLE_DIMS = ("chain", "draw", "sample")


# ---------------------------------------------------------------------- draws


def plane(samples: Any, var_names: Names) -> tuple[Floats, tuple[str, str]]:
    """Draws of two coordinates, shape (n, 2), and the names of the coordinates.

    Draws that are not finite are left out, with a warning that says how many.
    """
    if is_named(samples):
        variables = _variables(samples, var_names)
        if sum(math.prod(_event_shape(variable)) for variable in variables.values()) != 2:
            found = ", ".join(f"{name} {_event_shape(v)}" for name, v in variables.items())
            raise FlowShapeError(
                "expected one variable of length 2 or two scalar variables\n"
                f"got {found or 'none'}\n"
                "choose with var_names, or pass an array of shape (n, 2)"
            )
    elif var_names is None and (np.ndim(samples) < 2 or np.shape(samples)[-1] != 2):
        raise FlowShapeError(
            "expected draws of shape (..., 2)\n"
            f"got shape {np.shape(samples)}\n"
            "choose two coordinates as array[..., [i, j]]"
        )
    z, labels = columns(samples, var_names)
    return z, (labels[0], labels[1])


def is_named(samples: Any) -> bool:
    """Whether samples are variables with names, not an array."""
    return isinstance(samples, xr.DataTree | xr.Dataset | xr.DataArray)


def columns(samples: Any, var_names: Names) -> tuple[Floats, list[str]]:
    """Draws of all coordinates, shape (n, k), and the names of the coordinates.

    Draws that are not finite are left out, with a warning that says how many.
    """
    if is_named(samples):
        variables = _variables(samples, var_names)
        parts, names = zip(*(_entries(name, v) for name, v in variables.items()), strict=True)
        z = np.concatenate(parts, axis=-1, dtype=float)
        labels = [label for part in names for label in part]
    elif var_names is not None:
        raise TypeError(
            "expected samples with named variables, a DataTree or a Dataset, for var_names\n"
            f"got {type(samples).__name__}\n"
            "leave out var_names, or choose the coordinates as array[..., [i, j]]"
        )
    else:
        z = np.asarray(samples, dtype=float)
        if z.ndim < 2:
            raise FlowShapeError(f"expected draws of shape (..., k)\ngot shape {z.shape}")
        z = z.reshape(-1, z.shape[-1])
        labels = [f"z[{i}]" for i in range(z.shape[-1])]
    finite = np.isfinite(z).all(-1)
    if not finite.all():
        warnings.warn(
            f"{(~finite).sum():,} of {len(z):,} draws are not finite and are left out",
            stacklevel=4,
        )
    return z[finite], labels


def _as_dataset(samples: xr.DataTree | xr.Dataset | xr.DataArray) -> xr.Dataset:
    if isinstance(samples, xr.DataTree):
        return samples.children.get("posterior", samples).to_dataset()
    if isinstance(samples, xr.DataArray):
        return samples.to_dataset(name="z" if samples.name is None else samples.name)
    return samples


def _variables(samples: Any, var_names: Names) -> dict[str, xr.DataArray]:
    known = {str(name): variable for name, variable in _as_dataset(samples).data_vars.items()}
    return {name: known[name] for name in _checked_names(var_names, known)}


def _event_dims(variable: xr.DataArray) -> list[Hashable]:
    return [dim for dim in variable.dims if dim not in _SAMPLE_DIMS]


def _event_shape(variable: xr.DataArray) -> tuple[int, ...]:
    return tuple(variable.sizes[dim] for dim in _event_dims(variable))


def _entries(name: str, variable: xr.DataArray) -> tuple[Floats, list[str]]:
    """Draws (n, entries), and a name for each entry."""
    event = _event_dims(variable)
    sample = [dim for dim in _SAMPLE_DIMS if dim in variable.dims]
    values = variable.transpose(*sample, *event).values
    indices = _coordinate_values(variable, event)
    labels = [f"{name}[{', '.join(index)}]" if index else name for index in indices]
    return values.reshape(-1, len(labels)), labels


def _coordinate_values(variable: xr.DataArray, dims: Sequence[Hashable]) -> list[tuple[str, ...]]:
    """Name each entry of the trailing dimensions by its coordinates, in C order."""
    named = [[str(value) for value in variable[dim].values] for dim in dims]
    shape = tuple(map(len, named))
    return [
        tuple(names[i] for names, i in zip(named, index, strict=True))
        for index in np.ndindex(*shape)
    ]


def _checked_names(var_names: Names, known: Mapping[str, object]) -> list[str]:
    if var_names is None:
        return list(known)
    names = [var_names] if isinstance(var_names, str) else list(var_names)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(
            f"expected names among: {', '.join(known) or '(there are none)'}\n"
            f"got {', '.join(map(repr, unknown))}\n"
            "correct var_names"
        )
    return names


# ---------------------------------------------------------------------- losses


def extremes(values: Floats, most: int) -> npt.NDArray[np.intp]:
    """Indices of at most ``most`` values: the lowest and the highest of each equal stretch."""
    if len(values) <= most:
        return np.arange(len(values))
    edges = np.linspace(0, len(values), most // 2 + 1).astype(int)
    low = np.where(np.isfinite(values), values, np.inf)
    high = np.where(np.isfinite(values), values, -np.inf)
    return np.unique(
        [
            start + best
            for start, stop in itertools.pairwise(edges)
            for best in (np.argmin(low[start:stop]), np.argmax(high[start:stop]))
        ]
    )


def running_mean(
    values: Floats, centres: npt.NDArray[np.intp], window: int
) -> tuple[Floats, Floats]:
    """Mean of the finite values in a window around each centre, and its standard error.

    Both are NaN in a window without values, and the error also in one with a single value. The
    noise of different steps is independent. Each window is summed by itself: differences of one
    cumulative sum would carry the rounding error of a huge first loss into all later means.
    """
    starts = np.maximum(0, centres - (window - 1) // 2)
    stops = np.minimum(len(values), centres + window // 2 + 1)
    means, errors = np.full(len(centres), np.nan), np.full(len(centres), np.nan)
    for i, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        inside = values[start:stop]
        inside = inside[np.isfinite(inside)]
        if len(inside):
            means[i] = inside.mean()
        if len(inside) > 1:
            errors[i] = inside.std(ddof=1) / math.sqrt(len(inside))
    return means, errors


def typical_range(values: Floats) -> tuple[float, float]:
    """Range of the values within five interquartile ranges of the quartiles."""
    lower, upper = np.quantile(values, [0.25, 0.75])
    reach = 5 * (upper - lower)
    return max(values.min(), lower - reach), min(values.max(), upper + reach)


# ---------------------------------------------------------------------- tracked parameters


@dataclass(frozen=True, eq=False)
class Row:
    """One parameter of one layer during training.

    Attributes
    ----------
    name : str
        Title of the row.
    aliases : frozenset of str
        Names that select the row: its own and those of the parameter with all its layers.
    steps : ndarray, shape (n,)
    values, gradient : ndarray, shape (n, components), or None if it was not tracked
    components : list of str
        Names of the components; empty for a scalar.
    """

    name: str
    aliases: frozenset[str]
    steps: npt.NDArray[Any]
    values: Floats | None
    gradient: Floats | None
    components: list[str]


def tracked_rows(tracker: Any, var_names: Names) -> list[Row]:
    """Rows of a tracker in order of the layers, the parameters of a layer together."""
    tracker = getattr(tracker, "dataset", tracker)
    if isinstance(tracker, xr.Dataset):
        variables = {str(name): variable for name, variable in tracker.data_vars.items()}
        parsed = {name: _parse(name) for name in map(_parameter, variables)}
    else:
        history = getattr(tracker, "hist", tracker)
        variables = {name: _as_series(values) for name, values in history.items()}
        parsed = {name: (name, name) for name in map(_parameter, variables)}
    if not any(map(len, variables.values())):
        raise ValueError(
            "expected tracked parameters\ngot a tracker without values\nfit with it first"
        )
    rows = _all_rows(parsed, variables)
    if len({row.name for row in rows}) < len(rows):
        rows = _all_rows({name: (block, name) for name, (block, _) in parsed.items()}, variables)
    known = {alias: None for row in rows for alias in (row.name, *sorted(row.aliases))}
    names = set(_checked_names(var_names, known))
    return [row for row in rows if names & row.aliases]


def _all_rows(
    parsed: Mapping[str, tuple[str, str]], variables: Mapping[str, xr.DataArray]
) -> list[Row]:
    """Rows of parameters, given as a dict from names to (block, short name)."""
    blocks = list(dict.fromkeys(block for block, _ in parsed.values()))
    rows = [
        (blocks.index(block), layer, row)
        for name, (block, short) in parsed.items()
        for layer, row in enumerate(_rows(name, short, variables))
    ]
    return [row for *_, row in sorted(rows, key=lambda entry: entry[:2])]


def _parameter(name: str) -> str:
    return name.removeprefix("grad_")


def _parse(name: str) -> tuple[str, str]:
    """Split ``{position}_{word}_{parameter}`` into the block and the parameter."""
    match = re.fullmatch(r"([^_]*\d_[^_]+)_(.+)", name)
    return (match[1], match[2]) if match else (name, name)


def _as_series(values: Any) -> xr.DataArray:
    array = np.asarray(values, dtype=float)
    dims = ["step", *(f"axis_{i}" for i in range(array.ndim - 1))]
    return xr.DataArray(array, dims=dims, coords={"step": np.arange(1, len(array) + 1)})


def _rows(name: str, short: str, variables: Mapping[str, xr.DataArray]) -> list[Row]:
    """One row, or one for each layer."""
    pair = [variables.get(name), variables.get(f"grad_{name}")]
    known = next(variable for variable in pair if variable is not None)
    layers = [dim for dim in known.dims[1:2] if "layer" in str(dim)]
    event = list(known.dims[1 + len(layers) :])
    components = [", ".join(index) for index in _coordinate_values(known, event)] if event else []
    rows = []
    for layer, index in enumerate(_coordinate_values(known, layers)):
        label = "_".join([short, *index])
        values, gradient = (
            None
            if variable is None
            else (variable[:, layer] if layers else variable).values.reshape(len(known), -1)
            for variable in pair
        )
        rows.append(
            Row(
                name=label,
                aliases=frozenset({label, short, name, "_".join([name, *index])}),
                steps=known["step"].values,
                values=values,
                gradient=gradient,
                components=[f"{label}[{component}]" for component in components],
            )
        )
    return rows
