"""What must be known about a log density before a training function is compiled.

Whether it is finite at the start and has a gradient, whether it can be evaluated for many draws
at once (decided by trying, on two draws and without compiling), how many draws fit into memory,
and which backend can run it.
"""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.graph.basic import Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.op import Op
from pytensor.graph.traversal import toposort
from pytensor.scan.op import Scan
from pytensor.tensor.blockwise import Blockwise
from pytensor.tensor.rewriting.shape import ShapeFeature
from pytensor.tensor.variable import TensorVariable

from pymc_flows.density import MICRO_BATCH_BYTES, ModelDensity
from pymc_flows.errors import BackendError, ModelError
from pymc_flows.modes import BACKENDS, NUMPY, training_mode

_log = logging.getLogger(__name__)

type Replacements = Mapping[Variable, Variable] | None


@dataclass(frozen=True)
class DrawPlan:
    """How the draws of one step go through the log density.

    Attributes
    ----------
    micro_batch : int or None
        Draws evaluated at once; None for a scan over single draws.
    reason : str
        Why draws are looped over, naming the Op; empty when they are not.
    """

    micro_batch: int | None
    reason: str = ""


def check_start(
    density: ModelDensity, start: np.ndarray, replacements: Replacements = None
) -> None:
    """Raise `ModelError` unless the log density has a gradient and is finite at the start.

    Parameters
    ----------
    density : ModelDensity
    start : ndarray, shape (dim,)
    """
    row = pt.vector("z", shape=(density.dim,), dtype=start.dtype)
    values = density.single(row, replacements)
    try:
        pytensor.grad(values[0] + values[1], row, disconnected_inputs="ignore")
    except (NotImplementedError, TypeError) as error:
        raise ModelError(
            f"the log density of the model has no gradient: {_first_line(error)}\n"
            "Variational inference follows the gradient of the log density; rewrite that term "
            "with differentiable operations or give its Op a gradient."
        ) from error
    found = [float(x) for x in pytensor.function([row], values, mode=NUMPY)(start)]
    if not np.isfinite(found).all():
        raise ModelError(_blame(density, start))


def _terms(density: ModelDensity, points: np.ndarray) -> dict[str, np.ndarray]:
    """Log density (n,) of each term of the model, at points (n, dim)."""
    model = density.model
    rvs = [*model.free_RVs, *model.observed_RVs]
    terms = [*model.logp(vars=rvs, sum=False), *model.replace_rvs_by_values(model.potentials)]
    names = [*(rv.name for rv in rvs), *(p.name for p in model.potentials)]
    values = [pt.as_tensor_variable(term).sum() for term in terms]
    fn = pytensor.function(model.value_vars, values, mode=NUMPY, on_unused_input="ignore")
    rows = [
        fn(*(z[s.slice].reshape(s.shape).astype(s.dtype) for s in density.slots)) for z in points
    ]
    return dict(zip(names, np.array(rows, dtype=float).T, strict=True))


def _blame(density: ModelDensity, start: np.ndarray) -> str:
    """Name the terms of the model that are not finite at the start."""
    bad = [
        f"  {name}: log density {x[0]}"
        for name, x in _terms(density, start[None]).items()
        if not np.isfinite(x[0])
    ]
    shown = ", ".join(
        f"{s.name}={np.array2string(start[s.slice].reshape(s.shape), threshold=6)}"
        for s in density.slots
    )
    return "\n".join(
        [
            "the log density of the model is not finite at the start",
            *bad,
            f"at {shown}",
            "Give the model another initial point (initval=) or pass start=; model.debug() "
            "shows the parameters of each term.",
        ]
    )


def why_not_finite(density: ModelDensity, points: np.ndarray) -> str:
    """Say at how many of the points (n, dim) which terms of the model are not finite."""
    lines = [
        f"  {name}: not finite at {int((~np.isfinite(x)).sum())} of {len(points)} draws"
        for name, x in _terms(density, points).items()
        if not np.isfinite(x).all()
    ]
    if not np.isfinite(points).all():
        lines.insert(0, "  the flow itself: draws are not finite")
    return "\n".join(lines or ["  all terms are finite at the current draws; a gradient is not"])


def plan_draws(
    density: ModelDensity,
    n_draws: int,
    start: np.ndarray,
    backend: str,
    replacements: Replacements = None,
) -> DrawPlan:
    """Decide how ``n_draws`` draws go through the log density on ``backend``.

    Raises
    ------
    BackendError
        If the backend lacks an Op of the log density.
    """
    missing = missing_ops(density, backend, replacements)
    if missing:
        raise BackendError(
            f"{backend} cannot run this model: it has no conversion for {', '.join(missing)}\n"
            f"Use backend={'numba' if backend == 'jax' else 'jax'!r}."
        )
    if n_draws == 1:
        return DrawPlan(None)
    reason = _why_not_batched(density, start, replacements)
    if reason:
        _log.warning("Draws are evaluated one after the other: %s.", reason)
        return DrawPlan(None, reason)
    limit = max(1, MICRO_BATCH_BYTES // max(1, bytes_per_draw(density, replacements)))
    return DrawPlan(max(m for m in range(1, n_draws + 1) if n_draws % m == 0 and m <= limit))


def _why_not_batched(
    density: ModelDensity, start: np.ndarray, replacements: Replacements
) -> str:
    """Try two draws at once, in NumPy; return what failed, or nothing."""
    row = pt.vector("z", shape=(density.dim,), dtype=start.dtype)
    try:
        pair = density.batched(pt.stack([row, row]), replacements)
        looping = [
            node.op.core_op
            for node in toposort(pair)
            if isinstance(node.op, Blockwise) and isinstance(node.op.core_op, Scan)
        ]
        if looping:
            return f"the log density contains {_op_name(looping[0])}"
        single = density.single(row, replacements)
        values = [*single, pytensor.grad(sum(single), row, disconnected_inputs="ignore")]
        z = pt.stack([row, row])
        pair = density.batched(z, replacements)
        pair_grad = pytensor.grad(sum(v.sum() for v in pair), z, disconnected_inputs="ignore")
        fn = pytensor.function([row], [*values, *pair, pair_grad], mode=NUMPY)
        prior, data, grad, *batched = fn(start)
    except Exception as error:  # noqa: BLE001 - whatever a model's Ops raise, draws can be looped over
        return f"vectorised over draws, {_failing_op(error)}"
    for one, two in zip((prior, data, grad), batched, strict=True):
        if not np.allclose(np.broadcast_to(one, np.shape(two)), two, rtol=1e-3, equal_nan=True):
            return "vectorised over draws, its value or gradient differs from that of single draws"
    return ""


def _failing_op(error: Exception) -> str:
    text = str(error)
    found = re.search(r"Apply node that caused the error: (.+?)(?:\(|\[|\n|$)", text)
    what = found.group(1).strip() if found else "an Op"
    return f"{what} fails ({type(error).__name__}: {_first_line(error)})"


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))


def _op_name(op: Op) -> str:
    return "a Scan" if isinstance(op, Scan) else str(op)


def bytes_per_draw(density: ModelDensity, replacements: Replacements = None) -> int:
    """Bytes of all unfused intermediates of value and gradient, per draw.

    Counted from shapes, so that the micro-batches depend on the model and its data alone.
    """
    z = pt.matrix("z", shape=(2, density.dim))
    values = density.batched(z, replacements)
    grad = pytensor.grad(sum(v.sum() for v in values), z, disconnected_inputs="ignore")
    fgraph = FunctionGraph(
        outputs=[*values, grad], clone=True, copy_inputs=False, features=[ShapeFeature()]
    )
    dependent = {z}
    sizes: list[TensorVariable] = []
    for node in fgraph.toposort():
        if dependent.isdisjoint(node.inputs):
            continue
        dependent.update(node.outputs)
        for var in node.outputs:
            if not isinstance(var, TensorVariable) or var.ndim == 0:
                continue
            shape = fgraph.shape_feature.shape_of[var]
            if shape is not None:
                sizes.append(pt.prod(pt.stack(shape)) * np.dtype(var.dtype).itemsize)
    fn = pytensor.function([z], sizes, mode=NUMPY, on_unused_input="ignore")
    return int(sum(int(size) for size in fn(np.zeros((2, density.dim))))) // 2


def has_jax() -> bool:
    """Tell whether JAX is installed, without importing it."""
    return importlib.util.find_spec("jax") is not None


def check_backend(backend: object) -> None:
    """Raise `BackendError` if ``backend`` is neither None nor the name of a usable backend."""
    if backend is None:
        return
    if backend not in BACKENDS:
        raise BackendError(
            f"unknown backend {backend!r}\nexpected one of {', '.join(map(repr, BACKENDS))} or None"
        )
    if backend == "jax" and not has_jax():
        raise BackendError(
            "backend 'jax' is not installed\nInstall it with: pip install 'pymc-flows[jax]'"
        )


def missing_ops(
    density: ModelDensity, backend: str, replacements: Replacements = None
) -> list[str]:
    """Names of the Ops of the log density that ``backend`` cannot run.

    Numba falls back to Python for an Op that it does not know, so only JAX lacks any. What has no
    conversion may still be rewritten into something that has: a suspicious graph is converted.
    """
    if backend != "jax":
        return []
    from pytensor.link.jax.dispatch import jax_funcify

    unknown = jax_funcify.dispatch(object)
    row = pt.vector("z", shape=(density.dim,))
    values = density.single(row, replacements)
    suspects = [
        op for op in _ops(values) if jax_funcify.dispatch(type(op)) is unknown
    ]
    if not suspects:
        return []
    try:
        pytensor.function([row], values, mode=training_mode("jax"))
    except NotImplementedError:
        return sorted({str(op) for op in suspects})
    return []


def _ops(outputs: Sequence[Variable]) -> list[Op]:
    ops = []
    for node in toposort(outputs):
        op = node.op.core_op if isinstance(node.op, Blockwise) else node.op
        ops.append(op)
        if isinstance(op, Scan):
            ops.extend(_ops(op.fgraph.outputs))
    return ops
