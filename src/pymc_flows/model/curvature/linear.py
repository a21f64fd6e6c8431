"""Elementwise Ops that are linear in what varies, and what they multiply it by."""

from __future__ import annotations

import pytensor.tensor as pt
from pytensor import scalar as ps
from pytensor.graph.basic import Apply, Variable
from pytensor.tensor.variable import TensorVariable

from pymc_flows.support.compat import Elemwise

type Coefficient = float | TensorVariable
"""A number, or an array that broadcasts to the output."""


def coefficients(node: Apply, live: set[Variable]) -> dict[int, Coefficient] | None:
    """What an elementwise Op multiplies each of its varying inputs by, by position.

    Returns
    -------
    dict of int to float or TensorVariable
        None if the Op is not linear in them.
    """
    if not isinstance(node.op, Elemwise):
        return None
    op, given = node.op.scalar_op, node.inputs
    on = [i for i, v in enumerate(given) if v in live]
    if isinstance(op, ps.Add | ps.Identity | ps.Cast):
        return dict.fromkeys(on, 1.0)
    if isinstance(op, ps.Sub):
        return {i: 1.0 if i == 0 else -1.0 for i in on}
    if isinstance(op, ps.Neg):
        return {0: -1.0}
    if isinstance(op, ps.Second):
        return {1: 1.0} if 1 in on else None
    if isinstance(op, ps.Mul) and len(on) == 1:
        others = [v for i, v in enumerate(given) if i != on[0]]
        return {on[0]: pt.mul(*others) if len(others) > 1 else others[0]}
    if isinstance(op, ps.TrueDiv) and on == [0]:
        return {0: 1 / given[1]}
    if isinstance(op, ps.Switch):
        sides = {1: pt.switch(given[0], 1.0, 0.0), 2: pt.switch(given[0], 0.0, 1.0)}
        return {i: sides[i] for i in on}
    return None
