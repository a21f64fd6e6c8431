"""The random generators that a model itself uses, such as those of a minibatch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytensor.tensor as pt
from pymc.pytensorf import collect_default_updates
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.op import Op

from pymc_flows.flows._dispatch import on_first_use


def model_rngs(
    outputs: Sequence[Variable], noise: Variable, seed: np.random.SeedSequence, backend: str
) -> tuple[dict[Variable, Variable], list[object]]:
    """Find the generators in the graph of a step.

    Returns
    -------
    updates : dict of Variable to Variable
        Each generator, and what it is after the step.
    values : list
        A fresh seeded generator for each, in the form that the backend takes.
    """
    updates = collect_default_updates(outputs, inputs=[noise])
    values: list[object] = [np.random.default_rng(child) for child in seed.spawn(len(updates))]
    if backend == "jax" and values:
        from pytensor.link.jax.dispatch import jax_typify

        values = [jax_typify(value) for value in values]
    return updates, values


class ChooseGenerator(Op):
    """``then if condition else otherwise`` of two random generators, always as a new object."""

    __props__ = ()

    def make_node(self, condition: Any, then: Variable, otherwise: Variable) -> Apply:
        condition = pt.as_tensor_variable(condition)
        return Apply(self, [condition, then, otherwise], [then.type()])

    def perform(self, node: Apply, inputs: Sequence[Any], outputs: Sequence[list[Any]]) -> None:
        condition, then, otherwise = inputs
        outputs[0][0] = _copy(then if condition else otherwise)


def _copy(rng: np.random.Generator) -> np.random.Generator:
    bits = type(rng.bit_generator)()
    bits.state = rng.bit_generator.state
    return np.random.Generator(bits)


choose_generator = ChooseGenerator()


@on_first_use("jax")
def _register_jax() -> None:
    import jax
    from pytensor.link.jax.dispatch import jax_funcify

    @jax_funcify.register(ChooseGenerator)
    def jax_choose(op: Op, **kwargs: object) -> Any:
        def choose(condition: Any, then: Any, otherwise: Any) -> Any:
            return jax.tree.map(lambda a, b: jax.numpy.where(condition, a, b), then, otherwise)

        return choose
