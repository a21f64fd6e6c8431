"""An Op for draws that NumPy computes from base draws."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import pytensor.tensor as pt
from pytensor.graph.basic import Apply
from pytensor.graph.op import Op
from pytensor.tensor.variable import TensorVariable


class FromBase(Protocol):
    """A distribution whose draws are computed from standard normal noise."""

    def from_base(self, z0: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Points (n, dim) and their log densities (n,) from noise (n, dim)."""


class DrawsFromBase(Op):
    """Points and log densities of a distribution from standard normal noise.

    Parameters
    ----------
    state : FromBase
    """

    __props__ = ("state",)

    def __init__(self, state: FromBase):
        self.state = state

    def make_node(self, z0: TensorVariable) -> Apply:
        """Take noise (n, dim)."""
        z0 = pt.as_tensor_variable(z0)
        return Apply(self, [z0], [z0.type(), pt.vector(dtype=z0.dtype)])

    def perform(self, node: Apply, inputs: Any, outputs: Any) -> None:
        """Compute points (n, dim) and log densities (n,)."""
        points, log_q = self.state.from_base(inputs[0])
        outputs[0][0] = points.astype(node.outputs[0].dtype)
        outputs[1][0] = log_q.astype(node.outputs[1].dtype)
