"""In-loop tracking of parameters and gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytensor
from pymc.variational.callbacks import Callback
from xarray import Dataset

from pymc_flows.errors import ArgumentError
from pymc_flows.flows import Chain
from pymc_flows.support.arguments import check_integer

__all__ = ["Tracker"]


class Tracker(Callback):
    """Records parameters and gradients of every step inside the compiled training loop.

    Give it to ``NFVI.fit(callbacks=[tracker])``. Values leave the compiled loop with its losses;
    Python is not called at each step. Gradients are those that the optimizer used, parameters those
    after the step. `refine`, or a further fit of the same flow, appends to the records.

    Parameters
    ----------
    params, grads : bool
        What to record.
    max_bytes : int
        Limit of the memory for records, in bytes. Whenever it is reached, every second record is
        dropped, and half as many are kept from then on.

    Attributes
    ----------
    stride : int
        One record is kept for this many steps.
    dataset : xarray.Dataset
        Variables ``{position}_{word}_{param}``, where positions count blocks from 0, and
        ``grad_…`` for gradients. Dimensions: ``step`` (coordinate: number of the step, from 1),
        then the repeats of the block (``layer``, or ``layer_{position}`` if the formula has
        several blocks; coordinate: position in the expanded formula), then the parameter's own.

    Raises
    ------
    ArgumentError
        If there is nothing to record, ``max_bytes`` has no room for two records, or a fit of
        another flow or an inference other than NFVI uses the tracker.
    """

    def __init__(self, *, params: bool = True, grads: bool = True, max_bytes: int = 256 * 2**20):
        if not (params or grads):
            raise ArgumentError("a Tracker without params and grads records nothing")
        self.params = params
        self.grads = grads
        self.max_bytes = check_integer("max_bytes", max_bytes)
        self.clear()

    def clear(self) -> None:
        """Forget all records."""
        self.stride = 1
        self._chain: Chain | None = None
        self._steps = 0  # seen
        self._kept = 0
        self._most = 0
        self._buffers: dict[str, np.ndarray] = {}

    def __call__(self, approx: object, loss: object, i: int) -> None:
        """Raise: nothing is called step by step."""
        raise ArgumentError(
            "pymc_flows.callbacks.Tracker records inside the compiled loop of NFVI.fit\n"
            "For other inferences use pymc.variational.callbacks.Tracker."
        )

    def prepare(self, chain: Chain) -> None:
        """Get ready to record a flow; each fit calls this before it starts."""
        if self._chain is not None and chain != self._chain:
            raise ArgumentError(
                "this Tracker has records of another flow\nUse a new one, or call its clear()."
            )
        sizes = [math.prod(shape) for block in chain.param_shapes() for shape in block.values()]
        per_step = sum(sizes) * np.dtype(pytensor.config.floatX).itemsize
        per_record = per_step * (self.params + self.grads) + np.dtype(np.int64).itemsize
        self._most = self.max_bytes // per_record
        if self._most < 2:
            raise ArgumentError(
                f"max_bytes={self.max_bytes} has no room for two records of this flow\n"
                f"One record takes {per_record} bytes."
            )
        self._chain = chain

    def record(self, values: Mapping[str, np.ndarray]) -> None:
        """Record the next steps.

        Parameters
        ----------
        values : mapping of str to ndarray, shape (steps, ...)
        """
        values = {k: v for k, v in values.items() if self._wants(k)}
        n = len(next(iter(values.values())))
        first, self._steps = self._steps, self._steps + n
        while -(-self._steps // self.stride) > self._most:
            self._halve()
        chosen = slice(-first % self.stride, n, self.stride)
        self._append("step", np.arange(first + 1, self._steps + 1)[chosen])
        for name, value in values.items():
            self._append(name, value[chosen])
        self._kept = -(-self._steps // self.stride)

    def _wants(self, name: str) -> bool:
        return self.grads if name.startswith("grad_") else self.params

    def _halve(self) -> None:
        self.stride *= 2
        remaining = (self._kept + 1) // 2
        for buffer in self._buffers.values():
            buffer[:remaining] = buffer[: self._kept : 2]
        self._kept = remaining

    def _append(self, name: str, values: np.ndarray) -> None:
        needed = self._kept + len(values)
        buffer = self._buffers.get(name)
        if buffer is None or len(buffer) < needed:
            length = min(self._most, max(needed, 2 * self._kept))
            larger = np.empty((length, *values.shape[1:]), values.dtype)
            if buffer is not None:
                larger[: self._kept] = buffer[: self._kept]
            self._buffers[name] = buffer = larger
        buffer[self._kept : needed] = values

    @property
    def nbytes(self) -> int:
        """Bytes in use."""
        return sum(buffer.nbytes for buffer in self._buffers.values())

    @property
    def dataset(self) -> Dataset:
        """All records so far."""
        if self._chain is None or not self._kept:
            return Dataset()
        dims, coords = _layout(self._chain)
        data = {name: (dims[name], self[name]) for name in self._buffers if name != "step"}
        return Dataset(data, coords={"step": self["step"], **coords})

    def __getitem__(self, name: str) -> np.ndarray:
        """Records of one variable, as an array (records, ...)."""
        if name not in self._buffers:
            known = ", ".join(self._buffers) or "nothing yet"
            raise KeyError(f"there is no record of {name!r}; recorded: {known}")
        return self._buffers[name][: self._kept].copy()


def _layout(chain: Chain) -> tuple[dict[str, tuple[str, ...]], dict[str, list[int]]]:
    """Dimensions by variable, and the coordinates of layers."""
    dims: dict[str, tuple[str, ...]] = {}
    coords: dict[str, list[int]] = {}
    position = 0
    for i, (block, shapes) in enumerate(zip(chain.blocks, chain.param_shapes(), strict=True)):
        layer = f"layer_{i}" if len(chain.blocks) > 1 else "layer"
        coords[layer] = list(range(position, position + block.count))
        position += block.count
        for name, (_, *shape) in shapes.items():
            key = f"{i}_{block.layer.word}_{name}"
            own = ["dim"] if shape == [chain.dim] else [f"{key}_dim_{j}" for j in range(len(shape))]
            dims[key] = dims[f"grad_{key}"] = ("step", layer, *own)
    return dims, coords
