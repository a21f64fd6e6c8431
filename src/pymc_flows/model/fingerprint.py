"""Values of a model's log density by which it is known again.

The names, shapes and transforms of a model say nothing of its priors and data. Its log density at
a few points does, term by term, so that it can also be said which term is another one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pytensor
from pytensor.graph.traversal import graph_inputs

from pymc_flows.backends.modes import NUMPY
from pymc_flows.model.logp import ModelDensity
from pymc_flows.support.compat import RandomGeneratorType

type Values = dict[str, list[float]]
type _Function = Callable[..., list[np.ndarray]]

# Relative differences of a term beyond these are no rounding: other machines and versions sum in
# other orders.
TOLERANCE = {"float32": 1e-3, "float64": 1e-6}
N_POINTS = 3

_FUNCTIONS: WeakKeyDictionary[ModelDensity, tuple[list[str], _Function]] = WeakKeyDictionary()


def probe(density: ModelDensity, points: np.ndarray) -> Values | None:
    """Evaluate the terms of a log density, in nats, at points (n, dim) of the unconstrained space.

    Terms that are random (of a minibatch, of a simulator) are left out. None if the model cannot be
    evaluated there.
    """
    try:
        if density not in _FUNCTIONS:
            _FUNCTIONS[density] = _function(density)
        names, function = _FUNCTIONS[density]
        rows = [
            function(*(z[s.slice].reshape(s.shape).astype(s.dtype) for s in density.slots))
            for z in points
        ]
    except Exception:  # whatever the model's Ops raise: it can be kept in a file all the same
        return None
    return {name: [float(row[k]) for row in rows] for k, name in enumerate(names)}


def _function(density: ModelDensity) -> tuple[list[str], _Function]:
    terms = {
        name: term.sum()
        for name, term in density.named_terms.items()
        if not any(isinstance(v.type, RandomGeneratorType) for v in graph_inputs([term]))
    }
    inputs = density.model.value_vars
    fn = pytensor.function(inputs, list(terms.values()), mode=NUMPY, on_unused_input="ignore")
    return list(terms), fn


def differences(found: Mapping[str, Any], expected: Values) -> list[str]:
    """Say which terms differ between a file and a model, one line each.

    Parameters
    ----------
    found : mapping of str to list of float
        As `probe` has returned them, from the file.
    expected : dict of str to list of float
        Of the model at hand.

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
