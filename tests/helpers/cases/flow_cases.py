"""The flows under test and the means to evaluate them.

To put a flow through every invariant test, list one instance of it in `LAYERS`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.compile.mode import Mode
from pytensor.graph.fg import FunctionGraph
from pytensor.link.basic import PerformLinker

from pymc_flows.flows import (
    IAF,
    MAF,
    NSF,
    NVP,
    Block,
    Chain,
    Flow,
    Householder,
    Loc,
    Loft,
    LowRank,
    Perm,
    Planar,
    Radial,
    Scale,
    Spline,
    Sylvester,
    Tail,
    Tril,
    build_chain,
)

# Nothing is compiled and nothing rewritten: fast, and a switch computes both of its branches.
MODE = Mode(linker="py", optimizer=None)
DIMS = (1, 2, 20)


@dataclass(frozen=True)
class Stretch(Flow):
    """A user's flow that states no inverse: z' = z + softplus(c) tanh(z) in each coordinate."""

    word: ClassVar[str] = "stretch"
    equation: ClassVar[str] = "z + c tanh(z)"
    is_elementwise: ClassVar[bool] = True
    gain: float = 1.0

    def param_shapes(self, dim):
        return {"c": (dim,)}

    def reference_params(self, dim, count, rng):
        return {"c": np.zeros((count, dim))}

    def constrain(self, raw):
        return {"slope": self.gain * pt.softplus(raw["c"])}

    def forward_and_log_det(self, z, params):
        h = pt.tanh(z)
        slope = params["slope"]
        return z + slope * h, pt.log1p(slope * (1 - pt.sqr(h))).sum(axis=-1)


LAYERS = (
    Loc(),
    Scale(),
    Householder(),
    Planar(),
    Radial(),
    Tril(),
    LowRank(rank=2),
    Perm(),
    Perm(kind="random", seed=1),
    Perm(kind="rotate", seed=2),
    Loft(threshold=1.0),
    Tail(),
    Sylvester(rank=2),
    Stretch(),
    NVP(hidden=5, depth=2),
    IAF(hidden=5, depth=2),
    MAF(depth=0),
    Spline(bins=4),
    NSF(hidden=5, depth=1, bins=4, bound=3.0),
    NSF(hidden=5, depth=1, bins=3, waves=4, frequency=2.0),
)
ALL_FIVE = "scale-radial*2-hh*3-planar*2-loc"


def one_block(layer: Flow, count: int, dim: int) -> Chain:
    return Chain(dim, (Block(layer, count),))


def chains(dims: Sequence[int] = DIMS, *, with_inverse: bool = False) -> list:
    """Parameters of a test: each layer alone, three in a row, and a chain of all five."""
    cases = [
        pytest.param(one_block(layer, count, dim), id=f"{layer.word}*{count}-{dim}d")
        for layer in LAYERS
        for count in (1, 3)
        for dim in dims
        if layer.has_inverse or not with_inverse
    ]
    return cases + [pytest.param(build_chain(ALL_FIVE, dim), id=f"five-{dim}d") for dim in dims]


def layers(condition: Callable[[Flow], bool] = lambda layer: True) -> list:
    """Parameters of a test: each layer that fulfils the condition."""
    return [pytest.param(layer, id=layer.word) for layer in LAYERS if condition(layer)]


def loops(chain: Chain) -> tuple[str, ...]:
    """Ways of going through the layers that give different graphs: one layer is no loop."""
    is_long = any(block.count > 1 for block in chain.blocks)
    return ("unroll", "scan") if is_long else ("unroll",)


def normal_params(chain: Chain, rng: np.random.Generator, *, dtype: str = "float64") -> tuple:
    """Raw parameters N(0, 1) as shared variables; those of a matrix are smaller."""
    values = tuple(
        {
            name: rng.standard_normal(shape) / np.sqrt(max(1, np.prod(shape[1:]) / chain.dim))
            for name, shape in shapes.items()
        }
        for shapes in chain.param_shapes()
    )
    return shared_params(values, dtype=dtype)


def shared_params(values: Sequence, *, dtype: str = "float64") -> tuple:
    return tuple(
        {name: fixed(array, dtype=dtype) for name, array in each.items()} for each in values
    )


def fixed(value, *, dtype: str = "float64"):
    """A shared variable with static shape; unlike a constant it has a gradient."""
    value = np.asarray(value, dtype)
    return pytensor.shared(value, shape=value.shape)


def flat(params: Sequence) -> list:
    return [variable for each in params for variable in each.values()]


def compiled(inputs: Sequence, outputs: Sequence) -> Callable:
    # The flag is for the inner function of a scan, which has a mode of its own.
    with pytensor.config.change_flags(linker="py"):
        return pytensor.function(list(inputs), list(outputs), mode=MODE)


def evaluate(*outputs) -> list[np.ndarray]:
    """Values of graphs of shared variables, as `MODE` gives them.

    Node by node: a function would first copy the graph, which takes longer than its values.
    """
    graph = FunctionGraph(outputs=outputs, clone=False)
    values = [[variable.get_value()] for variable in graph.inputs]
    with pytensor.config.change_flags(linker="py"):
        run, _, results = PerformLinker().accept(graph).make_thunk(input_storage=values)
    run()
    return [result.value for result in results]


def jacobian(function: Callable, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Value (n, dim), log-determinant (n,) and autodiff Jacobian (n, dim, dim) at points (n, dim).

    Each point is repeated dim times, so that one gradient gives all rows of its Jacobian.
    """
    dim = points.shape[-1]
    repeated = fixed(np.repeat(points[:, None, :], dim, axis=1))
    value, log_det = function(repeated)
    rows = pt.grad((value * np.eye(dim)).sum(), repeated, disconnected_inputs="raise")
    value, log_det, rows = evaluate(value, log_det, rows)
    return value[:, 0], log_det[:, 0], rows
