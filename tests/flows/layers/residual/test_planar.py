"""The planar layer against the equations of Rezende & Mohamed (2015)."""

import mpmath
import numpy as np
import pytensor.tensor as pt
import pytest
from pytensor.gradient import verify_grad

from flow_cases import MODE, evaluate, fixed
from pymc_flows.flows import Planar
from pymc_flows.flows.numerics import floor

LAYER = Planar()


def cited(z, b, u, w):
    """Eq. 10 and 12 with û of appendix A.1, in 60 digits: z' and the log-determinant."""
    with mpmath.workdps(60):
        z, u, w = (mpmath.matrix(vector.tolist()) for vector in (z, u, w))
        dot = lambda x, y: (x.T * y)[0]  # noqa: E731
        x = dot(w, u)
        m = -1 + mpmath.log(1 + mpmath.exp(x))
        u_hat = u + (m - x) * w / dot(w, w)
        h = mpmath.tanh(dot(w, z) + mpmath.mpf(float(b)))
        log_det = mpmath.log(abs(1 + (1 - h**2) * dot(w, u_hat)))
        return np.array((z + u_hat * h).T.tolist()[0], float), float(log_det)


def constrained(b, u, w, dtype="float64"):
    return LAYER.constrain(
        {"b": fixed(b, dtype=dtype), "u": fixed(u, dtype=dtype), "w": fixed(w, dtype=dtype)}
    )


def test_values_by_hand():
    # w·u = 0, so softplus gives s = log 2 and û = (log 2 − 1, 3). tanh(log 3) = 4/5.
    params = constrained(np.log(3), [0, 3], [1, 0])
    z, log_det = LAYER.forward_and_log_det(fixed([0, 7]), params)
    s, u_hat, z, log_det = evaluate(params["s"], params["u_hat"], z, log_det)
    assert s == pytest.approx(np.log(2), rel=1e-15)
    np.testing.assert_allclose(u_hat, [np.log(2) - 1, 3], rtol=1e-15)
    np.testing.assert_allclose(z, [0.8 * (np.log(2) - 1), 9.4], rtol=1e-14)
    assert log_det == pytest.approx(np.log(0.64 + 0.36 * np.log(2)), rel=1e-14)


@pytest.mark.parametrize("dim", [1, 2, 20])
def test_values_are_those_of_the_cited_equations(dim, rng):
    for _ in range(20):
        z, u, w = rng.uniform(-5, 5, (3, dim))
        b = rng.uniform(-5, 5)
        value, log_det = evaluate(*LAYER.forward_and_log_det(fixed(z), constrained(b, u, w)))
        expected, expected_log_det = cited(z, b, u, w)
        np.testing.assert_allclose(value, expected, rtol=1e-12, atol=1e-12)
        assert log_det == pytest.approx(expected_log_det, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("dim", [1, 2, 20])
def test_the_carried_scalar_is_one_plus_w_dot_u_hat(dim, rng):
    b = np.zeros(500)
    u, w = rng.uniform(-2, 2, (2, 500, dim))
    params = constrained(b, u, w)
    s, u_hat = evaluate(params["s"], params["u_hat"])
    np.testing.assert_allclose(s, 1 + (w * u_hat).sum(-1), rtol=0, atol=1e-12)
    np.testing.assert_allclose(s, np.logaddexp(0, (w * u).sum(-1)), rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_floor_holds_where_rounding_crosses_it(dtype, rng):
    u, w = (rng.standard_normal((2, 2000, 3)) * 1e6).astype(dtype)
    params = constrained(np.zeros(2000), u, w, dtype)
    s, u_hat = evaluate(params["s"], params["u_hat"])
    recomputed = 1 + (w * u_hat).sum(-1)
    assert s.dtype == dtype
    assert s.min() == floor(dtype)
    # What the layer would enter in the logarithm if it did not carry s.
    assert (recomputed <= 0).any()


@pytest.mark.parametrize(("dtype", "short"), [("float64", 1e-200), ("float32", 1e-25)])
def test_without_w_the_map_is_a_shift(dtype, short):
    for length in (0, short):
        params = constrained(0.5, [1, 2], [length, 0], dtype)
        z, log_det = LAYER.forward_and_log_det(fixed([3, 4], dtype=dtype), params)
        z, log_det = evaluate(z, log_det)
        np.testing.assert_allclose(z, np.add([3, 4], np.tanh(0.5) * np.array([1, 2])), rtol=1e-6)
        assert log_det == 0


@pytest.mark.parametrize("s_regime", [-6, 0, 6])
def test_implicit_gradients_of_the_inverse(s_regime, rng):
    w = rng.standard_normal(3)
    u = rng.standard_normal(3)
    u += (s_regime - w @ u) * w / (w @ w)

    def inverse(y, b, u, w):
        z, log_det = LAYER.inverse_and_log_det(y, LAYER.constrain({"b": b, "u": u, "w": w}))
        return pt.concatenate([z.ravel(), log_det])

    y = 3 * rng.standard_normal((2, 3))
    verify_grad(inverse, [y, np.array(0.3), u, w], rng=rng, mode=MODE)


def test_repeats_start_in_different_directions():
    w = LAYER.reference_params(2, 50, np.random.default_rng(3))["w"]
    np.testing.assert_allclose(np.linalg.norm(w, axis=1), 1)
    assert np.abs(w.mean(axis=0)).max() < 0.3
    assert len(np.unique(w, axis=0)) == 50
