"""Kernel Ops of blocks against the plain graphs of the same layers."""

from functools import partial

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.graph.replace import vectorize_graph

from flow_cases import evaluate, fixed
from pymc_flows.backends.modes import NUMPY
from pymc_flows.flows import FLOWS, Block, build_chain
from pymc_flows.flows.base import KernelFlow
from pymc_flows.flows.kernels.stack_op import StackPullback
from pymc_flows.flows.kernels.stack_op import _register_numba as register_numba

WORDS = sorted(word for word, cls in FLOWS.items() if issubclass(cls, KernelFlow))
every_kernel = pytest.mark.parametrize("word", WORDS)
OPTIONS = [
    "nvp(hidden=5, depth=1, activation=relu)",
    "iaf(depth=0)",
    "nvp(hidden=5, shift=before)",
    "iaf(depth=3, clip=2, activation=silu)",
    "iaf(hidden=6, activation=silu, shift=before)",
]


def raw_params(word, count, dim, rng, dtype="float64"):
    (shapes,) = build_chain(f"{word}*{count}", dim).param_shapes()
    return {
        name: pytensor.shared(rng.normal(size=shape).astype(dtype), name, shape=shape)
        for name, shape in shapes.items()
    }


def by_kernel(word, z, raw):
    return of_chain(word, z, raw, "kernel")


def by_layers(word, z, raw):
    return of_chain(word, z, raw, "unroll")


def of_chain(word, z, raw, loop):
    dim, count = z.type.shape[-1], next(iter(raw.values())).type.shape[0]
    return build_chain(f"{word}*{count}", dim).forward_and_log_det(z, [raw], loop=loop)


def test_which_flows_have_kernels():
    assert {"hh", "iaf", "nvp", "planar", "radial"} <= set(WORDS)


def loss(outputs):
    z, log_det = outputs
    return pt.sin(z).sum() + (log_det**2).sum()


def values_and_gradients(outputs, raw, z):
    return [*outputs, *pytensor.grad(loss(outputs), [z, *raw.values()])]


@pytest.mark.parametrize("word", [*WORDS, *OPTIONS])
@pytest.mark.parametrize(("n", "count", "dim"), [(1, 1, 1), (4, 1, 3), (1, 6, 2), (7, 5, 4)])
def test_equals_the_layers_one_by_one(word, n, count, dim, rng):
    raw = raw_params(word, count, dim, rng)
    z = pytensor.shared(3 * rng.normal(size=(n, dim)), shape=(n, dim))
    kernel, layers = by_kernel(word, z, raw), by_layers(word, z, raw)
    got, expected = (evaluate(*values_and_gradients(by, raw, z)) for by in (kernel, layers))
    assert kernel[0].type.shape == (n, dim)
    assert kernel[1].type.shape == (n,)
    for a, b in zip(got, expected, strict=True):
        # Of sums that cancel, rounding errors are those of what is added up.
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12 * np.abs(b).max(initial=1))


# iaf has the kernel of nvp, where one is as good as the other.
ON_NUMBA = [*(word for word in WORDS if word not in ("iaf", "nvp")), "nvp(shift=before)"]


def assert_same_on_numba(got, expected, dtype):
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(
            a, b, rtol=5e4 * np.finfo(dtype).eps, atol=1e-5 if dtype == "float32" else 1e-13
        )


@pytest.mark.parametrize("word", ON_NUMBA)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_numba_kernel_equals_numpy(word, dtype, rng):
    """By itself: of a kernel in a graph, numba compiles a second copy."""
    from pymc_flows.support.compat import numba_njit

    layer = build_chain(word, 3).blocks[0].layer
    z, theta, by_z_new, by_log_det = (
        rng.normal(size=shape).astype(dtype)
        for shape in ((5, 3), (Block(layer, 6).size(3),), (5, 3), (5,))
    )
    (theta,) = evaluate(layer.kernel_params(fixed(theta, dtype=dtype), 3))

    def forward_and_pullback(jit):
        forward, pullback = layer.stack(3).kernels(jit)
        z_new, log_det, saved = forward(z, theta)
        return z_new, log_det, saved, *pullback(by_z_new, by_log_det, z_new, saved, theta)

    compiled = forward_and_pullback(partial(numba_njit, final_function=True))
    assert_same_on_numba(compiled, forward_and_pullback(lambda function: function), dtype)


def test_numba_keeps_each_kernel_under_its_own_name():
    from pytensor.link.numba.dispatch.basic import numba_funcify_and_cache_key

    register_numba()
    stacks = [build_chain(word, 3).blocks[0].layer.stack(3) for word in (*WORDS, *OPTIONS)]
    ops = [op for stack in stacks for op in (stack, StackPullback(stack))]
    keys = {op: numba_funcify_and_cache_key(op, node=None)[1] for op in ops}
    assert len(set(keys.values()) - {None}) == len(keys)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_kernel_in_a_graph_on_numba(dtype, rng):
    """On a graph of little else, as every further Op takes numba half a second."""
    chain = build_chain("radial*6", 3)
    z, theta, by_z_new, by_log_det = (
        pytensor.shared(rng.normal(size=shape).astype(dtype), shape=shape)
        for shape in ((5, 3), (chain.blocks[0].size(3),), (5, 3), (5,))
    )
    outputs = chain.forward_and_log_det(z, [theta], loop="kernel")
    cotangents = dict(zip(outputs, (by_z_new, by_log_det), strict=True))
    outputs += tuple(pytensor.grad(None, [z, theta], known_grads=cotangents))
    got, expected = (pytensor.function([], outputs, mode=mode)() for mode in ("NUMBA", NUMPY))
    assert_same_on_numba(got, expected, dtype)


@pytest.mark.parametrize(
    ("word", "part"),
    # The log-determinant of a flow that preserves volume depends on nothing.
    [(w, part) for w in WORDS for part in (0, 1) if not (part and FLOWS[w].is_volume_preserving)],
)
def test_gradient_when_only_one_output_is_used(word, part, rng):
    raw = raw_params(word, 3, 2, rng)
    z = pytensor.shared(rng.normal(size=(4, 2)), shape=(4, 2))
    results = []
    for fn in (by_kernel, by_layers):
        cost = fn(word, z, raw)[part].sum()
        # The log-determinant of an affine map does not depend on the point.
        grads = pytensor.grad(cost, [z, *raw.values()], disconnected_inputs="ignore")
        results.append(evaluate(*grads))
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)


@every_kernel
def test_vectorizes_over_a_further_axis(word, rng):
    raw = raw_params(word, 3, 2, rng)
    values = rng.normal(size=(2, 4, 2))
    z = pt.matrix("z", shape=(4, 2))
    outputs = list(by_kernel(word, z, raw))
    batched = vectorize_graph(outputs, {z: pt.constant(values)})
    together = pytensor.function([], batched, mode=NUMPY)()
    one = pytensor.function([z], outputs, mode=NUMPY)
    for i in range(2):
        for a, b in zip(together, one(values[i]), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-12, atol=1e-13)


@every_kernel
def test_extreme_parameters_stay_finite(word, rng):
    raw = {name: v.get_value() * 1e6 for name, v in raw_params(word, 4, 2, rng).items()}
    raw = {name: pytensor.shared(value, name, shape=value.shape) for name, value in raw.items()}
    z = pytensor.shared(rng.normal(size=(3, 2)), shape=(3, 2))
    outputs = values_and_gradients(by_kernel(word, z, raw), raw, z)
    for value in pytensor.function([], outputs, mode=NUMPY)():
        assert np.isfinite(value).all()


def test_chain_takes_the_kernel_only_where_it_applies(rng):
    chain = build_chain("scale-planar*3-hh*4-radial*2", 2)
    params = chain.initial_params(jitter=0.5, rng=rng, dtype="float64")
    values = [{k: pt.constant(v) for k, v in block.items()} for block in params]

    def ops(ndim):
        z = pt.tensor("z", shape=(None,) * (ndim - 1) + (2,), dtype="float64")
        outputs = chain.forward_and_log_det(z, values, loop="kernel")
        return [type(n.op).__name__ for n in pytensor.graph.traversal.toposort(outputs)]

    kernels = {"PlanarStack", "HouseholderStack", "RadialStack"}
    assert kernels <= set(ops(2))
    assert kernels.isdisjoint(ops(1))
    z = rng.normal(size=(5, 2))
    for a, b in zip(
        *(
            pytensor.function(
                [], chain.forward_and_log_det(pt.constant(z), values, loop=loop), mode=NUMPY
            )()
            for loop in ("kernel", "unroll")
        ),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)


@every_kernel
def test_mixed_types_are_refused(word, rng):
    raw = raw_params(word, 2, 2, rng)
    with pytest.raises(TypeError, match="one type"):
        by_kernel(word, pt.matrix(dtype="float32", shape=(None, 2)), raw)


@every_kernel
def test_second_derivatives_are_refused_by_name(word, rng):
    raw = raw_params(word, 2, 2, rng)
    z = pytensor.shared(rng.normal(size=(3, 2)), shape=(3, 2))
    gradient = pytensor.grad(loss(by_kernel(word, z, raw)), z)
    with pytest.raises(Exception, match="second derivatives of a fused block"):
        pytensor.grad(gradient.sum(), z)
