"""The arrays that a Hessian is made of, at many points in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.tensor.variable import TensorVariable

from pymc_flows.backends.functions import function_of
from pymc_flows.backends.modes import NUMPY, no_compiler
from pymc_flows.model.batching import vectorized
from pymc_flows.model.logp import ModelDensity
from pymc_flows.model.structure.rows import Floats

# Numbers in all arrays of one call; with more than ``LARGE`` for each point, points are evaluated
# one by one, since calls are no longer what costs most.
MOST = 200_000
LARGE = 20_000
# Differences from the values at one point that may be rounding, relative to the largest.
ROUNDING = 1e-8


class Batched:
    """Evaluates arrays of a density at points (n, dim), if its graph can be vectorised.

    Parameters
    ----------
    density : ModelDensity
    outputs : sequence of TensorVariable
        Functions of one point.
    """

    def __init__(self, density: ModelDensity, outputs: Sequence[TensorVariable]):
        self._density = density
        self._ndims = [out.ndim for out in outputs]
        self._function = self._compile(outputs)

    @property
    def exists(self) -> bool:
        """Whether the graph could be vectorised."""
        return self._function is not None

    def __call__(self, points: Floats) -> list[Floats]:
        """Arrays (n, size), flat for each point; (1, size) if they are the same at all points."""
        assert self._function is not None
        found = self._function(points.astype(pytensor.config.floatX))
        return [
            np.reshape(np.asarray(a, float), (len(points) if np.ndim(a) > ndim else 1, -1))
            for a, ndim in zip(found, self._ndims, strict=True)
        ]

    def agrees(self, point: Floats, arrays: Sequence[Floats]) -> bool:
        """Whether it gives these arrays (1, size) at a point."""
        found = [a[:1] for a in self(np.stack([point, point]))]
        return all(
            a.shape == b.shape
            and np.allclose(a, b, rtol=0, atol=ROUNDING * np.abs(b).max(initial=0), equal_nan=True)
            for a, b in zip(found, arrays, strict=True)
        )

    def _compile(
        self, outputs: Sequence[TensorVariable]
    ) -> Callable[[Floats], list[Floats]] | None:
        density = self._density
        z = pt.matrix("z", shape=(None, density.dim), dtype=pytensor.config.floatX)
        with no_compiler():
            batch = vectorized(outputs, density.unpack(z), "the curvature")
            if isinstance(batch, str) or batch.reason:
                return None
            found: Callable[[Floats], list[Floats]] = function_of([z], batch.outputs, mode=NUMPY)
            return found
