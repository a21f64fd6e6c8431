"""Whether a backend can evaluate a log density, and its draws together: tried without compiling."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence, Set
from functools import cached_property
from threading import RLock
from typing import Any
from weakref import WeakKeyDictionary, ref

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.graph.basic import Variable
from pytensor.graph.traversal import graph_inputs, toposort
from pytensor.tensor.variable import TensorVariable

from pymc_flows.backends import jax as _jax
from pymc_flows.backends.functions import function_of
from pymc_flows.backends.modes import NUMPY, PLAIN, metered
from pymc_flows.backends.ops import failing_op, first_line
from pymc_flows.errors import ModelError
from pymc_flows.model.batching import NO_DERIVATIVE, Batch, dependent_variables
from pymc_flows.model.logp import ModelDensity, Replacements
from pymc_flows.support.compat import compiled_graph

_log = logging.getLogger(__name__)

# Values and gradients of several draws may differ from those of single draws by this relative
# error, and by so many rounding errors of the largest coordinate.
RTOL = 1e-3
NOISE = 1_000


class DryRun:
    """The log density for one draw and for a few at once, ready to be evaluated in NumPy.

    Parameters
    ----------
    density : ModelDensity

    Raises
    ------
    ModelError
        If the log density has no gradient.
    """

    def __init__(self, density: ModelDensity):
        self._density = ref(density)  # which a dry run must not keep alive
        self._said: set[str] = set()
        self._lock = RLock()  # fits of several threads may have the same density
        self._mode = PLAIN
        self._arrays: list[tuple[tuple[int, ...], int]] = []
        self._dependent: set[Variable] = set()
        self._difference: str | None = None  # not looked for yet
        self._row = pt.vector("z", shape=(density.dim,), dtype=pytensor.config.floatX)
        values = density.single(self._row)
        self._one = [*values, _gradient(values, self._row)]

    def say_once(self, message: str) -> None:
        """Log a warning, unless it has been logged before."""
        with self._lock:
            is_new = message not in self._said
            self._said.add(message)
        if is_new:
            _log.warning(message)

    # ----------------------------------------------------------------------------------- one draw

    def values(self, point: np.ndarray) -> list[float]:
        """Log prior and log likelihood at a point (dim,), in nats.

        Raises
        ------
        ModelError
            If they cannot be evaluated there.
        """
        try:
            prior, data, _ = self._evaluate(point)
            if not np.isfinite([prior, data]).all():  # the stable form of the graph may be finite
                fn = function_of([self._row], self._one[:2], mode=NUMPY)
                prior, data = fn(point)
        except Exception as error:
            raise ModelError(
                "the log density of the model cannot be evaluated at the start: "
                f"{failing_op(error)}"
            ) from error
        return [float(prior), float(data)]

    def bytes_per_draw(self, point: np.ndarray, *, apart_from: Set[int] = frozenset()) -> int:
        """Bytes of all intermediates of value and gradient for one draw, without fusion.

        They follow from shapes alone, so that micro-batches depend on model and data only. Arrays
        that have an axis of one of the lengths ``apart_from`` are left out.
        """
        with self._lock:
            self._evaluate(point)
            return sum(size for shape, size in self._arrays if apart_from.isdisjoint(shape))

    def _evaluate(self, point: np.ndarray) -> list[np.ndarray]:
        with self._lock:
            self._arrays = []
            try:
                return self._function(point)
            except Exception:
                if self._mode is NUMPY:
                    raise
                # A few Ops run only after PyTensor's rewrites, and raise anything before. A fault
                # of the model itself is raised again in the other mode.
                self._mode = NUMPY
                del self._function
                return self._evaluate(point)

    @cached_property
    def _function(self) -> Any:
        mode = metered(self._mode, self._meter)
        fn = pytensor.function([self._row], self._one, mode=mode, on_unused_input="ignore")
        graph = compiled_graph(fn)
        self._dependent = dependent_variables(graph.outputs, graph.inputs[:1])
        return fn

    def _meter(self, *, node: Any, storage_map: dict[Variable, list[Any]], **_: object) -> None:
        if not node.op.view_map:
            for var in self._dependent.intersection(node.outputs):
                value = storage_map[var][0]
                self._arrays.append((np.shape(value), getattr(value, "nbytes", 0)))

    # ------------------------------------------------------------------------------ several draws

    def why_not_batched(self, point: np.ndarray, backend: str) -> str:
        """Say why ``backend`` must loop over draws, naming the Op; nothing if it need not.

        Decided by trying: a few draws around the point in NumPy, and for JAX by tracing.
        """
        with self._lock:
            found = self._vectorized
            if reason := found if isinstance(found, str) else found.reason:
                return reason
            if self._difference is None:
                self._difference = self._compare(point)
            return self._difference or (self._why_not_batched_on_jax if backend == "jax" else "")

    def why_not_jax(self, point: np.ndarray) -> str:
        """Say why JAX cannot run the log density at all; nothing if it can."""
        with self._lock:
            return self._why_not_looped_on_jax if self.why_not_batched(point, "jax") else ""

    @cached_property
    def _draws(self) -> TensorVariable:
        n = _unlike_any_size(self._one)
        return pt.matrix("z", shape=(n, *self._row.type.shape), dtype=self._row.dtype)

    @property
    def _model_density(self) -> ModelDensity:
        density = self._density()
        assert density is not None  # whoever calls has just found this dry run by it
        return density

    @cached_property
    def _vectorized(self) -> Batch | str:
        return self._model_density.vectorized(self._draws)

    @cached_property
    def _batch(self) -> list[TensorVariable]:
        """Values and gradient for several draws, once it is known that they vectorise."""
        assert isinstance(self._vectorized, Batch)
        values = self._vectorized.outputs
        return [*values, _gradient(values, self._draws)]

    def _compare(self, point: np.ndarray) -> str:
        noise = np.random.default_rng(0).standard_normal(self._draws.type.shape)
        noise[0] = 0
        points = (point + 0.1 * noise).astype(point.dtype)
        expected = [np.stack(x) for x in zip(*map(self._evaluate, points), strict=True)]
        try:
            found = function_of([self._draws], self._batch, mode=self._mode)(points)
        except Exception as error:  # whatever an Op raises, draws can be looped over
            return f"vectorised over draws, {failing_op(error)}"
        if all(map(_agree, found, expected)):
            return ""
        return "vectorised over draws, its value or gradient differs from that of single draws"

    @cached_property
    def _why_not_batched_on_jax(self) -> str:
        if _jax.is_plain(self._batch):
            return ""
        error = self._jax_error(self._batch)
        return f"vectorised over draws on JAX, {error}" if error else ""

    @cached_property
    def _why_not_looped_on_jax(self) -> str:
        values, gradient, _ = self._model_density.value_and_grad(
            self._draws, weights=[1, 1], micro_batch=None
        )
        error = self._jax_error([*values, gradient])
        if error and (unknown := _jax.unknown_ops(self._one)):
            return f"it has no conversion for {', '.join(unknown)}"
        return error

    def _jax_error(self, outputs: Sequence[TensorVariable]) -> str:
        try:
            _jax.trace(self._draws, outputs)
        except Exception as error:  # whatever JAX says, it cannot run this
            return failing_op(error)
        return ""


_DRY_RUNS: WeakKeyDictionary[ModelDensity, DryRun] = WeakKeyDictionary()


def dry_run(density: ModelDensity, replacements: Replacements = None) -> DryRun:
    """Return the dry run of a log density, made once.

    Raises
    ------
    ModelError
        If the log density has no gradient.
    """
    density = density.replaced(replacements)
    if density not in _DRY_RUNS:
        _DRY_RUNS[density] = DryRun(density)
    return _DRY_RUNS[density]


def _gradient(values: Sequence[TensorVariable], z: TensorVariable) -> TensorVariable:
    try:
        return pytensor.grad(sum(v.sum() for v in values), z, disconnected_inputs="ignore")
    except NO_DERIVATIVE as error:
        raise ModelError(
            f"the log density of the model has no gradient: {first_line(error)}\n"
            "Variational inference follows the gradient of the log density; rewrite that term "
            "with differentiable operations or give its Op a gradient."
        ) from error


def _unlike_any_size(outputs: Sequence[Variable]) -> int:
    """The least number of draws, from 3 on, that is no size of an axis of the model."""
    variables = [*graph_inputs(outputs), *(v for node in toposort(outputs) for v in node.outputs)]
    sizes = {size for var in variables for size in getattr(var.type, "shape", ())}
    for var in variables:
        if hasattr(var, "get_value"):
            sizes.update(np.shape(var.get_value(borrow=True)))
    return next(n for n in itertools.count(3) if n not in sizes)


def _agree(found: np.ndarray, expected: np.ndarray) -> bool:
    """Whether values of draws (n, ...) are equal but for rounding, which some models magnify.

    Each coordinate is measured by its own scale over the draws: a small gradient must not hide
    behind a large one. The noise that is left of terms that cancel has the scale of the largest.
    """
    if np.shape(found) != expected.shape:
        return False
    own = np.max(np.abs(expected), axis=0, initial=0, where=np.isfinite(expected))
    noise = NOISE * np.finfo(expected.dtype).eps * np.max(own, initial=0)
    with np.errstate(invalid="ignore"):
        same = np.abs(found - expected) <= RTOL * own + noise
    same |= (found == expected) | (np.isnan(found) & np.isnan(expected))
    return bool(same.all())
