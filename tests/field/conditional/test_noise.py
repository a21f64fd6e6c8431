import numpy as np
import pytest

from pymc_flows.field.conditional.noise import MAX_SOBOL, NormalNoise, quadrature, ranks


def test_ranks_count_within_groups_and_the_separator_after_them():
    found, size = ranks(np.array([1, 0, -1, 1, 1, -1]))
    np.testing.assert_array_equal(found, [0, 0, 3, 1, 2, 4])
    assert size == 5


@pytest.mark.parametrize("groups", [[0, 0, 1, 1, 1, 2], [0, 1, -1, 2, -1, 0], [-1] * 5])
def test_quadrature_has_moments_of_a_normal_within_groups(groups, rng):
    groups = np.array(groups)
    points = quadrature(groups, 16, rng)
    np.testing.assert_allclose(points.mean(axis=0), 0)
    moments = points.T @ points / len(points)
    same = (groups[:, None] == groups) | (groups[:, None] < 0) | (groups < 0)
    np.testing.assert_allclose(moments[same], np.eye(len(groups))[same], atol=1e-12)


def test_more_elements_than_pairs_keep_means_and_variances(rng):
    points = quadrature(np.zeros(50, int), 8, rng)
    assert points.shape == (16, 50)
    np.testing.assert_allclose(points.mean(axis=0), 0)
    np.testing.assert_allclose((points**2).mean(axis=0), 1)


def test_draws_are_standard_normal_and_independent_within_a_group(rng):
    noise = NormalNoise.make(np.array([0, 0, 1, -1]), 4096, rng).rows(0, 4096)
    np.testing.assert_allclose(noise.mean(axis=0), 0, atol=0.01)
    np.testing.assert_allclose((noise**2).mean(axis=0), 1, atol=0.02)
    assert abs(np.corrcoef(noise.T)[0, [1, 3]]).max() < 0.02


def test_elements_beyond_the_low_discrepancy_sequence_are_independent_of_all_others(rng):
    size = 2 * MAX_SOBOL
    noise = NormalNoise.make(np.zeros(size, int), 256, rng).rows(0, 256)
    correlation = np.corrcoef(noise.T)
    # Of 256 independent pairs it is 0 ± 1/16.
    assert abs(correlation[MAX_SOBOL:, :MAX_SOBOL]).max() < 6 / 16
    assert abs(np.square(noise).sum(axis=1).mean() / size - 1) < 0.02


def test_rows_do_not_depend_on_how_they_are_asked_for(rng):
    noise = NormalNoise.make(np.repeat([0, 1], [MAX_SOBOL + 9, 2]), 32, rng)
    together = noise.rows(0, 32)
    np.testing.assert_array_equal(np.concatenate([noise.rows(0, 7), noise.rows(7, 32)]), together)
