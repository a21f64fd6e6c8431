"""The scalar equation behind the inverse of a planar layer, as a PyTensor Op."""

from types import ModuleType
from typing import Any

import numpy as np
from pytensor.graph.basic import Apply
from pytensor.scalar import BinaryScalarOp, upgrade_to_float
from pytensor.scalar import tanh as scalar_tanh

from pymc_flows.backends.dispatch import on_first_use, source_key
from pymc_flows.support.compat import Elemwise

# Newton's method needs at most 5 steps for s <= 10 and 19 for s up to 1e13. The limit ends the loop
# for arguments that are NaN.
_MAX_STEPS = 64
_EPS = float(np.finfo(np.float64).eps)


def solve_planar(s: Any, c: Any) -> np.ndarray:
    """Root ``a`` of ``a + (s - 1) tanh(a) = c`` for ``s > 0``, elementwise over broadcast arrays.

    The function is odd in a, so take c >= 0. It is convex for s < 1 and concave for s > 1. So
    Newton steps from an upper bound on the root for s < 1, or a lower one for s > 1, approach the
    root from that side only. The iteration needs no bracket, and ends as soon as a step would go
    back or the residual is rounding error.
    """
    s, c = np.broadcast_arrays(np.asarray(s, np.float64), np.asarray(c, np.float64))
    with np.errstate(all="ignore"):
        size = np.abs(c)
        a, active = _start(s, size, np), np.ones(size.shape, bool)
        for _ in range(_MAX_STEPS):
            a, active = _step(s, size, a, active, np)
            if not active.any():
                break
    return np.copysign(a, c)


def _start(s: Any, c: Any, xp: ModuleType) -> Any:
    """Bound on the root for c >= 0: an upper one where s < 1, a lower one where s >= 1.

    ``c - (s - 1)`` follows from tanh(a) <= 1, and ``c / s`` from tanh(a) <= a. The third bound is
    for small s, where the root approaches the cube root of 3c: tanh(a) <= a (15 + a²) / (15 + 6a²)
    gives c >= a³ / (3 + 1.2 a²) >= min(a³, a) / 4.2.
    """
    bound, chord = c - (s - 1), c / s
    cubic = xp.maximum(xp.cbrt(4.2 * c), 4.2 * c)
    return xp.where(s < 1, xp.minimum(xp.minimum(bound, chord), cubic), xp.maximum(bound, chord))


def _step(s: Any, c: Any, a: Any, active: Any, xp: ModuleType) -> tuple[Any, Any]:
    """One Newton step for c >= 0, taken where it still makes progress."""
    h = xp.tanh(a)
    residual = (a - h) + s * h - c
    new = a - residual / (h * h + (1 - h * h) * s)
    is_onward = xp.where(s < 1, (new < a) & (new >= 0), new > a)
    is_above_rounding = xp.abs(residual) > xp.finfo(a.dtype).eps * (a + c)
    active = active & is_onward & is_above_rounding
    return xp.where(active, new, a), active


class PlanarRoot(BinaryScalarOp):
    """Root ``a`` of ``a + (s - 1) tanh(a) = c`` for ``s > 0``.

    A scalar Op: wrapped in `Elemwise` it broadcasts, infers shapes and vectorises as ``add`` does.
    """

    # Without a C implementation, `Elemwise` evaluates whole arrays by this function.
    nfunc_spec = ("pymc_flows.flows.layers.residual.roots.solve_planar", 2, 1)

    def impl(self, s: Any, c: Any) -> Any:
        """Solve for one pair of numbers."""
        return solve_planar(s, c)

    def pullback(self, inputs: Any, outputs: Any, output_gradients: Any) -> list[Any]:
        """Differentiate by the implicit function theorem, in terms of the root."""
        s, _ = inputs
        (gradient,) = output_gradients
        h = scalar_tanh(outputs[0])
        square = h * h
        by_c = gradient / (square + (1 - square) * s)
        return [-h * by_c, by_c]


planar_root = Elemwise(PlanarRoot(upgrade_to_float, name="planar_root"))
"""``planar_root(s, c)``: root ``a`` of ``a + (s - 1) tanh(a) = c``, elementwise."""


@on_first_use("numba")
def _register_numba() -> None:
    from pymc_flows.support.compat import numba_njit, register_funcify_and_cache_key

    # The residual is a difference of rounded terms: reordering them would break the stopping rule.
    @numba_njit(fastmath=False)
    def planar_root(s, c):  # type: ignore[no-untyped-def]
        size = np.float64(abs(c))
        chord = size / s
        if s < 1.0:
            cubic = max(np.cbrt(4.2 * size), 4.2 * size)
            a = min(min(size - (s - 1.0), chord), cubic)
        else:
            a = max(size - (s - 1.0), chord)
        for _ in range(_MAX_STEPS):
            h = np.tanh(a)
            residual = (a - h) + s * h - size
            new = a - residual / (h * h + (1.0 - h * h) * s)
            is_onward = 0.0 <= new < a if s < 1.0 else new > a
            if not (is_onward and abs(residual) > _EPS * (a + size)):
                break
            a = new
        return np.copysign(a, c)

    @register_funcify_and_cache_key(PlanarRoot)
    def _(op: PlanarRoot, node: Apply, **_: Any) -> tuple[Any, str]:
        dtype = node.outputs[0].type.dtype
        key = f"PlanarRoot {dtype} {source_key(__name__)}"
        if dtype == "float64":
            return planar_root, key

        @numba_njit(fastmath=False)
        def planar_root_float32(s, c):  # type: ignore[no-untyped-def]
            return np.float32(planar_root(s, c))

        return planar_root_float32, key


@on_first_use("jax")
def _register_jax() -> None:
    import jax
    import jax.numpy as jnp

    from pymc_flows.support.compat import jax_funcify

    # JAX cannot differentiate a while loop backwards. Graphs whose gradients JAX takes itself, as a
    # JAX sampler does, rely on this rule.
    @jax.custom_jvp
    def planar_root(s: jax.Array, c: jax.Array) -> jax.Array:
        s, c = jnp.broadcast_arrays(s, c)
        size = jnp.abs(c)

        def is_running(state: tuple[int, jax.Array, jax.Array]) -> jax.Array:
            count, _, active = state
            return (count < _MAX_STEPS) & active.any()

        def advance(state: tuple[int, jax.Array, jax.Array]) -> tuple[int, jax.Array, jax.Array]:
            count, a, active = state
            return count + 1, *_step(s, size, a, active, jnp)

        start = (0, _start(s, size, jnp), jnp.ones(size.shape, bool))
        _, a, _ = jax.lax.while_loop(is_running, advance, start)
        return jnp.copysign(a, c)

    @planar_root.defjvp
    def _(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[jax.Array, jax.Array]:
        (s, _), (ds, dc) = primals, tangents
        a = planar_root(*primals)
        h = jnp.tanh(a)
        return a, (dc - h * ds) / (h * h + (1 - h * h) * s)

    @jax_funcify.register(PlanarRoot)
    def _(op: PlanarRoot, **_: Any) -> Any:
        return planar_root
