import numpy as np
import pytest

from pymc_flows.field.selection import neighbours, select
from pymc_flows.importance import systematic


@pytest.fixture
def weighted(rng):
    points = rng.standard_normal((1_000, 2)) * [1.0, 100.0]
    weights = np.exp(0.5 * points[:, 0])
    return points, weights / weights.sum()


def errors(values, weights, choose):
    """Root mean squares of errors of means over 60 choices."""
    means = [values[choose()].mean(axis=0) for _ in range(60)]
    return np.sqrt(np.square(np.array(means) - weights @ values).mean(axis=0))


def test_few_values_have_the_moments_of_all(weighted, rng):
    points, weights = weighted
    moments = np.column_stack([points, points**2, points.prod(axis=1)])
    found = errors(moments, weights, lambda: select(points, weights, 250, rng))
    plain = errors(moments, weights, lambda: systematic(weights, 250, rng))
    assert (found < 0.1 * plain).all()


def test_what_is_not_matched_has_no_more_noise_than_in_strata(weighted, rng):
    points, weights = weighted
    others = np.column_stack(
        [points[:, 0] > 1.5, points[:, 1] < -150, np.cos(3 * points[:, 0]), points[:, 0] ** 4]
    ).astype(float)
    found = errors(others, weights, lambda: select(points, weights, 250, rng))
    plain = errors(others, weights, lambda: systematic(weights, 250, rng))
    assert (found < 0.8 * plain).all()


def test_regions_are_chosen_as_often_as_their_weights_say(weighted, rng):
    points, weights = weighted
    counts = np.zeros(1_000)
    for _ in range(150):
        np.add.at(counts, select(points, weights, 100, rng), 1)
    for column in points.T:
        regions = np.searchsorted(np.quantile(column, np.linspace(0.1, 0.9, 9)), column)
        expected = 150 * 100 * np.bincount(regions, weights)
        np.testing.assert_allclose(np.bincount(regions, counts), expected, rtol=0.08)
    # Single values are favoured a little, by where they are.
    assert np.corrcoef(counts, weights)[0, 1] > 0.8


def test_neighbours_are_near_each_other(weighted):
    points, weights = weighted
    order = neighbours(points, weights)
    assert sorted(order) == list(range(1_000))
    z = points[order] / points.std(axis=0)
    assert np.linalg.norm(np.diff(z, axis=0), axis=1).mean() < 0.3


def test_neighbours_of_points_without_spread_or_weight():
    points = np.column_stack([np.ones(9), np.arange(9.0)])
    weights = np.array([1.0, *np.zeros(8)])
    for which in (points, points[:, :1], points[:, :0], points[:0]):
        order = neighbours(which, weights[: len(which)])
        assert sorted(order) == list(range(len(which)))


def test_one_value_may_have_all_the_weight(rng):
    for points in (np.zeros((3, 0)), np.arange(6.0).reshape(3, 2), np.zeros((3, 20))):
        found = select(points, np.array([0.0, 1.0, 0.0]), 5, rng)
        np.testing.assert_array_equal(found, 1)
