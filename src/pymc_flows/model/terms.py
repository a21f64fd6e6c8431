"""Values of the terms of a model's log density at points, outside of any fit.

They tell whether a model is the one of a file: names, shapes and transforms say nothing about
priors and data, but the log density at a few points does, and its terms say where models differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pytensor

from pymc_flows.backends.functions import function_of
from pymc_flows.backends.modes import NUMPY
from pymc_flows.backends.ops import random_inputs
from pymc_flows.model.logp import ModelDensity

type Values = dict[str, list[float]]
type _Function = Callable[..., list[np.ndarray]]

# Names and functions of the terms of each density, by whether random ones are left out.
_FUNCTIONS: WeakKeyDictionary[ModelDensity, dict[bool, tuple[list[str], _Function]]]
_FUNCTIONS = WeakKeyDictionary()

# Relative differences of a term up to these may be rounding: other machines and versions sum in
# other orders.
TOLERANCE = {"float32": 1e-3, "float64": 1e-6}


def terms_at(
    density: ModelDensity, points: np.ndarray, *, without_random: bool = False
) -> dict[str, np.ndarray]:
    """Evaluate each term of a log density, summed over its entries, in nats.

    Parameters
    ----------
    density : ModelDensity
    points : ndarray, shape (n, dim)
        In the unconstrained space.
    without_random : bool
        Whether to leave out random terms, such as those of a minibatch or a simulator.

    Returns
    -------
    dict of str to ndarray, shape (n,)
        By name of the random variable or the potential.
    """
    known = _FUNCTIONS.setdefault(density, {})
    if without_random not in known:
        known[without_random] = _function(density, without_random=without_random)
    names, function = known[without_random]
    rows = [function(*density.split(z)) for z in points]
    values = np.array(rows, dtype=float).reshape((len(points), len(names)))
    return dict(zip(names, values.T, strict=True))


def _function(density: ModelDensity, *, without_random: bool) -> tuple[list[str], _Function]:
    terms = {
        name: term.sum()
        for name, term in density.named_terms.items()
        if not (without_random and random_inputs([term]))
    }
    return list(terms), function_of(density.values, list(terms.values()), mode=NUMPY)


def probe(density: ModelDensity, points: np.ndarray) -> Values | None:
    """Evaluate the terms of a log density, in nats, at points (n, dim) of the unconstrained space.

    Random terms (of a minibatch or a simulator) are left out. The result is None if the model
    cannot be evaluated there.
    """
    try:
        found = terms_at(density, points, without_random=True)
    except Exception:  # whatever the model's Ops raise: it can be kept in a file all the same
        return None
    return {name: values.tolist() for name, values in found.items()}


def different_terms(found: Mapping[str, Any], expected: Values) -> list[str]:
    """Say which terms differ between a file and a model, one line each.

    Parameters
    ----------
    found : mapping of str to list of float
        Results of `probe` in the file.
    expected : dict of str to list of float
        Results of `probe` for the model.

    Raises
    ------
    AttributeError, TypeError, ValueError
        If ``found`` is no such mapping.
    """
    tolerance = TOLERANCE[pytensor.config.floatX]
    lines = [f"  {str(name)[:80]!r}: only in the file" for name in found if name not in expected]
    lines += [f"  {name!r}: only in the model" for name in expected if name not in found]
    for name, values in expected.items():
        ours, theirs = np.array(values), np.array(found.get(name, values), dtype=float)
        if theirs.shape != ours.shape:
            raise ValueError(f"{theirs.shape} values of {name!r}")
        with np.errstate(invalid="ignore"):
            same = np.abs(theirs - ours) <= tolerance * (1 + np.abs(ours))
        same |= (theirs == ours) | (np.isnan(theirs) & np.isnan(ours))
        for k in np.flatnonzero(~same)[:1]:
            lines.append(
                f"  {name!r}: log density {theirs[k]:.10g} in the file, {ours[k]:.10g} in the model"
            )
    return lines
