"""Which latents the elements of a graph's variables depend on: sets carried through the graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pytensor.graph.basic import Apply, Variable

from pymc_flows.model.structure.graph import Facts
from pymc_flows.model.structure.relations import Blocks, Relation, relations
from pymc_flows.model.structure.rows import (
    Part,
    Pattern,
    Rows,
    distinct,
    union,
)

type Sets = Rows[Pattern]


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
    depends = {*inputs, *(v for node in nodes for v in node.outputs)}
    unknown: dict[str, int] = {}
    for node in nodes:
        for k, output in enumerate(node.outputs):
            found = relations(node, k, known, depends)
            given = found.inputs if isinstance(found, Blocks) else found
            parts = _parts(node.inputs, given, sets)
            if isinstance(found, Blocks):
                n_blocks = int(found.block.max(initial=-1)) + 1
                blocks = merged_sets(parts, n_blocks)
                sets[output] = Rows(blocks.index[found.block], blocks.matrix)
                if found.name is not None:
                    unknown[found.name] = unknown.get(found.name, 0) + 1
            else:
                sets[output] = merged_sets(parts, known.size(output))
    return sets, unknown


def _parts(
    inputs: Sequence[Variable],
    given: Sequence[Relation | None],
    sets: Mapping[Variable, Sets],
) -> list[Part[Pattern]]:
    return [
        Part(sets[var], relation.indices, relation.indptr)
        for var, relation in zip(inputs, given, strict=True)
        if relation is not None and var in sets
    ]


def merged_sets(parts: Sequence[Part[Pattern]], n: int) -> Sets:
    """Unions of rows of several parts, for n elements."""
    parts = [part for part in parts if len(part.rows.matrix.indices)] or list(parts[:1])
    if len(parts) == 1 and parts[0].indptr is None:
        return Rows(parts[0].taken(), parts[0].rows.matrix)
    patterns = [part.rows.matrix for part in parts]
    merged = distinct(parts, n, [p.n_rows for p in patterns])
    return Rows(merged.index, union(parts, patterns, merged).pattern)
