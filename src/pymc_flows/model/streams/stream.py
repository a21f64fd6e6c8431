"""All rows behind the batches of a model, and means over them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import pytensor.tensor as pt
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Variable
from pytensor.tensor.variable import TensorVariable

from pymc_flows.model.logp import ModelDensity
from pymc_flows.rows import Feed, Rows

# With more rows, a function of all of them is worth compiling.
FEW_ROWS = 200_000


class Stream:
    """Rows of which a model sees one batch.

    PyMC scales the log density of a batch by the number of all rows, so that its mean over batches
    is the log density of all rows, prior included. The same holds for derivatives.

    Parameters
    ----------
    density : ModelDensity
    variables : sequence of TensorVariable
        Variables of the model that stand for a batch.
    names : sequence of str
        Names of the columns, one for each variable.
    make : callable
        Returns the rows.
    in_steps : bool
        Whether the steps of a fit read the rows; else the model draws its batches itself.
    """

    def __init__(
        self,
        density: ModelDensity,
        variables: Sequence[Variable],
        names: Sequence[str],
        make: Callable[[], Rows],
        *,
        in_steps: bool,
    ):
        self._given = weakref.ref(density)  # which is kept with its stream
        self._variables, self._names, self._make = list(variables), list(names), make
        self.inputs: list[TensorVariable] = [
            v.type(n) for v, n in zip(variables, names, strict=True)
        ]
        self.in_steps = in_steps

    def _of(self) -> ModelDensity:
        density = self._given()
        assert density is not None  # whoever calls has just found this stream by it
        return density

    @cached_property
    def density(self) -> ModelDensity:
        """The log density with ``inputs`` in place of the batch."""
        return self._of().replaced(dict(zip(self._variables, self.inputs, strict=True)))

    @cached_property
    def prior(self) -> ModelDensity:
        """The log density of the prior alone."""
        given = self._of()
        other = given.copied()
        other.terms = [given.terms[0], pt.zeros(())]
        return other

    @property
    def rows(self) -> Rows:
        """All rows."""
        return self._make()

    @property
    def n_data(self) -> int:
        """Numbers in all rows."""
        width = sum(int(np.prod(v.type.shape[1:], dtype=int)) for v in self.inputs)
        return self.rows.total * width

    @property
    def is_large(self) -> bool:
        """Whether functions of all rows are worth compiling."""
        return self.rows.total > FEW_ROWS

    @property
    def batch(self) -> tuple[SharedVariable, ...]:
        """Shared variables whose values each step of a fit replaces."""
        return tuple(v for v in self._variables if isinstance(v, SharedVariable))

    def feed(self, seed: int) -> Feed:
        """The batches of a fit."""
        return self.rows.feed(self._names, seed)

    def mean(self, function: Callable[[list[np.ndarray]], list[np.ndarray]]) -> list[np.ndarray]:
        """The mean of a function of batches over all rows.

        Parameters
        ----------
        function : callable
            Gets a batch, one array for each of ``inputs``; returns arrays with a row for each
            point. Where the first array is −∞ for any batch, its mean is −∞.
        """
        rows = self.rows
        arrays = [array[0] for array in rows.buffers(1, self._names)]
        total: list[np.ndarray] = []
        nowhere = np.zeros(0, bool)
        for weight in rows.scan(self._names, arrays):
            found = function(arrays)
            if not total:
                total = [np.zeros(x.shape) for x in found]
                nowhere = np.zeros(len(found[0]), bool)
            nowhere |= found[0] == -np.inf
            for sum_, x in zip(total, found, strict=True):
                with np.errstate(invalid="ignore"):
                    sum_ += weight * x
        total[0][nowhere] = -np.inf
        return total
