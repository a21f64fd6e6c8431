"""Sums over processes, inside the function that each has compiled for its own rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import pytensor.tensor as pt
from pytensor.compile.mode import Mode
from pytensor.graph.basic import Apply
from pytensor.graph.op import Op

from pymc_flows.backends.dispatch import on_first_use
from pymc_flows.backends.modes import relinked, training_mode
from pymc_flows.support.compat import shard_map

if TYPE_CHECKING:
    from jax.sharding import Mesh


class AllSum(Op):
    """Sum an array over the devices of a mesh; on JAX, in a function of `mesh_mode`.

    Parameters
    ----------
    axes : tuple of str
        Axes of the mesh.
    """

    __props__ = ("axes",)

    def __init__(self, axes: tuple[str, ...]):
        self.axes = axes

    def make_node(self, x: Any) -> Apply:
        """Keep the type."""
        x = pt.as_tensor_variable(x)
        return Apply(self, [x], [x.type()])

    def perform(self, node: Apply, inputs: Any, output_storage: Any) -> None:
        """Refuse: only JAX knows the other devices."""
        raise NotImplementedError("a sum over devices runs on JAX alone")


@on_first_use("jax")
def _register() -> None:
    import jax

    from pymc_flows.support.compat import jax_funcify

    @jax_funcify.register(AllSum)
    def _all_sum(op: AllSum, **_: Any) -> Callable[[Any], Any]:
        return lambda x: jax.lax.psum(x, op.axes)


@lru_cache
def mesh_mode(mesh: Mesh) -> Mode:
    """Compile the training loop for the part of the data that each device of a mesh has.

    Of arguments that are spread over the mesh, each device gets its part; all other arguments, and
    all results, are the same on every device.
    """
    from pymc_flows.support.compat import JAXLinker

    class LocalLinker(JAXLinker):
        def jit_compile(self, fn: Callable[..., Any]) -> Callable[..., Any]:
            return _on_each_device(fn, mesh)

    return relinked(training_mode("jax"), LocalLinker())


def _on_each_device(fn: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    @lru_cache
    def compiled(specs: tuple[Any, ...]) -> Callable[..., Any]:
        return jax.jit(shard_map(fn, mesh, specs, PartitionSpec()))

    def call(*args: Any) -> Any:
        placed = [getattr(x, "sharding", None) for x in args]
        specs = [s.spec if isinstance(s, NamedSharding) else PartitionSpec() for s in placed]
        return compiled(tuple(specs))(*args)

    return call
