"""Diagonal plus low-rank layers."""

import numpy as np
import pymc as pm
import pytest

import pymc_flows as pmf
from flow_cases import evaluate, fixed, normal_params, one_block
from pymc_flows.errors import FormulaError
from pymc_flows.flows import LowRank, build_chain


def parts(params):
    """σ, û, w and s of one layer, by the formulas of the class."""
    rho, u, w = (params[0][name].get_value()[0] for name in ("rho", "u", "w"))
    w = w / np.linalg.norm(w, axis=1, keepdims=True)
    s = np.log1p(np.exp((u * w).sum(axis=1)))
    u_hat = u + (s - 1 - (u * w).sum(axis=1))[:, None] * w
    return np.log1p(np.exp(rho)), u_hat, w, s


def matrix(params):
    sigma, u_hat, w, _ = parts(params)
    product = np.eye(len(sigma))
    for a, b in zip(u_hat, w, strict=True):
        product = (np.eye(len(sigma)) + np.outer(a, b)) @ product
    return sigma[:, None] * product


@pytest.mark.parametrize(("rank", "dim"), [(1, 1), (4, 2), (1, 5), (3, 5), (4, 30)])
def test_equation_log_det_and_woodbury_against_dense_algebra(rank, dim, rng):
    chain = one_block(LowRank(rank=rank), 1, dim)
    params = normal_params(chain, rng)
    a = matrix(params)
    z = rng.standard_normal((6, dim))
    z_new, log_det = evaluate(*chain.forward_and_log_det(fixed(z), params))
    np.testing.assert_allclose(z_new, z @ a.T, rtol=1e-12, atol=1e-12)
    sign, expected = np.linalg.slogdet(a)
    assert sign == 1
    np.testing.assert_allclose(log_det, expected, rtol=1e-11, atol=1e-11)
    again, log_det = evaluate(*chain.inverse_and_log_det(fixed(z), params))
    np.testing.assert_allclose(again, np.linalg.solve(a, z.T).T, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(log_det, expected, rtol=1e-11, atol=1e-11)


def test_without_the_scales_it_is_a_matrix_of_low_rank(rng):
    params = normal_params(one_block(LowRank(rank=3), 1, 20), rng)
    a = matrix(params) / parts(params)[0][:, None]
    assert np.linalg.matrix_rank(a - np.eye(20), tol=1e-10) == 3


def test_the_determinant_is_positive_whatever_the_parameters(rng):
    chain = one_block(LowRank(rank=4), 1, 6)
    for scale in (0.1, 1, 10):
        params = normal_params(chain, rng)
        for value in params[0].values():
            value.set_value(scale * value.get_value())
        assert np.linalg.slogdet(matrix(params)).sign == 1


def test_number_of_parameters():
    assert "9d" in repr(pmf.Formula("lowrank(rank=4)")) or "varies" in repr(pmf.Formula("lowrank"))
    (shapes,) = build_chain("lowrank(rank=4)", 3).param_shapes()
    assert shapes == {"rho": (1, 3), "u": (1, 3, 3), "w": (1, 3, 3)}
    with pytest.raises(FormulaError, match="rank must be at least 1"):
        pmf.Formula("lowrank(rank=0)")


@pytest.mark.parametrize("narrow", [True, False])
def test_it_learns_a_narrow_and_a_wide_direction(narrow):
    pytest.importorskip("jax")
    direction = np.ones(8) / np.sqrt(8)
    cov = np.eye(8) + (-0.99 if narrow else 8.0) * np.outer(direction, direction)
    with pm.Model() as model:
        pm.MvNormal("x", np.zeros(8), cov=cov)
    inference = pmf.NFVI("lowrank(rank=1)-loc", model=model, random_seed=0)
    inference.fit(3000, backend="jax", progressbar=False)
    # The loss is KL(q ‖ p), since the model has no data.
    assert inference.hist[-300:].mean() < 0.05
