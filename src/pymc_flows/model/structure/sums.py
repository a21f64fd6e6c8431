"""The factors of a density: its terms, whose outermost sums are taken apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytensor.tensor as pt
from pytensor import scalar as ps
from pytensor.graph.basic import Apply, Constant, Variable
from pytensor.tensor.variable import TensorVariable

from pymc_flows.support.compat import Blockwise, DimShuffle, Dot, Elemwise, Sum

# Matrix products of up to so many elements are taken apart.
_MAX_OUTPUTS = 16


@dataclass
class _Piece:
    """Σ weight · var, over the elements; ``weight`` broadcasts to ``var`` and has its ndim."""

    var: TensorVariable
    weight: TensorVariable | None

    def expression(self) -> TensorVariable:
        return self.var if self.weight is None else self.weight * self.var


def factors_of(
    term: TensorVariable, depends: set[Variable], checks: list[TensorVariable]
) -> list[TensorVariable]:
    """Return arrays whose elements have the sum of a term's, and depend on few latents each.

    A distribution of vectors, or a potential, is often a sum over elements that depend on few
    latents: a conditional autoregression has one log density, a sum of products of two latents.

    Parameters
    ----------
    term : TensorVariable
    depends : set of Variable
        Variables that depend on the latents; new ones are added.
    checks : list of TensorVariable
        Conditions without which the term is −∞ are added.

    Returns
    -------
    list of TensorVariable
        The term alone if it is no sum.
    """
    done: list[_Piece] = []
    todo = [_Piece(term, None)]
    met: list[TensorVariable] = []
    apart = False
    while todo:
        piece = todo.pop()
        parts = _taken_apart(piece, depends, met)
        if parts is None:
            done.append(piece)
        else:
            apart = apart or not isinstance(piece.var.owner.op, Elemwise | DimShuffle)
            todo.extend(parts)
    if not apart:
        return [term]
    checks.extend(met)
    return [piece.expression() for piece in reversed(done)]


def _taken_apart(
    piece: _Piece, depends: set[Variable], checks: list[TensorVariable]
) -> list[_Piece] | None:
    """Pieces that have the same sum; None if the piece is no sum."""
    var, weight = piece.var, piece.weight
    node = var.owner
    if node is None or var not in depends:
        return None
    if isinstance(node.op, Sum):
        [x] = node.inputs
        axes = range(x.ndim) if node.op.axis is None or x.ndim == 0 else node.op.axis
        return [_Piece(x, None if weight is None else pt.expand_dims(weight, tuple(axes)))]
    if isinstance(node.op, DimShuffle):
        return [_Piece(node.inputs[0], None if weight is None else _shuffled(weight, node))]
    if isinstance(node.op, Elemwise):
        return _linear(piece, node, depends, checks)
    core = node.op.core_op if isinstance(node.op, Blockwise) else node.op
    is_small = None not in var.type.shape and np.prod(var.type.shape) <= _MAX_OUTPUTS
    if isinstance(core, Dot) and depends.issuperset(node.inputs) and is_small:
        left, right = node.inputs
        products = left[..., :, None, :] * pt.swapaxes(right, -1, -2)[..., None, :, :]
        depends.add(products)
        return [_Piece(products, None if weight is None else weight[..., None])]
    return None


def _shuffled(weight: TensorVariable, node: Apply) -> TensorVariable:
    """The weight of a DimShuffle's input that a weight of its output amounts to."""
    order = node.op.new_order
    new = tuple(i for i, axis in enumerate(order) if axis == "x")
    kept = [axis for axis in order if axis != "x"]
    squeezed = weight.sum(axis=new) if new else weight
    places = [kept.index(i) if i in kept else "x" for i in range(node.inputs[0].ndim)]
    return squeezed.dimshuffle(places)


def _linear(
    piece: _Piece, node: Apply, depends: set[Variable], checks: list[TensorVariable]
) -> list[_Piece] | None:
    """Pieces of a sum, or of a product with one factor that depends on the latents."""
    op, given = node.op.scalar_op, node.inputs
    live = [v for v in given if v in depends]
    minus = pt.constant(-1.0)
    if isinstance(op, ps.Add):
        return _broadcast(piece, [(v, None) for v in given])
    if isinstance(op, ps.Sub):
        return _broadcast(piece, [(given[0], None), (given[1], minus)])
    if isinstance(op, ps.Neg):
        return _broadcast(piece, [(given[0], minus)])
    if isinstance(op, ps.Mul) and len(live) == 1:
        others = [v for v in given if v is not live[0]]
        return _broadcast(piece, [(live[0], pt.mul(*others) if others else None)])
    if isinstance(op, ps.TrueDiv) and live == [given[0]]:
        return _broadcast(piece, [(given[0], 1 / given[1])])
    if isinstance(op, ps.Switch) and _is_minus_infinity(given[2]):
        # Outside its support the density is zero, whatever the other factors are.
        checks.append(given[0])
        return _broadcast(piece, [(given[1], None)])
    return None


def _is_minus_infinity(var: Variable) -> bool:
    while var.owner is not None and isinstance(var.owner.op, DimShuffle):
        var = var.owner.inputs[0]
    return isinstance(var, Constant) and bool(np.all(np.isneginf(var.data)))


def _broadcast(
    piece: _Piece, inputs: list[tuple[TensorVariable, TensorVariable | None]]
) -> list[_Piece]:
    """A piece for each input times its factor, counted as often as it is broadcast."""
    var = piece.var
    found = []
    for value, factor in inputs:
        weight = piece.weight
        if factor is not None:
            factor = factor.dimshuffle(*["x"] * (var.ndim - factor.ndim), *range(factor.ndim))
            weight = factor if weight is None else weight * factor
        pairs = zip(value.type.broadcastable, var.type.broadcastable, strict=True)
        wide = tuple(i for i, (is_one, stays_one) in enumerate(pairs) if is_one and not stays_one)
        if wide:
            full = pt.ones_like(var) if weight is None else pt.ones_like(var) * weight
            weight = full.sum(axis=wide, keepdims=True)
        found.append(_Piece(value, weight))
    return found
