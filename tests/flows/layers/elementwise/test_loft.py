"""The guard of the range."""

import numpy as np
import pytensor
import pytest

import pymc_flows as pmf
from flow_cases import evaluate, fixed
from pymc_flows.errors import FormulaError
from pymc_flows.flows import Loft, build_chain


def loft(z, t):
    """The equation of the class."""
    size = np.abs(z)
    return np.sign(z) * (np.minimum(size, t) + np.log1p(np.maximum(size - t, 0)))


@pytest.mark.parametrize("t", [0.0, 1.5, 100.0])
def test_equation(t, rng):
    z = np.concatenate([rng.standard_normal(20), rng.uniform(-1e3, 1e3, 20), [0, t, -t, 1e20]])
    z_new, log_det = evaluate(*Loft(threshold=t).forward_and_log_det(fixed(z[:, None]), {}))
    np.testing.assert_allclose(z_new[:, 0], loft(z, t), rtol=1e-13)
    np.testing.assert_allclose(log_det, -np.log1p(np.maximum(np.abs(z) - t, 0)), rtol=1e-13)


def test_within_the_threshold_nothing_happens(rng):
    z = rng.uniform(-100, 100, (50, 3))
    z_new, log_det = evaluate(*Loft().forward_and_log_det(fixed(z), {}))
    np.testing.assert_array_equal(z_new, z)
    assert (log_det == 0).all()


def test_the_slope_at_0_is_1():
    z = fixed(np.array([[0.0], [-0.5], [3.0]]))
    for z_new, _ in (
        Loft(threshold=1.0).forward_and_log_det(z, {}),
        (Loft().inverse_and_log_det(z, {})),
    ):
        slope = evaluate(pytensor.grad(z_new.sum(), z))[0]
        assert slope[:2, 0].tolist() == [1, 1]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_far_points_come_back(dtype):
    y = np.array([0, 99, 101, 150, 168, 180, 1e3, 1e6])
    y = np.concatenate([y, -y]).astype(dtype)[:, None]
    z, log_det = evaluate(*Loft().inverse_and_log_det(fixed(y, dtype=dtype), {}))
    assert np.isfinite(z).all()
    again, log_det_again = evaluate(*Loft().forward_and_log_det(fixed(z, dtype=dtype), {}))
    np.testing.assert_allclose(again, y, rtol=4 * np.finfo(dtype).eps)
    np.testing.assert_allclose(log_det_again, log_det, rtol=100 * np.finfo(dtype).eps)


def test_the_largest_points_stay_in_range():
    z = np.array([[1e30], [-1e200], [1e300]])
    z_new, log_det = evaluate(*Loft().forward_and_log_det(fixed(z), {}))
    assert z_new[0] == pytest.approx(100 + np.log1p(1e30 - 100), rel=1e-14)
    assert np.isfinite(z_new).all()
    assert np.isfinite(log_det).all()


def test_the_density_integrates_to_one():
    chain = build_chain("loft(threshold=0.5)", 1)
    y = np.linspace(-8, 8, 400_001)
    z, log_det = evaluate(*chain.inverse_and_log_det(fixed(y[:, None]), ({},)))
    density = np.exp(-0.5 * z[:, 0] ** 2 - log_det) / np.sqrt(2 * np.pi)
    assert np.trapezoid(density, y) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("value", ["-1", "-0.5"])
def test_a_threshold_that_is_no_size(value):
    with pytest.raises(FormulaError, match="threshold must be finite and at least 0"):
        pmf.Formula(f"loft(threshold={value})")
