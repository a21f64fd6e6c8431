import numpy as np
import pytest
from scipy import sparse

from pymc_flows.flows.frame import Frame
from pymc_flows.model.curvature import LowRankSum
from pymc_flows.start.ascent import pulled_back


@pytest.mark.parametrize("scale", [None, np.array([0.5, 1.0, 2.0]), np.tri(3) + np.eye(3)])
def test_hessians_in_the_coordinates_of_a_frame(scale, rng):
    whole, rows = np.diag([1.0, 2.0, 3.0]), rng.standard_normal((2, 3))
    weights = np.array([3.0, -0.5])
    full = whole + (rows.T * weights) @ rows
    jacobian = np.eye(3) if scale is None else np.diag(scale) if scale.ndim == 1 else scale
    expected = jacobian.T @ full @ jacobian
    for matrix in (
        full,
        sparse.csc_matrix(full),
        LowRankSum(sparse.csc_matrix(whole), rows, weights),
    ):
        found = pulled_back(Frame(np.zeros(3), scale), matrix)
        np.testing.assert_allclose(
            np.stack([found @ unit for unit in np.eye(3)]), expected, atol=1e-12
        )
        np.testing.assert_allclose(found.diagonal(), np.diagonal(expected))
    nowhere = LowRankSum(np.nan * sparse.csc_matrix(whole), rows, np.nan * weights)
    assert not (pulled_back(Frame(np.zeros(3), scale), nowhere) @ np.ones(3)).any()
