"""Sylvester layers."""

import numpy as np
import pytest

import pymc_flows as pmf
from flow_cases import evaluate, fixed, normal_params, one_block
from pymc_flows.errors import FormulaError
from pymc_flows.flows import Planar, Sylvester


def softplus(x):
    return np.log1p(np.exp(x))


def parts(params):
    """Q, R, R̃ and b of one layer, by the formulas of the class."""
    raw = {name: value.get_value()[0] for name, value in params[0].items()}
    r, dim = raw["v"].shape
    full = np.eye(dim)
    for v in raw["v"]:
        full = (np.eye(dim) - 2 * np.outer(v, v) / (v @ v)) @ full
    s, w = softplus(raw["s"]), softplus(raw["w"])
    outer, inner = np.diag((s - 1) / w), np.diag(w)
    outer[np.triu_indices(r, 1)] = raw["outer"]
    inner[np.triu_indices(r, 1)] = raw["inner"]
    return full[:, :r], outer, inner, raw["b"]


@pytest.mark.parametrize(("rank", "dim"), [(1, 1), (4, 2), (1, 5), (3, 5), (4, 9)])
def test_equation_and_log_det(rank, dim, rng):
    chain = one_block(Sylvester(rank=rank), 1, dim)
    params = normal_params(chain, rng)
    q, outer, inner, b = parts(params)
    np.testing.assert_allclose(q.T @ q, np.eye(q.shape[1]), rtol=0, atol=1e-14)
    assert (np.diag(outer) * np.diag(inner) > -1).all()
    z = rng.standard_normal((6, dim))
    a = z @ q @ inner.T + b
    z_new, log_det = evaluate(*chain.forward_and_log_det(fixed(z), params))
    np.testing.assert_allclose(z_new, z + np.tanh(a) @ outer.T @ q.T, rtol=1e-12, atol=1e-13)
    for row, value in zip(a, log_det, strict=True):
        jacobian = np.eye(dim) + q @ outer @ np.diag(1 / np.cosh(row) ** 2) @ inner @ q.T
        np.testing.assert_allclose(value, np.linalg.slogdet(jacobian).logabsdet, atol=1e-12)


def test_rank_one_is_a_planar_flow(rng):
    chain = one_block(Sylvester(rank=1), 1, 4)
    params = normal_params(chain, rng)
    q, outer, inner, b = parts(params)
    planar = {
        "b": fixed(b[0]),
        "s": fixed(1 + outer[0, 0] * inner[0, 0]),
        "u_hat": fixed(q[:, 0] * outer[0, 0]),
        "w": fixed(q[:, 0] * inner[0, 0]),
    }
    z = fixed(rng.standard_normal((5, 4)))
    ours = chain.forward_and_log_det(z, params)
    values = evaluate(*ours, *Planar().forward_and_log_det(z, planar))
    np.testing.assert_allclose(values[0], values[2], rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(values[1], values[3], rtol=1e-11, atol=1e-13)


def test_the_density_integrates_to_one(rng):
    chain = one_block(Sylvester(rank=2), 2, 2)
    params = normal_params(chain, rng)
    grid = np.linspace(-12, 12, 801)
    y = np.stack(np.meshgrid(grid, grid), axis=-1).reshape(-1, 2)
    z, log_det = evaluate(*chain.inverse_and_log_det(fixed(y), params))
    density = np.exp(-0.5 * (z**2).sum(axis=1) - log_det) / (2 * np.pi)
    assert density.sum() * (grid[1] - grid[0]) ** 2 == pytest.approx(1, abs=1e-3)


def test_a_rank_that_is_none():
    with pytest.raises(FormulaError, match="rank must be at least 1"):
        pmf.Formula("sylvester(rank=0)")
