"""An identity that compilers do not look through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pytensor.graph.basic import Apply, Variable
from pytensor.graph.op import Op
from pytensor.tensor import TensorVariable, as_tensor_variable

from pymc_flows.backends.dispatch import on_first_use, source_key


class Materialize(Op):
    """Return the input, computed as it is and no differently for what it is used for.

    Whether a gradient is recorded or not changes which operations are fused around it, and with
    them the last bit of the step. Behind this Op nothing is.
    """

    __props__ = ()
    view_map = {0: [0]}  # noqa: RUF012 - the name and kind that PyTensor reads

    def make_node(self, x: Any) -> Apply:
        """Same type out as in."""
        x = as_tensor_variable(x)
        return Apply(self, [x], [x.type()])

    def infer_shape(self, node: Apply, shapes: Sequence[Any]) -> list[Any]:
        """Same shape out as in."""
        return list(shapes)

    def perform(self, node: Apply, inputs: Sequence[Any], output_storage: Any) -> None:
        """Hand the array on."""
        output_storage[0][0] = inputs[0]


_materialize = Materialize()


def materialize(x: Variable) -> TensorVariable:
    """Return ``x`` behind an identity that compilers do not look through."""
    return _materialize(x)


@on_first_use("numba")
def _register_numba() -> None:
    from pymc_flows.support.compat import numba_njit, register_funcify_and_cache_key

    @numba_njit
    def identity(x):  # type: ignore[no-untyped-def]
        return x

    @register_funcify_and_cache_key(Materialize)
    def _(op: Materialize, node: Apply, **_: Any) -> tuple[Any, str]:
        return identity, f"Materialize {source_key(__name__)}"


@on_first_use("jax")
def _register_jax() -> None:
    from jax.lax import optimization_barrier

    from pymc_flows.support.compat import jax_funcify

    @jax_funcify.register(Materialize)
    def _(op: Materialize, **_: Any) -> Any:
        return optimization_barrier
