"""The random generators of a model, such as those of a minibatch, and their states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.op import Op
from pytensor.graph.replace import graph_replace

from pymc_flows.backends.dispatch import on_first_use
from pymc_flows.backends.ops import random_inputs
from pymc_flows.support.compat import collect_default_updates

_STATE_DTYPES = ("int32", "int64", "uint32", "uint64")


def model_rngs(
    outputs: Sequence[Variable], noise: Variable, seed: np.random.SeedSequence, backend: str
) -> tuple[dict[Variable, Variable], list[object]]:
    """Find the generators in the graph of a step.

    Returns
    -------
    updates : dict of Variable to Variable
        Each generator, and the generator after the step.
    values : list
        A fresh seeded generator for each, in the form that the backend takes.
    """
    updates = collect_default_updates(outputs, inputs=[noise])
    values: list[object] = [np.random.default_rng(child) for child in seed.spawn(len(updates))]
    if backend == "jax" and values:
        from pymc_flows.support.compat import jax_typify

        values = [jax_typify(value) for value in values]
    return updates, values


def with_fixed_generators(outputs: Sequence[Variable]) -> list[Variable]:
    """The same graphs with new generators, seeded 0, 1, ….

    A model's own generators have random seeds: each evaluation of its density would differ.
    """
    own = {
        rng: pytensor.shared(np.random.default_rng(k))
        for k, rng in enumerate(random_inputs(outputs))
    }
    return graph_replace(list(outputs), own, strict=False) if own else list(outputs)


def encode_state(state: Any) -> Any:
    """Encode the state of a generator, NumPy's or JAX's, for JSON."""
    if isinstance(state, np.random.Generator):
        state = state.bit_generator.state
    if isinstance(state, Mapping):
        return {key: encode_state(value) for key, value in state.items()}
    if isinstance(state, str | int | float):
        return state
    array = np.asarray(state)
    return [str(array.dtype), array.tolist()]


def decode_state(found: Any, like: Any) -> Any:
    """Decode the result of `encode_state`, which may be any JSON value of a file.

    ``like`` is a state of the same kind of generator.

    Raises
    ------
    ValueError, TypeError, OverflowError
        If it is not the state of such a generator.
    """
    if isinstance(like, np.random.Generator):
        rng = _copy(like)
        set_state(rng, decode_state(found, like.bit_generator.state))
        return rng
    if isinstance(like, Mapping):
        if not isinstance(found, dict) or found.keys() != like.keys():
            raise ValueError(f"a generator needs {list(like)}")
        return {key: decode_state(found[key], value) for key, value in like.items()}
    if isinstance(found, list):
        dtype, values = found
        if dtype not in _STATE_DTYPES:
            raise ValueError(f"a generator has no {dtype!r}")
        array = np.array(values, dtype)
        if array.shape != np.shape(like):
            raise ValueError(f"a generator needs shape {np.shape(like)}, got {array.shape}")
        return array
    if type(found) is not type(like) or (isinstance(found, str) and found != like):
        raise ValueError(f"a generator needs something like {like!r}, got {found!r}")
    return found


def set_state(rng: np.random.Generator | np.random.RandomState, state: dict[str, Any]) -> None:
    """Set the state of a NumPy generator."""
    if isinstance(rng, np.random.Generator):
        rng.bit_generator.state = state
        return
    # NumPy does not check this, and would read beyond the end.
    if not 0 <= state["state"]["pos"] <= len(state["state"]["key"]):
        raise ValueError(f"a generator has no position {state['state']['pos']}")
    rng.set_state(state)


class ChooseGenerator(Op):
    """``then if condition else otherwise`` of two random generators, always as a new object."""

    __props__ = ()

    def make_node(self, condition: Any, then: Variable, otherwise: Variable) -> Apply:
        """Take the type of ``then``."""
        condition = pt.as_tensor_variable(condition)
        return Apply(self, [condition, then, otherwise], [then.type()])

    def perform(self, node: Apply, inputs: Sequence[Any], outputs: Sequence[list[Any]]) -> None:
        """Copy the chosen generator."""
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

    from pymc_flows.support.compat import jax_funcify

    @jax_funcify.register(ChooseGenerator)
    def jax_choose(op: Op, **kwargs: object) -> Any:
        def choose(condition: Any, then: Any, otherwise: Any) -> Any:
            return jax.tree.map(lambda a, b: jax.numpy.where(condition, a, b), then, otherwise)

        return choose
