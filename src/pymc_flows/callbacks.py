"""In-loop tracking of parameters and gradients."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from pymc.variational.callbacks import Callback
from xarray import Dataset

from pymc_flows.errors import FlowError
from pymc_flows.flows import Chain


class Tracker(Callback):
    """Records parameters and gradients of every step inside the compiled training loop.

    Give it to ``NFVI.fit(callbacks=[tracker])``. Nothing is called from Python for a step: values
    leave the loop with its losses. Gradients are the very ones that the optimizer used; parameters
    are those after the step.

    Parameters
    ----------
    params, grads : bool
        What to record.
    max_bytes : int
        Limit of what is kept. Whenever it is reached, every second record is dropped and from then
        on half as many are kept.

    Attributes
    ----------
    dataset : xarray.Dataset
        Variables ``{position}_{word}_{param}``, position counting blocks from 0, and ``grad_…``
        for gradients. Dimensions: ``step`` (the step's number as coordinate), then the repeats of
        the block (``layer``, or ``layer_{position}`` if the formula has several blocks; positions
        in the expanded formula as coordinate), then the parameter's own.

    Raises
    ------
    FlowError
        If there is nothing to record, or when another inference than NFVI uses it.
    """

    def __init__(self, *, params: bool = True, grads: bool = True, max_bytes: int = 256 * 2**20):
        if not (params or grads):
            raise FlowError("a Tracker that records neither params nor grads records nothing")
        if max_bytes <= 0:
            raise FlowError(f"max_bytes must be positive, got {max_bytes!r}")
        self.params = params
        self.grads = grads
        self.max_bytes = max_bytes
        self.clear()

    def clear(self) -> None:
        """Forget all records."""
        self.stride = 1
        self._steps: list[np.ndarray] = []
        self._records: dict[str, list[np.ndarray]] = {}
        self._dims: dict[str, tuple[str, ...]] = {}
        self._coords: dict[str, list[int]] = {}

    def __call__(self, approx: object, loss: object, i: int) -> None:  # noqa: ARG002
        """Refuse to be called step by step."""
        raise FlowError(
            "pymc_flows.callbacks.Tracker records inside the compiled loop of NFVI.fit\n"
            "For other inferences use pymc.variational.callbacks.Tracker."
        )

    def describe(self, chain: Chain) -> None:
        """Learn the layout of what will be recorded."""
        several = len(chain.blocks) > 1
        position = 0
        for i, (block, shapes) in enumerate(zip(chain.blocks, chain.param_shapes(), strict=True)):
            layer = f"layer_{i}" if several else "layer"
            self._coords[layer] = list(range(position, position + block.count))
            position += block.count
            for name, (_, *shape) in shapes.items():
                key = f"{i}_{block.layer.word}_{name}"
                axes = ["dim" if shape == [chain.dim] else f"{name}_{j}" for j in range(len(shape))]
                self._dims[key] = self._dims[f"grad_{key}"] = ("step", layer, *axes)

    def record(self, first: int, values: Mapping[str, np.ndarray]) -> None:
        """Keep the records of consecutive steps.

        Parameters
        ----------
        first : int
            Number of the first of these steps, from 1.
        values : mapping of str to ndarray, shape (steps, ...)
        """
        wanted = {k: v for k, v in values.items() if k in self._dims and self._records_name(k)}
        n = len(next(iter(wanted.values())))
        steps = np.arange(first, first + n)
        kept = (steps - 1) % self.stride == 0
        self._steps.append(steps[kept])
        for name, value in wanted.items():
            self._records.setdefault(name, []).append(value[kept])
        while self.nbytes > self.max_bytes and sum(map(len, self._steps)) > 1:
            self._halve()

    def _records_name(self, name: str) -> bool:
        return self.grads if name.startswith("grad_") else self.params

    @property
    def nbytes(self) -> int:
        """Bytes kept."""
        return sum(a.nbytes for arrays in self._records.values() for a in arrays)

    def _halve(self) -> None:
        self.stride *= 2
        steps = np.concatenate(self._steps)
        kept = (steps - 1) % self.stride == 0
        self._steps = [steps[kept]]
        self._records = {k: [np.concatenate(v)[kept]] for k, v in self._records.items()}

    @property
    def dataset(self) -> Dataset:
        """All records so far."""
        if not self._steps:
            return Dataset()
        data = {k: (self._dims[k], np.concatenate(v)) for k, v in self._records.items()}
        used = {dim for dims, _ in data.values() for dim in dims}
        coords = {k: v for k, v in self._coords.items() if k in used}
        return Dataset(data, coords={"step": np.concatenate(self._steps), **coords})

    def __getitem__(self, name: str) -> np.ndarray:
        """Records of one variable, as an array (records, ...)."""
        return np.concatenate(self._records[name])
