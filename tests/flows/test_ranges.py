"""What every flow must fulfil for parameters of every size, and in single precision."""

import numpy as np
import pytensor.tensor as pt
import pytest
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.replace import vectorize_graph
from pytensor.graph.traversal import ancestors
from pytensor.tensor.shape import Shape

from flow_cases import (
    ALL_FIVE,
    chains,
    evaluate,
    fixed,
    flat,
    layers,
    loops,
    normal_params,
    one_block,
    shared_params,
)
from pymc_flows.backends.modes import NUMPY
from pymc_flows.flows import build_chain

# Raw values are promised to be safe up to 1e6 and at 0. Between, there are sizes whose squares,
# products or reciprocals leave the range of the type.
MAGNITUDES = {
    "float64": (0, 1e-300, 1e-160, 1e-90, 1e-76, 1e-15, 1e-8, 1, 5, 100, 1e3, 1e6),
    "float32": (0, 1e-40, 1e-30, 1e-12, 4e-10, 1e-8, 1e-4, 1, 5, 100, 1e3, 1e6),
}


def extreme_raw_values(shapes, dim, dtype, rng, *, cases=150):
    """Raw parameters and points, the cases first: (cases, *shape) and (cases, 3, dim)."""
    sizes = np.array(MAGNITUDES[dtype])
    raw = {name: np.empty((cases, *shape), dtype) for name, shape in shapes.items()}
    # A point of ordinary size, the origin, and where a vector parameter is a place, that place.
    points = np.zeros((cases, 3, dim), dtype)
    for case in range(cases):
        # The first cases have one size for all, at each sign; the others mix them.
        for name, shape in shapes.items():
            size = sizes[case // 2] if case < 2 * len(sizes) else rng.choice(sizes, shape)
            sign = (-1) ** case if case < 2 * len(sizes) else rng.choice([-1, 1], shape)
            raw[name][case] = size * sign
        points[case, 0] = rng.standard_normal(dim)
        places = [value[case, 0] for value in raw.values() if value.shape[1:] == (1, dim)]
        points[case, 2] = places[-1] if places else np.float64(rng.choice(sizes)).astype(dtype)
    return points, raw


def make_lengths_constant(graph):
    """All are static. PyTensor is slow at a batch of shapes, and no case would change them."""
    for node in graph.toposort():
        if isinstance(node.op, Shape):
            length = pt.constant(node.inputs[0].type.shape, dtype="int64")
            graph.replace(node.outputs[0], length, import_missing=True)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("dim", [1, 3])
@pytest.mark.parametrize("layer", layers())
def test_extreme_raw_values_give_finite_results(layer, dim, dtype, rng):
    chain = one_block(layer, 1, dim)
    (shapes,) = chain.param_shapes()
    raw = {name: pt.tensor(name, dtype=dtype, shape=shape) for name, shape in shapes.items()}
    inputs = [pt.tensor("z", dtype=dtype, shape=(3, dim)), *raw.values()]
    outputs = []
    for direction in ["forward_and_log_det"] + ["inverse_and_log_det"] * chain.has_inverse:
        value, log_det = getattr(chain, direction)(inputs[0], (raw,))
        outputs += [value, log_det, *pt.grad(value.sum() + log_det.sum(), inputs)]
    assert {output.dtype for output in outputs} == {dtype}
    # Written for one case, and evaluated at all of them at once by the same scalar operations.
    as_written = FunctionGraph(inputs, outputs, clone=True)
    make_lengths_constant(as_written)
    stabilised = as_written.clone()
    NUMPY.optimizer.rewrite(stabilised)
    points, values = extreme_raw_values(shapes, dim, dtype, rng)
    many = [fixed(value, dtype=dtype) for value in (points, *values.values())]
    for graph in (as_written, stabilised):
        replaced = dict(zip(graph.inputs, many, strict=True))
        for result in evaluate(*vectorize_graph(graph.outputs, replaced)):
            bad = np.argwhere(~np.isfinite(result))
            # What depends on no parameter has no axis of cases.
            assert not bad.size, (bad, points, values)


@pytest.mark.parametrize("chain", chains(dims=(2,)))
def test_float32_stays_float32(chain, rng):
    params = normal_params(chain, rng, dtype="float32")
    points = fixed(rng.standard_normal((3, 2)), dtype="float32")
    for loop in loops(chain):
        outputs = list(chain.forward_and_log_det(points, params, loop=loop))
        if chain.has_inverse:
            outputs += chain.inverse_and_log_det(points, params, loop=loop)
        outputs += pt.grad(sum(output.sum() for output in outputs), [points, *flat(params)])
        wide = [
            variable
            for variable in ancestors(outputs)
            if variable.owner and getattr(variable.type, "dtype", None) == "float64"
        ]
        assert wide == []
        assert {value.dtype for value in evaluate(*outputs)} == {np.dtype("float32")}


@pytest.mark.parametrize("dim", [1, 2, 20])
def test_float32_agrees_with_float64(dim, rng):
    chain = build_chain(ALL_FIVE, dim)
    start = chain.initial_params(jitter=0.3, rng=rng, dtype="float64")
    points = rng.standard_normal((5, dim))
    results = [
        evaluate(
            *chain.forward_and_log_det(fixed(points, dtype=t), shared_params(start, dtype=t)),
            *chain.inverse_and_log_det(fixed(points, dtype=t), shared_params(start, dtype=t)),
        )
        for t in ("float32", "float64")
    ]
    for narrow, wide in zip(*results, strict=True):
        np.testing.assert_allclose(narrow, wide, rtol=1e-4, atol=1e-4)
