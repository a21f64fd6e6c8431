"""Tail weights."""

import numpy as np
import pytensor.tensor as pt
import pytest
from scipy import stats
from scipy.special import lambertw

import pymc_flows as pmf
from flow_cases import evaluate, fixed, one_block, shared_params
from pymc_flows.flows import Tail
from pymc_flows.flows.layers.elementwise.tail import _lambert_w_of_exp

LAYER = Tail()


def params_of(left, right, **options):
    """Raw parameters that give these weights, for one layer."""
    h = {"left": np.atleast_1d(left), "right": np.atleast_1d(right)}
    return shared_params([{k: np.log(v / (2 - v))[None] for k, v in h.items()}], **options)


def test_equation_and_log_det(rng):
    left, right = np.array([0.1, 0.5, 1.9]), np.array([0.7, 0.02, 1.0])
    z = 2 * rng.standard_normal((40, 3))
    h = np.where(z > 0, right, left)
    chain = one_block(LAYER, 1, 3)
    z_new, log_det = evaluate(*chain.forward_and_log_det(fixed(z), params_of(left, right)))
    np.testing.assert_allclose(z_new, z * np.exp(h * z**2 / 2), rtol=1e-12)
    expected = np.log(np.exp(h * z**2 / 2) * (1 + h * z**2)).sum(axis=1)
    np.testing.assert_allclose(log_det, expected, rtol=1e-12)


def test_lambert_w():
    x = np.concatenate([np.linspace(-60, 140, 2001), [-1e9, -80]])
    (w,) = evaluate(_lambert_w_of_exp(fixed(x)))
    expected = lambertw(np.exp(np.maximum(x, -60))).real
    np.testing.assert_allclose(w, expected, rtol=1e-14)
    (narrow,) = evaluate(_lambert_w_of_exp(fixed(x, dtype="float32")))
    assert narrow.dtype == "float32"
    np.testing.assert_allclose(narrow, expected, rtol=2e-5)


@pytest.mark.parametrize("h", [0.05, 0.5, 1.0, 2.0 - 1e-9])
def test_the_tail_is_that_of_student_t(h):
    """P(Z' > x) x^(1/h) varies slowly: its logarithm as that of log x, not as log x itself."""
    z = np.array([[6.0], [7.5]])
    z_new, _ = evaluate(*one_block(LAYER, 1, 1).forward_and_log_det(fixed(z), params_of(h, h)))
    index = -np.diff(stats.norm.logsf(z[:, 0])) / np.diff(np.log(z_new[:, 0]))
    assert index[0] == pytest.approx(1 / h, rel=0.5 if h < 0.1 else 0.06)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("h", [1e-9, 0.01, 0.5, 1.9])
def test_far_points_come_back(dtype, h):
    z = np.array([0, 1e-30, 1e-3, 1, 7.9, 8, 8.1, 30, 1e5])
    z = np.concatenate([z, -z]).astype(dtype)[:, None]
    chain, params = one_block(LAYER, 1, 1), params_of(h, h / 2, dtype=dtype)
    z_new, log_det = evaluate(*chain.forward_and_log_det(fixed(z, dtype=dtype), params))
    assert np.isfinite(z_new).all()
    again, log_det_again = evaluate(*chain.inverse_and_log_det(fixed(z_new, dtype=dtype), params))
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(again, z, rtol=100 * eps)
    np.testing.assert_allclose(log_det_again, log_det, rtol=100 * eps, atol=100 * eps)


def test_the_map_bends_but_does_not_jump_where_it_becomes_straight():
    z = fixed(np.array([[8 - 1e-9], [8 + 1e-9], [-8 - 1e-9], [-8 + 1e-9]]))
    z_new, log_det = one_block(LAYER, 1, 1).forward_and_log_det(z, params_of(0.3, 0.4))
    z_new, log_det, slope = evaluate(z_new, log_det, pt.grad(z_new.sum(), z))
    assert z_new[0] == pytest.approx(z_new[1], rel=1e-7)
    assert z_new[2] == pytest.approx(z_new[3], rel=1e-7)
    np.testing.assert_allclose(np.log(slope[:, 0]), log_det, rtol=1e-9)


def test_the_density_integrates_to_one():
    y = np.sinh(np.linspace(-25, 25, 400_001))
    chain = one_block(LAYER, 1, 1)
    z, log_det = evaluate(*chain.inverse_and_log_det(fixed(y[:, None]), params_of(0.2, 0.8)))
    density = np.exp(-0.5 * z[:, 0] ** 2 - log_det) / np.sqrt(2 * np.pi)
    assert np.trapezoid(density, y) == pytest.approx(1, abs=1e-6)


def test_it_starts_near_the_identity_with_a_gradient(rng):
    chain = one_block(LAYER, 1, 2)
    params = shared_params(chain.initial_params(jitter=0, rng=rng, dtype="float64"))
    z = np.clip(rng.standard_normal((200, 2)), -3, 3)
    z_new, log_det = chain.forward_and_log_det(fixed(z), params)
    slopes = pt.grad(pt.sqr(z_new - 1).sum() - log_det.sum(), list(params[0].values()))
    z_new, log_det, *slopes = evaluate(z_new, log_det, *slopes)
    assert np.abs(z_new - z).max() < 0.15
    assert min(np.abs(slope).min() for slope in slopes) > 0.1


def test_it_learns_the_tail_of_student_t():
    pm = pytest.importorskip("pymc")
    pytest.importorskip("jax")
    with pm.Model() as model:
        pm.StudentT("x", nu=2, shape=1)
    losses = {}
    for formula in ("scale-loc", "tail-scale-loc"):
        inference = pmf.NFVI(formula, model=model, random_seed=0)
        inference.fit(4000, backend="jax", obj_n_mc=100, progressbar=False)
        losses[formula] = inference.hist[-500:].mean()
    # The loss is KL(q ‖ p), since the model has no data.
    assert losses["scale-loc"] > 0.04
    assert losses["tail-scale-loc"] < 0.01
