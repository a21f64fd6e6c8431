"""The scalar equation a + (s − 1) tanh(a) = c and the Op that solves it."""

import mpmath
import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.gradient import verify_grad
from pytensor.graph.replace import vectorize_graph

from flow_cases import MODE, compiled, evaluate, fixed
from pymc_flows.flows.layers.residual.roots import planar_root, solve_planar

EPS = np.finfo(float).eps
# s from the floor to far beyond what training reaches; c from nothing to where tanh is 1.
S = np.concatenate([np.geomspace(1e-15, 1, 16), np.geomspace(1, 1e13, 14)[1:]])[:, None]
C = np.concatenate([[0], np.geomspace(1e-18, 1e6, 49)])


def residual(a, s, c):
    with mpmath.workdps(60):
        a, s, c = (mpmath.mpf(float(x)) for x in (a, s, c))
        return float(abs(a + (s - 1) * mpmath.tanh(a) - c))


def test_residuals_are_rounding_errors():
    a = solve_planar(S, C)
    assert np.all(a >= 0)
    for (i, j), root in np.ndenumerate(a):
        assert residual(root, S[i, 0], C[j]) <= 4 * EPS * (root + C[j])
    np.testing.assert_array_equal(solve_planar(S, -C), -a)


def test_known_roots():
    np.testing.assert_array_equal(solve_planar(1, C), C)
    assert solve_planar(0.2, 0) == 0
    # tanh(log 3) = 4/5.
    assert solve_planar(6, np.log(3) + 4) == pytest.approx(np.log(3), rel=1e-15)
    assert solve_planar(0.5, np.log(3) - 0.4) == pytest.approx(np.log(3), rel=1e-15)
    # a − tanh(a) = a³/3 − 2a⁵/15 + ...
    assert solve_planar(1e-15, 1e-9) == pytest.approx((3e-9) ** (1 / 3), rel=1e-6)


def test_what_is_not_a_number_ends():
    with np.errstate(all="raise"):
        roots = solve_planar([0.5, 2, np.nan, 2], [np.nan, np.nan, 1, np.inf])
    assert np.isnan(roots[:2]).all()
    assert roots[3] == np.inf


def test_gradients_of_both_orders(rng):
    s, c = np.exp(2 * rng.standard_normal(4)), 3 * rng.standard_normal((3, 4))
    verify_grad(planar_root, [s, c], rng=rng, mode=MODE)

    def slopes(s, c):
        return pt.concatenate([slope.ravel() for slope in pt.grad(planar_root(s, c).sum(), [s, c])])

    verify_grad(slopes, [s, c], rng=rng, mode=MODE)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_it_broadcasts_and_vectorises_like_any_elementwise_op(dtype, rng):
    s, c = pt.scalar("s", dtype=dtype), pt.vector("c", dtype=dtype, shape=(4,))
    a = planar_root(s, c)
    assert a.type.dtype == dtype
    assert a.type.shape == (4,)
    many_s, many_c = (
        fixed([0.5, 2, 9], dtype=dtype),
        fixed(rng.standard_normal((3, 4)), dtype=dtype),
    )
    many = vectorize_graph(a, {s: many_s, c: many_c})
    values, shape = evaluate(many, many.shape)
    assert shape.tolist() == [3, 4]
    assert values.dtype == dtype
    expected = solve_planar(many_s.get_value()[:, None], many_c.get_value())
    np.testing.assert_allclose(values, expected, rtol=4 * np.finfo(dtype).eps)


@pytest.mark.parametrize("backend", ["numba", "jax"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_backends_agree(backend, dtype):
    pytest.importorskip(backend)
    s, c = pt.col("s", dtype=dtype), pt.row("c", dtype=dtype)
    function = pytensor.function([s, c], planar_root(s, c), mode=backend.upper())
    small = np.finfo(dtype).eps
    s, c = S[S >= small][:, None].astype(dtype), np.concatenate([-C[::-1], C])[None].astype(dtype)
    a = np.asarray(function(s, c))
    assert a.dtype == dtype
    expected = solve_planar(s, c)
    # Rounding in the equation moves the root by as much as the slope allows.
    h = np.tanh(expected)
    slope = h * h + (1 - h * h) * s
    assert np.all(np.abs(a - expected) <= 4 * small * (np.abs(expected) + np.abs(c)) / slope)


def test_jax_differentiates_it(rng):
    jax = pytest.importorskip("jax")
    s, c = pt.scalar("s"), pt.vector("c")
    function = pytensor.function([s, c], planar_root(s, c), mode="JAX").vm.jit_fn
    at = (np.array(0.3), rng.standard_normal(3))
    by_jax = jax.grad(lambda s, c: function(s, c)[0].sum(), argnums=(0, 1))(*at)
    by_pytensor = compiled([s, c], pt.grad(planar_root(s, c).sum(), [s, c]))(*at)
    for value, expected in zip(by_jax, by_pytensor, strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-13)
