"""A model's log density at arrays of points, outside of the training loop.

For a model that sees its data batch by batch it is the log density of all rows, by a pass over
them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.traversal import graph_inputs
from pytensor.tensor.variable import TensorVariable

from pymc_flows.backends.functions import function_of
from pymc_flows.backends.jax import has_jax
from pymc_flows.backends.modes import NUMPY, training_mode
from pymc_flows.backends.ops import has_loop
from pymc_flows.backends.rewrites import loop_work
from pymc_flows.model.dry_run import dry_run
from pymc_flows.model.examine import plan_draws
from pymc_flows.model.logp import ModelDensity
from pymc_flows.model.replacements import DataValues
from pymc_flows.model.streams import stream_of
from pymc_flows.support.compat import TensorSharedVariable

# Points per call; the larger number if there are at least as many points.
ROWS, MANY_ROWS = 64, 4096
# Numbers that steps of series may process in NumPy, about ten seconds of work, before gradients are
# compiled, which takes longer than that; points per call of the compiled function.
MOST_LOOP_WORK, COMPILED_ROWS = 2_000_000_000, 8

type _Shapes = list[tuple[int, ...]]


@dataclass(frozen=True)
class _Function:
    """A function of ``rows`` points, planned for data of these shapes."""

    shapes: _Shapes
    rows: int
    call: Callable[..., list[np.ndarray]]


# Functions of each density, by number of points, and whether with gradients and of all rows.
_FUNCTIONS: WeakKeyDictionary[ModelDensity, dict[tuple[int, bool, bool], _Function]]
_FUNCTIONS = WeakKeyDictionary()
_LOOP_WORK: WeakKeyDictionary[ModelDensity, int] = WeakKeyDictionary()


class LogDensity:
    """Evaluates a model's log density, and its gradient, at one point or many.

    Functions are made once per density and run in NumPy, with three exceptions. Many rows in
    batches, and models with a Scan, whose steps NumPy would take in Python, run on JAX if it can
    run them, else on numba. Gradients run on numba once their series of many terms (of
    hypergeometric functions, say) have taken NumPy long.

    Parameters
    ----------
    density : ModelDensity
    all_rows : bool
        Where the model sees a batch of rows: whether to evaluate the log density of all rows
        instead of that of one batch.
    """

    def __init__(self, density: ModelDensity, *, all_rows: bool = True):
        self._density = density
        self._stream = stream_of(density) if all_rows else None

    def value(self, points: np.ndarray) -> np.ndarray:
        """Log density (n,) at points (n, dim) of the unconstrained space, in nats."""
        [value] = self._call(points, with_grad=False)
        return value

    def value_and_grad(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Log density (n,), in nats, and its gradient (n, dim) at points (n, dim)."""
        value, gradient = self._call(points, with_grad=True)
        return value, gradient

    def _call(self, points: np.ndarray, *, with_grad: bool) -> list[np.ndarray]:
        is_many = len(points) >= MANY_ROWS and self._stream is None
        wanted = 1 if len(points) == 1 else MANY_ROWS if is_many else ROWS
        if with_grad and _LOOP_WORK.get(self._density, 0) > MOST_LOOP_WORK:
            wanted = COMPILED_ROWS
        function, before = self._function(wanted, points[0], with_grad=with_grad), loop_work()
        points = points.astype(pytensor.config.floatX)
        if self._stream is None:
            found = _in_parts(function, points)
        else:
            found = self._stream.mean(lambda batch: _in_parts(function, points, *batch))
        if done := loop_work() - before:
            _LOOP_WORK[self._density] = _LOOP_WORK.get(self._density, 0) + done
        return found

    def _backend(self, near: np.ndarray) -> str | None:
        """The backend for many rows, or a loop that NumPy would step in Python; None if neither."""
        is_loop = has_loop(self._density.terms)
        if not is_loop and (self._stream is None or not self._stream.is_large):
            return None
        attempt = dry_run(self._density)
        why = attempt.why_not_jax(near) if has_jax() else "it is not installed"
        if why and is_loop:
            attempt.say_once(
                f"The log density has a loop that JAX cannot run: {why}.\n"
                "Numba compiles it instead, which takes longer."
            )
        return "numba" if why else "jax"

    def _function(self, wanted: int, near: np.ndarray, *, with_grad: bool) -> _Function:
        known = _FUNCTIONS.setdefault(self._density, {})
        # The shapes of the data decide how many points may be held at once.
        inputs = graph_inputs(self._density.terms)
        shared = [v for v in inputs if isinstance(v, TensorSharedVariable)]
        shapes = [np.shape(v.get_value(borrow=True)) for v in shared]
        key = wanted, with_grad, self._stream is not None
        found = known.get(key)
        if found is None or found.shapes != shapes:
            found = known[key] = self._make(wanted, near, shapes, with_grad=with_grad)
        return found

    def _make(
        self, wanted: int, near: np.ndarray, shapes: _Shapes, *, with_grad: bool
    ) -> _Function:
        """Make a function of ``wanted`` points or fewer, tried out near a point (dim,)."""
        density = self._density
        near = near.astype(pytensor.config.floatX)
        backend = "numba" if wanted == COMPILED_ROWS else self._backend(near)
        plan = plan_draws(density, wanted, near, backend or "numba")
        batch: list[TensorVariable] = []
        if self._stream is not None:
            density, batch = self._stream.density, self._stream.inputs
        rows = min(wanted, ROWS) if plan.micro_batch is None else plan.micro_batch
        z = pt.matrix("z", shape=(rows, density.dim), dtype=pytensor.config.floatX)
        outputs: list[TensorVariable]
        if with_grad:
            (prior, data), gradient, _ = density.value_and_grad(
                z, weights=[1.0, 1.0], micro_batch=plan.micro_batch
            )
            outputs = [prior + data, gradient]
        else:
            evaluate = density.looped if plan.micro_batch is None else density.batched
            outputs = [sum(evaluate(z))]
        mode = training_mode(backend) if backend else NUMPY
        return _Function(shapes, rows, function_of([z, *batch], outputs, mode=mode))


class DensityOfFit:
    """A log density that stays that of the data which the model has now.

    Parameters
    ----------
    density : ModelDensity
    """

    def __init__(self, density: ModelDensity):
        self._density = density
        self._data: DataValues | None = DataValues(density.named_terms.values())

    @property
    def current(self) -> ModelDensity:
        """The density; one with these data as constants where the model has got others since."""
        if self._data is not None and self._data.changed:
            self._density, self._data = self._density.replaced(self._data.constants()), None
        return self._density


def _in_parts(function: _Function, points: np.ndarray, *batch: np.ndarray) -> list[np.ndarray]:
    """Results of a function at points (n, dim), as many at a time as it takes."""
    parts = []
    for begin in range(0, len(points), function.rows):
        part = points[begin : begin + function.rows]
        padding = np.repeat(part[:1], function.rows - len(part), axis=0)
        with np.errstate(all="ignore"):
            found = function.call(np.concatenate([part, padding]), *batch)
        parts.append([np.asarray(x, dtype=float)[: len(part)] for x in found])
    return [np.concatenate(part) for part in zip(*parts, strict=True)]


def n_data(density: ModelDensity, *, all_rows: bool = True) -> int:
    """Count the numbers in the data of one evaluation: in all rows, or in a batch of them."""
    if all_rows and (stream := stream_of(density)) is not None:
        return stream.n_data
    found = 0
    for var in graph_inputs(density.terms):
        value = var.get_value(borrow=True) if isinstance(var, SharedVariable) else None
        data = getattr(var, "data", value)
        found += data.size if isinstance(data, np.ndarray) else 0
    return found
