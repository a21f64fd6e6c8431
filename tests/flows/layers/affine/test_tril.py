"""Lower-triangular layers."""

import numpy as np
import pytest

from flow_cases import evaluate, one_block, shared_params
from pymc_flows.flows import Tril, build_chain
from pymc_flows.formula import Formula

LAYER = Tril()


def matrix(lower, rho):
    """L as the class says it, written with loops."""
    dim = len(rho)
    sigma = np.log1p(np.exp(rho))
    values = iter(lower)
    result = np.zeros((dim, dim))
    for i in range(dim):
        for j in range(i):
            result[i, j] = sigma[i] * next(values)
        result[i, i] = sigma[i]
    return result


@pytest.mark.parametrize("dim", [1, 2, 7])
def test_equation_and_log_det(dim, rng):
    lower, rho = rng.standard_normal(dim * (dim - 1) // 2), rng.standard_normal(dim)
    expected = matrix(lower, rho)
    params = shared_params([{"lower": lower[None], "rho": rho[None]}])
    chain = one_block(LAYER, 1, dim)
    z = rng.standard_normal((5, dim))
    z_new, log_det = evaluate(*chain.forward_and_log_det(z, params))
    np.testing.assert_allclose(z_new, z @ expected.T, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(log_det, np.linalg.slogdet(expected).logabsdet, rtol=0, atol=1e-12)
    again, _ = evaluate(*chain.inverse_and_log_det(z, params))
    np.testing.assert_allclose(again, np.linalg.solve(expected, z.T).T, rtol=1e-11, atol=1e-12)


def test_any_covariance_is_reached(rng):
    dim = 6
    root = rng.standard_normal((dim, dim))
    target = np.linalg.cholesky(root @ root.T)
    sigma = np.diag(target)
    lower = (target / sigma[:, None])[np.tril_indices(dim, -1)]
    params = shared_params([{"lower": lower[None], "rho": np.log(np.expm1(sigma))[None]}])
    z_new, _ = one_block(LAYER, 1, dim).forward_and_log_det(np.eye(dim), params)
    np.testing.assert_allclose(evaluate(z_new)[0].T, target, rtol=1e-11, atol=1e-12)


def test_number_of_parameters():
    (shapes,) = build_chain("tril", 5).param_shapes()
    assert shapes == {"lower": (1, 10), "rho": (1, 5)}
    assert "(d²+d)/2" in repr(Formula("tril"))
