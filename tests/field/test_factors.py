from dataclasses import dataclass

import numpy as np
import pytest
from scipy import sparse

from pymc_flows.field.factors import Factoring, NotPositiveDefinite, factoring, low_rank
from pymc_flows.field.factors.blocks import (
    SMALL,
    BlockFactoring,
    small_cholesky,
    small_inverse,
    times,
)
from pymc_flows.field.factors.bordered import BorderedFactoring
from pymc_flows.field.factors.dense import DenseFactoring
from pymc_flows.field.factors.general import SparseFactoring
from pymc_flows.field.factors.low_rank import LowRankFactoring


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
    (full, 20, DenseFactoring, 0),
    (full, 200, DenseFactoring, 0),
    (banded, 200, SparseFactoring, 0),
    (blocks, 60, BlockFactoring, 0),
    (bordered, 60, DenseFactoring, 0),
    (bordered, 120, BorderedFactoring, 0),
    (bordered_band, 220, BorderedFactoring, 0),
    (full, 20, LowRankFactoring, 3),
    (banded, 200, LowRankFactoring, 1),
    (blocks, 60, LowRankFactoring, 3),
    (bordered, 60, BorderedFactoring, 3),
    (bordered_band, 220, BorderedFactoring, 2),
]


@dataclass
class Case:
    """A matrix in full, its entries, and what factors it."""

    dense: np.ndarray
    entries: np.ndarray
    diagonal: np.ndarray
    found: Factoring

    @classmethod
    def make(cls, make, n, kind, k, rng):
        """With k rows of a part of low rank, of one group and the separator; none at the end."""
        dense, groups = make(n, rng)
        matrix = sparse.csc_matrix(dense)
        rows, weights = rng.standard_normal((k, n)), rng.uniform(-0.01, 2.0, k)
        rows[:, -1] = 0.0
        if groups is not None:
            rows[:1, groups > 0] = 0.0
            rows[1:, groups >= 0] = 0.0
        found = factoring(matrix, groups, rows)
        assert isinstance(found, kind)
        whole = dense + (rows.T * weights) @ rows
        diagonal = np.flatnonzero(found.indices == found.columns)
        return cls(whole, np.concatenate([matrix.data, weights]), diagonal, found)

    def scaled(self, elements, factor):
        """Entries with other ones on the diagonal."""
        entries = self.entries.copy()
        entries[self.diagonal[elements]] *= factor
        return entries


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0].__name__}-{case[1]}-{case[3]}")
def case(request, rng):
    return Case.make(*request.param, rng)


def test_a_factor_solves_and_has_the_determinant(case, rng):
    dense, factor = case.dense, case.found.factor(case.entries)
    b = rng.standard_normal((3, len(dense)))
    np.testing.assert_allclose(factor.solve(b), np.linalg.solve(dense, b.T).T, atol=1e-10)
    np.testing.assert_allclose(factor.solve(b[0]), np.linalg.solve(dense, b[0]), atol=1e-10)
    assert factor.half_log_det == pytest.approx(0.5 * np.linalg.slogdet(dense)[1])


def test_coloured_noise_has_the_inverse_as_covariance(case, rng):
    factor = case.found.factor(case.entries)
    root = factor.color(np.eye(len(case.dense)))
    inverse = np.linalg.inv(case.dense)
    np.testing.assert_allclose(root.T @ root, inverse, atol=1e-10)
    noise = rng.standard_normal((5, len(case.dense)))
    np.testing.assert_allclose(factor.whiten(factor.color(noise)), noise, atol=1e-9)


def test_other_values_in_the_same_pattern_have_their_own_factor(case, rng):
    case.found.factor(case.entries)
    other = case.scaled(slice(None), 1.5)
    more = other[case.diagonal] - case.entries[case.diagonal]
    b = rng.standard_normal(len(case.dense))
    expected = np.linalg.solve(case.dense + np.diag(more), b)
    np.testing.assert_allclose(case.found.factor(other).solve(b), expected, atol=1e-10)


def test_what_is_not_positive_definite_has_no_factor(case):
    for wrong in (-1.0, 0.0, np.nan):
        other = case.scaled(-1, wrong)
        with pytest.raises(NotPositiveDefinite):
            case.found.factor(other)
        # What has none leaves those beside it alone.
        together = case.found.factors(np.stack([case.entries, other, 4 * case.entries]))
        assert together.exist.tolist() == [True, False, True]
        b = np.ones((2, len(case.dense)))
        expected = case.found.factor(case.entries).solve(b[0])
        for k, solved in enumerate(together.solve(np.array([0, 2]), b)):
            np.testing.assert_allclose(solved, expected / 4**k, rtol=1e-10)


@pytest.mark.parametrize("k", [0, 2])
@pytest.mark.parametrize(("make", "n"), [(bordered, 60), (bordered_band, 220)])
def test_whitened_groups_depend_on_themselves_and_the_separator_only(make, n, k, rng):
    case = Case.make(make, n, Factoring, k, np.random.default_rng(1))
    _, groups = make(n, np.random.default_rng(1))
    factor = case.found.factor(case.entries)
    delta = rng.standard_normal(n)
    for own in (groups == 0, groups == 1):
        if own.any():
            before = factor.whiten(delta)
            delta[own] += 1.0
            changed = ~np.isclose(factor.whiten(delta), before, atol=1e-12)
            assert changed.any()
            assert not changed[~own].any()


def laplacian(n):
    """Of a ring: its null space are constants."""
    return 2 * np.eye(n) - sum(np.roll(np.eye(n), shift, axis=1) for shift in (1, -1))


@pytest.mark.parametrize("weight", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("softest", [0.0, 1e-14])
def test_a_singular_part_has_a_factor_with_its_sum_fixed(weight, softest):
    n = 160
    rest = laplacian(n) + softest * np.eye(n)
    found = factoring(sparse.csc_matrix(rest), rows=np.ones((1, n)))
    factor = found.factor(np.append(sparse.csc_matrix(rest).data, weight))
    # Constants, along which the row is n · weight, and all else are apart.
    unit = laplacian(n) + 1 / n
    inverse = np.linalg.inv(unit) - 1 / n + 1 / (n**2 * weight)
    half_log_det = 0.5 * (np.linalg.slogdet(unit)[1] + np.log(n * weight))
    close = 1e-6 * np.abs(inverse).max()
    np.testing.assert_allclose(factor.solve(np.eye(n)), inverse, atol=close)
    root = factor.color(np.eye(n))
    np.testing.assert_allclose(root.T @ root, inverse, atol=close)
    assert factor.half_log_det == pytest.approx(half_log_det, abs=1e-6)
    with pytest.raises(NotPositiveDefinite):
        found.factor(np.append(sparse.csc_matrix(rest).data, -1e-3))


def test_an_indefinite_part_has_a_factor_where_the_whole_has_one(rng, monkeypatch):
    n = 160
    rest = sparse.csc_matrix(laplacian(n) - 0.1 * np.eye(n) / n)
    row = np.ones((1, n))
    found = factoring(rest, rows=row)
    factor = found.factor(np.append(rest.data, 1.0))
    b = rng.standard_normal(n)
    np.testing.assert_allclose(factor.solve(b), np.linalg.solve(rest.toarray() + 1.0, b), rtol=1e-6)
    monkeypatch.setattr(
        low_rank, "MOST_DENSE", n - 1
    )  # where that is too dear, Newton's steps damp
    with pytest.raises(NotPositiveDefinite):
        found.factor(np.append(rest.data, 1.0))


@pytest.mark.parametrize("size", [1, 2, 3, SMALL, SMALL + 1])
def test_small_triangles_are_those_of_lapack(size):
    rng = np.random.default_rng(size)
    roots = rng.standard_normal((5, 7, size, size))
    matrices = roots @ roots.swapaxes(-1, -2) + np.eye(size)
    vectors = rng.standard_normal((5, 7, size))
    lower = small_cholesky(matrices)
    np.testing.assert_allclose(lower, np.linalg.cholesky(matrices), atol=1e-12)
    np.testing.assert_allclose(small_inverse(lower), np.linalg.inv(lower), atol=1e-12)
    expected = np.einsum("...ij,...j->...i", lower, vectors)
    np.testing.assert_allclose(times(lower, vectors), expected, atol=1e-12)
    expected = np.einsum("...ji,...j->...i", lower, vectors)
    np.testing.assert_allclose(times(lower, vectors, transpose=True), expected, atol=1e-12)
    matrices[3, 2, -1, -1] = -1.0
    with pytest.raises(NotPositiveDefinite):
        small_cholesky(matrices)
