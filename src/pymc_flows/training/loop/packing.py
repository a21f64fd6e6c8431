"""All parameters of a flow in one vector."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.replace import graph_replace
from pytensor.tensor.variable import TensorVariable

from pymc_flows.errors import ArgumentError
from pymc_flows.flows.chain import Chain, Loop


class Packing:
    """One vector for all parameters of a flow while the compiled loop runs.

    A step on small arrays costs time per node, whatever is computed: one update of one vector,
    instead of one per parameter, halves the time of a step, and the time to compile.

    Parameters
    ----------
    params : mapping of str to SharedVariable
        Parameters by name, block by block and alphabetical inside.

    Attributes
    ----------
    theta : SharedVariable, shape (n,)
        Values of the parameters one after the other, each in C order; current after `gather`.
    """

    def __init__(self, params: Mapping[str, SharedVariable]):
        self._params = dict(params)
        self._shapes = [p.type.shape for p in self._params.values()]
        sizes = [math.prod(shape) for shape in self._shapes]
        self._stops = list(itertools.accumulate(sizes))
        if not self._params:
            raise ArgumentError("the flow has no parameters, there is nothing to fit")
        [dtype] = {p.dtype for p in self._params.values()}
        self.theta = pytensor.shared(np.zeros(sum(sizes), dtype), "theta", shape=(sum(sizes),))

    def gather(self) -> None:
        """Set ``theta`` from the parameters."""
        values = [np.ravel(p.get_value(borrow=True)) for p in self._params.values()]
        self.theta.set_value(np.concatenate(values), borrow=True)

    def scatter(self) -> None:
        """Set the parameters from ``theta``."""
        for name, value in self.split(self.theta.get_value(borrow=True)).items():
            self._params[name].set_value(value.copy(), borrow=True)

    def split(self, values: np.ndarray) -> dict[str, np.ndarray]:
        """Split vectors (..., n) into arrays (..., *shape of the parameter) by name."""
        parts = np.split(values, self._stops[:-1], axis=-1)
        return {
            name: part.reshape((*values.shape[:-1], *shape))
            for name, part, shape in zip(self._params, parts, self._shapes, strict=True)
        }

    def rewrite[K](self, updates: Mapping[K, TensorVariable]) -> dict[K, TensorVariable]:
        """Let graphs read the parameters from ``theta``."""
        pieces = {
            param: self.theta[stop - math.prod(shape) : stop].reshape(shape)
            for param, stop, shape in zip(
                self._params.values(), self._stops, self._shapes, strict=True
            )
        }
        graphs = graph_replace(list(updates.values()), pieces, strict=False)
        return dict(zip(updates, graphs, strict=True))


def split_by_block(
    chain: Chain, theta: TensorVariable, loop: Loop
) -> list[TensorVariable | dict[str, TensorVariable]]:
    """Parameters of each block from a vector of all: a vector for a kernel Op, else by name."""
    blocks: list[TensorVariable | dict[str, TensorVariable]] = []
    start = 0
    for block in chain.blocks:
        part = theta[start : start + block.size(chain.dim)]
        blocks.append(part if block.kernel(loop) else block.unflatten(part, chain.dim))
        start += block.size(chain.dim)
    return blocks


def join(parts: list[TensorVariable]) -> TensorVariable:
    """Put arrays one after the other into one vector, each in C order."""
    return pt.join(0, *(part.ravel() for part in parts))
