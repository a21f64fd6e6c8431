"""The radial layer against the equations of Rezende & Mohamed (2015)."""

import mpmath
import numpy as np
import pytensor.tensor as pt
import pytest
from pytensor.gradient import verify_grad

from flow_cases import MODE, evaluate, fixed, jacobian
from pymc_flows.flows import Radial
from pymc_flows.flows.numerics import floor

LAYER = Radial()


def cited(z, a, b, z_ref):
    """Eq. 14 with α = softplus(a), β = −α + softplus(b) in 60 digits: z' and log-determinant."""
    with mpmath.workdps(60):
        z, z_ref = (mpmath.matrix(vector.tolist()) for vector in (z, z_ref))
        softplus = lambda x: mpmath.log(1 + mpmath.exp(mpmath.mpf(float(x))))  # noqa: E731
        alpha, dim = softplus(a), len(z)
        beta = -alpha + softplus(b)
        r = mpmath.norm(z - z_ref)
        h, slope = 1 / (alpha + r), -1 / (alpha + r) ** 2
        log_det = (dim - 1) * mpmath.log(1 + beta * h)
        log_det += mpmath.log(1 + beta * h + beta * slope * r)
        return np.array((z + beta * h * (z - z_ref)).T.tolist()[0], float), float(log_det)


def constrained(a, b, z_ref, dtype="float64"):
    raw = {"a": a, "b": b, "z_ref": z_ref}
    return LAYER.constrain({name: fixed(value, dtype=dtype) for name, value in raw.items()})


def raw_of(value):
    """The number whose softplus is the value."""
    return np.log(np.expm1(value))


def test_values_by_hand():
    # α = 1, s = 3 and r = 5: the offset (3, 4) grows by (s + r) / (α + r) = 4/3, and the slope of
    # the radius is (r (r + 2α) + sα) / (α + r)² = 38/36.
    params = constrained(raw_of(1), raw_of(3), [1, 1])
    z, log_det = evaluate(*LAYER.forward_and_log_det(fixed([4, 5]), params))
    np.testing.assert_allclose(z, [5, 1 + 16 / 3], rtol=1e-14)
    assert log_det == pytest.approx(np.log(4 / 3) + np.log(38 / 36), rel=1e-14)
    z, log_det_again = evaluate(*LAYER.inverse_and_log_det(fixed(z), params))
    np.testing.assert_allclose(z, [4, 5], rtol=1e-14)
    assert log_det_again == pytest.approx(log_det, rel=1e-14)


@pytest.mark.parametrize("dim", [1, 2, 20])
def test_values_are_those_of_the_cited_equations(dim, rng):
    for _ in range(20):
        z, z_ref = rng.uniform(-5, 5, (2, dim))
        a, b = rng.uniform(-5, 5, 2)
        value, log_det = evaluate(*LAYER.forward_and_log_det(fixed(z), constrained(a, b, z_ref)))
        expected, expected_log_det = cited(z, a, b, z_ref)
        np.testing.assert_allclose(value, expected, rtol=1e-12, atol=1e-12)
        assert log_det == pytest.approx(expected_log_det, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("s", [0.1, 1, 7])
def test_at_the_centre_the_map_scales_by_s_over_alpha(s):
    params = constrained(raw_of(2), raw_of(s), [1, -2, 3])
    centre = np.array([[1.0, -2.0, 3.0]])
    z, log_det, rows = jacobian(lambda z: LAYER.forward_and_log_det(z, params), centre)
    assert z.tolist() == centre.tolist()
    np.testing.assert_allclose(rows, [s / 2 * np.eye(3)], rtol=1e-14, atol=1e-15)
    np.testing.assert_allclose(log_det, 3 * np.log(s / 2), rtol=1e-13, atol=1e-14)
    z, log_det, rows = jacobian(lambda y: LAYER.inverse_and_log_det(y, params), centre)
    assert z.tolist() == centre.tolist()
    np.testing.assert_allclose(rows, [2 / s * np.eye(3)], rtol=1e-14, atol=1e-15)
    np.testing.assert_allclose(log_det, 3 * np.log(s / 2), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize(
    ("a", "b"), [(-20, 20), (20, -20), (-20, -20), (0, 0), (-800, 800), (800, -800)]
)
def test_the_radius_of_the_preimage_has_no_cancellation(a, b):
    # In one dimension around 0 the image of r is r (s + r) / (α + r) to a few roundings.
    params = constrained(a, b, [0])
    r = np.geomspace(1e-12, 1e12, 97)[:, None]
    y, _ = LAYER.forward_and_log_det(fixed(r), params)
    alpha, s, y = evaluate(params["alpha"], params["s"], y)
    image = r * ((s + r) / (alpha + r))
    (again,) = evaluate(LAYER.inverse_and_log_det(fixed(image), params)[0])
    # Relative condition of r as a function of its image; never above 2 or so.
    slope = (r * (r + 2 * alpha) + s * alpha) / (alpha + r) ** 2
    condition = (image / r) / slope
    assert np.all(np.abs(again - r) <= 16 * np.finfo(float).eps * r * np.maximum(1, condition))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_floors_hold(dtype):
    params = constrained(
        np.array([-1e6, 1e6, 0]), np.array([1e6, -1e6, -1e6]), np.zeros((3, 2)), dtype
    )
    alpha, s, beta = evaluate(params["alpha"], params["s"], params["beta"])
    assert alpha.dtype == s.dtype == beta.dtype == dtype
    np.testing.assert_array_equal(alpha[:2], np.array([floor(dtype), 1e6], dtype))
    np.testing.assert_array_equal(s, np.array([1e6, floor(dtype), floor(dtype)], dtype))


@pytest.mark.parametrize(("a", "b"), [(1.0, -1.0), (-1.0, 1.0)])
def test_gradients_of_the_inverse(a, b, rng):
    def inverse(y, a, b, z_ref):
        params = LAYER.constrain({"a": a, "b": b, "z_ref": z_ref})
        z, log_det = LAYER.inverse_and_log_det(y, params)
        return pt.concatenate([z.ravel(), log_det])

    y = 2 * rng.standard_normal((3, 2))
    verify_grad(inverse, [y, np.array(a), np.array(b), rng.standard_normal(2)], rng=rng, mode=MODE)


def test_repeats_start_around_different_centres():
    centres = LAYER.reference_params(2, 500, np.random.default_rng(3))["z_ref"]
    np.testing.assert_allclose(centres.mean(axis=0), 0, atol=0.15)
    np.testing.assert_allclose(centres.std(axis=0), 1, atol=0.1)
