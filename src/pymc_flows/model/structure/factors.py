"""The factors of a log density, and the latents that each of them sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy
from pytensor.graph.basic import Apply, Variable
from pytensor.tensor.variable import TensorVariable

from pymc_flows.model.logp import ModelDensity
from pymc_flows.model.structure.graph import Facts, dependents, facts, live_variables, prepared
from pymc_flows.model.structure.relations import relations
from pymc_flows.model.structure.rows import (
    Blocks,
    Ints,
    Part,
    Pattern,
    Rows,
    distinct,
    identity,
    stacked,
    union,
)
from pymc_flows.model.structure.sums import factors_of

type Sets = Rows[Pattern]


@dataclass(frozen=True, eq=False)
class Factors:
    """Factors of a log density: elements of arrays that sum to it.

    Parameters
    ----------
    outputs : tuple of TensorVariable
        The arrays, graphs in the model's value variables.
    checks : tuple of TensorVariable
        Conditions: if one of them is false anywhere, the density is zero.
    sizes : tuple of int
        Number of elements of each array.
    counts : dict of str to int
        Number of factors of each random variable and potential.
    distinct : csr_array of bool, shape (rows, dim)
        Sets of latents.
    index : ndarray of int, shape (factors,)
        The row of ``distinct`` with the latents that a factor sees.
    unknown : dict of str to int
        Names of the Ops that count as dense, with their numbers.
    """

    outputs: tuple[TensorVariable, ...]
    checks: tuple[TensorVariable, ...]
    sizes: tuple[int, ...]
    counts: Mapping[str, int]
    distinct: scipy.sparse.csr_array
    index: Ints
    unknown: Mapping[str, int]


def factor_incidence(density: ModelDensity, near: np.ndarray | None = None) -> Factors:
    """Take a log density apart into factors, and find the latents that each of them sees.

    Arrays are evaluated near a point (dim,), by default the model's initial one.
    """
    ready = prepared(density)
    checks, values = list(ready.checks), density.values
    depends = live_variables(dependents(list(ready.terms.values()), values), values)
    factors = {name: factors_of(term, depends, checks) for name, term in ready.terms.items()}
    outputs = [var for found in factors.values() for var in found]
    nodes = dependents(outputs, values)
    known = facts(density, nodes, live_variables(nodes, values), outputs, near)
    inputs = {
        value: identity(np.arange(density.dim)[slot.slice], density.dim)
        for value, slot in zip(values, density.slots, strict=True)
    }
    sets, unknown = incidence(nodes, inputs, known)
    nothing = identity(np.array([-1]), density.dim)
    found = [
        sets.get(var, Rows(np.zeros(known.size(var), np.intp), nothing.matrix)) for var in outputs
    ]
    joined = stacked(found)
    return Factors(
        outputs=tuple(outputs),
        checks=tuple(checks),
        sizes=tuple(known.size(v) for v in outputs),
        counts={name: sum(known.size(v) for v in mine) for name, mine in factors.items()},
        distinct=joined.matrix.csr(),
        index=joined.index,
        unknown=unknown,
    )


def incidence(
    nodes: Sequence[Apply], inputs: Mapping[Variable, Sets], known: Facts
) -> tuple[dict[Variable, Sets], dict[str, int]]:
    """Carry sets of latents through a graph.

    Parameters
    ----------
    nodes : sequence of Apply
        Nodes that depend on the inputs, in topological order.
    inputs : mapping of Variable to Rows
        The sets of the inputs.
    known : Facts

    Returns
    -------
    sets : dict of Variable to Rows
        The latents that each element of each variable depends on.
    unknown : dict of str to int
        Names of Ops about which nothing is known, with the number of nodes: each of their outputs
        counts as depending on all of their inputs.
    """
    sets = dict(inputs)
    depends = live_variables(nodes, inputs)
    unknown: dict[str, int] = {}
    for node in nodes:
        for k, output in enumerate(node.outputs):
            found = relations(node, k, known, depends)
            given = found.inputs if isinstance(found, Blocks) else found
            parts = [
                Part(sets[var], relation.indices, relation.indptr)
                for var, relation in zip(node.inputs, given, strict=True)
                if relation is not None and var in sets
            ]
            if isinstance(found, Blocks):
                n_blocks = int(found.block.max(initial=-1)) + 1
                blocks = merged_sets(parts, n_blocks)
                sets[output] = Rows(blocks.index[found.block], blocks.matrix)
                if found.name is not None:
                    unknown[found.name] = unknown.get(found.name, 0) + 1
            else:
                sets[output] = merged_sets(parts, known.size(output))
    return sets, unknown


def merged_sets(parts: Sequence[Part[Pattern]], n: int) -> Sets:
    """Unions of rows of several parts, for n elements."""
    parts = [part for part in parts if len(part.rows.matrix.indices)] or list(parts[:1])
    if len(parts) == 1 and parts[0].indptr is None:
        return Rows(parts[0].taken(), parts[0].rows.matrix)
    patterns = [part.rows.matrix for part in parts]
    merged = distinct(parts, n, [p.n_rows for p in patterns])
    return Rows(merged.index, union(parts, patterns, merged).pattern)
