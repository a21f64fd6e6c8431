"""The factors of a log density, and the latents that each of them sees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from pytensor.tensor.variable import TensorVariable

from pymc_flows.model.logp import ModelDensity
from pymc_flows.model.structure.graph import dependents, facts, prepared
from pymc_flows.model.structure.incidence import incidence
from pymc_flows.model.structure.rows import Rows, identity, stacked
from pymc_flows.model.structure.sums import factors_of

type Ints = npt.NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Factors:
    """Factors of a log density: elements of arrays that sum to it.

    Parameters
    ----------
    outputs : tuple of TensorVariable
        The arrays, graphs in the model's value variables.
    checks : tuple of TensorVariable
        Conditions; where one is false somewhere, the density is zero.
    sizes : tuple of int
        Number of elements of each array.
    counts : dict of str to int
        Number of factors of each random variable and potential.
    distinct : csr_array of bool, shape (rows, dim)
        Sets of latents.
    index : ndarray of int, shape (factors,)
        The row of ``distinct`` with the latents that a factor sees.
    unknown : dict of str to int
        Ops that count as dense, with their number.
    """

    outputs: tuple[TensorVariable, ...]
    checks: tuple[TensorVariable, ...]
    sizes: tuple[int, ...]
    counts: Mapping[str, int]
    distinct: sp.csr_array
    index: Ints
    unknown: Mapping[str, int]


def factor_incidence(density: ModelDensity) -> Factors:
    """Take a log density apart into factors, and find the latents that each of them sees."""
    ready = prepared(density)
    terms, checks = ready.terms, list(ready.checks)
    values = density.model.value_vars
    depends = {*values, *(v for n in dependents(list(terms.values()), values) for v in n.outputs)}
    factors = {name: factors_of(term, depends, checks) for name, term in terms.items()}
    outputs = [var for found in factors.values() for var in found]
    nodes = dependents(outputs, values)
    depends = {*values, *(v for node in nodes for v in node.outputs)}
    known = facts(density, nodes, depends, outputs)
    inputs = {
        value: identity(np.r_[slot.slice], density.dim)
        for value, slot in zip(values, density.slots, strict=True)
    }
    sets, unknown = incidence(nodes, inputs, known)
    nothing = identity(np.array([-1]), density.dim)
    found = [
        sets.get(var, Rows(np.zeros(known.size(var), np.intp), nothing.matrix)) for var in outputs
    ]
    joined = stacked(found)
    pattern = joined.matrix
    distinct = sp.csr_array(
        (np.ones(len(pattern.indices), dtype=bool), pattern.indices, pattern.indptr),
        shape=(pattern.n_rows, pattern.n_columns),
    )
    sizes = tuple(known.size(v) for v in outputs)
    counts = {name: sum(known.size(v) for v in mine) for name, mine in factors.items()}
    return Factors(tuple(outputs), tuple(checks), sizes, counts, distinct, joined.index, unknown)
