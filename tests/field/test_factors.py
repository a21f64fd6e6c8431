import numpy as np
import pytest
from scipy import sparse

from pymc_flows.field.factors import NotPositiveDefinite, factoring
from pymc_flows.field.factors.blocks import BlockFactoring
from pymc_flows.field.factors.bordered import BorderedFactoring
from pymc_flows.field.factors.dense import DenseFactoring
from pymc_flows.field.factors.general import SparseFactoring


def banded(n, rng):
    low = np.eye(n) * 2 + np.diag(rng.standard_normal(n - 1), -1)
    return low @ low.T, None


def blocks(n, rng):
    dense = np.zeros((n, n))
    order, begin = rng.permutation(n), 0
    for size in (1, 1, 3, 2, 3, 1, 4, 2, 30):
        index = order[begin : begin + size]
        half = rng.standard_normal((size, size))
        dense[np.ix_(index, index)] = half @ half.T + size * np.eye(size)
        begin += size
    rest = order[begin:]
    dense[rest, rest] = 2.0
    return dense, None


def bordered(n, rng):
    """Groups of different sizes, tied to a separator of 4."""
    dense, _ = blocks(n, rng)
    groups = sparse.csgraph.connected_components(dense)[1]
    separator = rng.permutation(n)[:4]
    groups[separator] = -1
    groups[groups >= 0] = np.unique(groups[groups >= 0], return_inverse=True)[1]
    dense[separator] = dense[:, separator] = 0
    ties = rng.standard_normal((4, n)) * (rng.random((4, n)) < 0.6)
    dense[separator] = 0.3 * ties
    dense[:, separator] = 0.3 * ties.T
    dense[np.ix_(separator, separator)] = 30 * np.eye(4)
    return dense, groups


def bordered_band(n, rng):
    """A long band with two hubs."""
    dense, _ = banded(n, rng)
    groups = np.zeros(n, int)
    groups[[3, n // 2]] = -1
    hubs = np.flatnonzero(groups < 0)
    dense[hubs] = dense[:, hubs] = 0
    dense[hubs] = ties = 0.1 * rng.standard_normal((2, n))
    dense[:, hubs] = ties.T
    dense[hubs, hubs] = 40
    dense[hubs[0], hubs[1]] = dense[hubs[1], hubs[0]] = 1
    return dense, groups


def full(n, rng):
    half = rng.standard_normal((n, n))
    return half @ half.T + n * np.eye(n), None


CASES = [
    (full, 20, DenseFactoring),
    (full, 200, DenseFactoring),
    (banded, 200, SparseFactoring),
    (blocks, 60, BlockFactoring),
    (bordered, 60, DenseFactoring),
    (bordered, 120, BorderedFactoring),
    (bordered_band, 220, BorderedFactoring),
]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0].__name__}-{case[1]}")
def case(request, rng):
    make, n, kind = request.param
    dense, groups = make(n, rng)
    matrix = sparse.csc_matrix(dense)
    found = factoring(matrix, groups)
    assert isinstance(found, kind)
    return dense, matrix, found


def test_a_factor_solves_and_has_the_determinant(case, rng):
    dense, matrix, found = case
    factor = found.factor(matrix.data)
    b = rng.standard_normal((3, len(dense)))
    np.testing.assert_allclose(factor.solve(b), np.linalg.solve(dense, b.T).T, atol=1e-10)
    np.testing.assert_allclose(factor.solve(b[0]), np.linalg.solve(dense, b[0]), atol=1e-10)
    assert factor.half_log_det == pytest.approx(0.5 * np.linalg.slogdet(dense)[1])


def test_coloured_noise_has_the_inverse_as_covariance(case, rng):
    dense, matrix, found = case
    factor = found.factor(matrix.data)
    root = factor.color(np.eye(len(dense)))
    inverse = np.linalg.inv(dense)
    np.testing.assert_allclose(root.T @ root, inverse, atol=1e-10)
    np.testing.assert_allclose(factor.variances(), np.diagonal(inverse), rtol=1e-8)
    noise = rng.standard_normal((5, len(dense)))
    np.testing.assert_allclose(factor.whiten(factor.color(noise)), noise, atol=1e-9)


def test_other_values_in_the_same_pattern_have_their_own_factor(case, rng):
    dense, matrix, found = case
    found.factor(matrix.data)
    other = matrix.copy()
    other.setdiag(1.5 * matrix.diagonal())
    b = rng.standard_normal(len(dense))
    expected = np.linalg.solve(other.toarray(), b)
    np.testing.assert_allclose(found.factor(other.data).solve(b), expected, atol=1e-10)


def test_what_is_not_positive_definite_has_no_factor(case):
    _, matrix, found = case
    for wrong in (-1.0, 0.0, np.nan):
        other = matrix.copy()
        diagonal = matrix.diagonal()
        diagonal[-1] *= wrong
        other.setdiag(diagonal)
        with pytest.raises(NotPositiveDefinite):
            found.factor(other.data)
        # What has none leaves those beside it alone.
        together = found.factors(np.stack([matrix.data, other.data, 4 * matrix.data]))
        assert together.exist.tolist() == [True, False, True]
        b = np.ones((2, matrix.shape[0]))
        expected = found.factor(matrix.data).solve(b[0])
        for k, solved in enumerate(together.solve(np.array([0, 2]), b)):
            np.testing.assert_allclose(solved, expected / 4**k, rtol=1e-10)


@pytest.mark.parametrize("make", [bordered, bordered_band])
def test_whitened_groups_depend_on_themselves_and_the_separator_only(make, rng):
    dense, groups = make(220 if make is bordered_band else 60, rng)
    matrix = sparse.csc_matrix(dense)
    factor = factoring(matrix, groups).factor(matrix.data)
    delta = rng.standard_normal(len(dense))
    before = factor.whiten(delta)
    own = groups == 0
    delta[own] += 1.0
    changed = ~np.isclose(factor.whiten(delta), before, atol=1e-12)
    assert changed.any()
    assert not changed[~own].any()
