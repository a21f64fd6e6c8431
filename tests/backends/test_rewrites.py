"""Backend rewrites: same numbers, and they reach the graphs they are for."""

import warnings

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.scan.op import Scan
from pytensor.tensor.elemwise import Elemwise

from pymc_flows.backends.modes import NUMPY, PLAIN, training_mode
from pymc_flows.backends.node_by_node.arrays import softplus
from pymc_flows.backends.rewrites import QuickDot


def inner_ops(function):
    nodes = function.maker.fgraph.toposort()
    scans = [n.op.fgraph.toposort() for n in nodes if isinstance(n.op, Scan)]
    return [type(n.op) for graph in [nodes, *scans] for n in graph]


def test_products_on_numba_whatever_the_layout(rng):
    x = pt.matrix("x", shape=(6, 4))
    y = pt.matrix("y", shape=(4, 6))
    v = pt.vector("v", shape=(4,))
    outputs = [x @ y, y.T @ x.T, x[::2] @ y[:, 1:3], y @ x, x @ v, (x @ y[:, :1])[:, 0]]
    given = [rng.normal(size=s) for s in ((6, 4), (4, 6), (4,))]
    function = pytensor.function([x, y, v], outputs, mode=training_mode("numba"))
    assert QuickDot in inner_ops(function)
    expected = pytensor.function([x, y, v], outputs, mode=NUMPY)(*given)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the import of numba hides its warnings for one test
        found = function(*given)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)


def test_products_inside_a_loop_on_numba(rng):
    w = pt.matrix("w", shape=(3, 3))
    states = pytensor.scan(
        lambda s, m: pt.tanh(s @ m), outputs_info=[w], non_sequences=[w], n_steps=3,
        return_updates=False,
    )  # fmt: skip
    function = pytensor.function([w], states[-1], mode=training_mode("numba"))
    assert QuickDot in inner_ops(function)
    value = rng.normal(size=(3, 3))
    expected = value
    for _ in range(3):
        expected = np.tanh(expected @ value)
    np.testing.assert_allclose(function(value), expected, rtol=1e-12)


def test_products_of_integers_are_left_alone():
    x = pt.imatrix("x")
    function = pytensor.function([x], x @ x, mode=training_mode("numba"))
    assert QuickDot not in inner_ops(function)
    np.testing.assert_array_equal(function(np.eye(2, dtype="int32") * 3), 9 * np.eye(2))


def test_the_op_stands_for_itself_in_numpy(rng):
    x, y = rng.normal(size=(2, 3)), rng.normal(size=(3, 4))
    out = QuickDot()(pt.constant(x), pt.constant(y))
    assert out.type.shape == (2, 4)
    np.testing.assert_array_equal(out.eval(mode=NUMPY), x @ y)
    assert out.shape.eval(mode=NUMPY).tolist() == [2, 4]


def layouts():
    """Arrays of more than one part, in every layout, and small ones."""
    x = np.random.default_rng(0).normal(0, 20, (300, 120))
    yield from (x, x.T, x[:, ::2], x[::-1], x.reshape(30, 10, 120).transpose(1, 0, 2))
    yield from (np.broadcast_to(x[0], (200, 120)), x.astype("float32"), x.astype("int8"))
    yield from (x[:0], x[0, 0], np.float64(-3.0), np.array(True))


@pytest.mark.parametrize("x", list(layouts()), ids=lambda x: f"{x.dtype}{x.shape}{x.strides}")
def test_softplus_takes_arrays_of_any_layout(x):
    found = softplus(x)
    assert found.shape == x.shape
    assert found.dtype == np.result_type(x, "float32")
    rtol = 8 * np.finfo(found.dtype).eps
    np.testing.assert_allclose(found, np.logaddexp(0, np.asarray(x, float)), rtol=rtol)
    # PyTensor copies results that are views.
    assert np.ndim(found) == 0 or found.flags.owndata


def test_softplus_keeps_the_order_in_memory():
    assert softplus(np.zeros((3, 5)).T).flags.f_contiguous


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_softplus_on_jax_is_exact_everywhere(dtype):
    pytest.importorskip("jax")
    x = pt.vector("x", dtype=dtype)
    outputs = [pt.softplus(x), pytensor.grad(pt.softplus(x).sum(), x)]
    function = pytensor.function([x], outputs, mode=training_mode("jax"))
    values = np.array([-800, -90, -37, -5, -1e-9, 0, 1e-9, 5, 37, 800, -np.inf, np.inf], dtype)
    soft, slope = (np.asarray(out) for out in function(values))
    eps = np.finfo(dtype).eps
    wide = values.astype(float)
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(soft, np.logaddexp(0, wide), rtol=8 * eps, atol=1e-37)
        np.testing.assert_allclose(
            slope, np.exp(-np.logaddexp(0, -wide)), rtol=50 * eps, atol=1e-37
        )
    assert soft.dtype == slope.dtype == dtype


NEGATIVE = np.array([-800, -40, -1, -0.7, -0.69, -1e-3, -1e-9, -1e-300, -np.inf, 0.0])


def wide(x):
    return np.asarray(x, np.longdouble)


@pytest.mark.parametrize(
    ("op", "points", "exact"),
    [
        (pt.softplus, np.array([-800.0, -37, -1e-9, 0, 5, 800]), lambda x: np.logaddexp(0, x)),
        (pt.log1mexp, NEGATIVE, lambda x: np.where(x < -1, np.log1p(-np.exp(x)),
                                                   np.log(-np.expm1(x)))),
        (lambda x: pt.clip(x, -1, 2), np.array([-3.0, -1, 0.5, 2, np.inf]),
         lambda x: np.minimum(np.maximum(x, -1), 2)),
        # π²/6 and π²/2, then by ψ'(x + 1) = ψ'(x) - 1/x².
        (pt.tri_gamma, np.array([1.0, 0.5, 2, 1.5]),
         lambda x: np.array([np.pi**2 / 6, np.pi**2 / 2, np.pi**2 / 6 - 1, np.pi**2 / 2 - 4])),
    ],
    ids=["softplus", "log1mexp", "clip", "tri_gamma"],
)  # fmt: skip
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("mode", [NUMPY, PLAIN], ids=["numpy", "plain"])
def test_numpy_takes_whole_arrays(op, points, exact, dtype, mode):
    x = pt.vector("x", dtype=dtype)
    function = pytensor.function([x], op(x), mode=mode)
    nodes = [n.op for n in function.maker.fgraph.toposort() if isinstance(n.op, Elemwise)]
    assert nodes
    assert all(op.nfunc_spec is not None for op in nodes)
    values = function(points.astype(dtype))
    assert values.dtype == dtype
    with np.errstate(all="ignore"):
        expected = exact(wide(points.astype(dtype)))
    np.testing.assert_allclose(values, expected.astype(float), rtol=8 * np.finfo(dtype).eps)


# PyTensor's rewrites of a thousand operands, which only NumPy's mode has, take minutes.
@pytest.mark.parametrize(
    ("mode", "n"),
    [*((mode, n) for mode in (NUMPY, PLAIN) for n in (31, 32, 40)), (PLAIN, 1_100)],
)
def test_sums_and_products_of_very_many_operands(mode, n, rng):
    x = pt.matrix("x")
    terms = [(k + 1.0) * x[k % 3] for k in range(n)]
    outputs = [pt.add(*terms), pt.mul(*[1 + 0.01 * x[k % 3] for k in range(n)])]
    value = rng.normal(size=(3, 2))
    found = pytensor.function([x], outputs, mode=mode)(value)
    rows = np.array([value[k % 3] for k in range(n)])
    np.testing.assert_allclose(found[0], (np.arange(1, n + 1) @ rows), rtol=1e-10)
    np.testing.assert_allclose(found[1], np.prod(1 + 0.01 * rows, axis=0), rtol=1e-10)


def test_many_small_integers_do_not_overflow_in_parts():
    small = [pt.vector(f"x{i}", dtype="int8") for i in range(40)]
    wide = pt.vector("wide", dtype="int64")
    total = pytensor.function([*small, wide], pt.add(*small, wide), mode=NUMPY)
    assert total(*[np.array([100], dtype="int8")] * 40, np.array([5])) == [4_005]
