"""The look at a posterior before a fit, on posteriors that are known."""

import numpy as np
import pymc as pm
import pytest
from scipy import optimize, stats

from pymc_flows.errors import ModelError
from pymc_flows.model.log_density import n_data
from pymc_flows.model.logp import density_of
from pymc_flows.start import search as _search
from pymc_flows.start.modes import find_modes
from pymc_flows.start.options import SearchOptions, share_of_draws
from pymc_flows.start.search import find_frame, search
from pymc_flows.start.target import Target


def gaussian(mean, cov):
    precision = np.linalg.inv(cov)

    def evaluate(points):
        pull = -(points - mean) @ precision
        return 0.5 * ((points - mean) * pull).sum(axis=1), pull

    return evaluate


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e5])
def test_a_gaussian_is_found_whatever_its_units(scale, rng):
    root = rng.normal(size=(6, 6)) * scale * np.geomspace(0.01, 100, 6)[:, None]
    mean, cov = 50 * scale * rng.normal(size=6), root @ root.T
    frame = search(Target(gaussian(mean, cov)), np.zeros(6), rng)
    sd = np.sqrt(np.diagonal(cov))
    np.testing.assert_allclose((frame.center - mean) / sd, 0, atol=1e-3)
    np.testing.assert_allclose((frame.scale @ frame.scale.T) / sd / sd[:, None],
                               cov / sd / sd[:, None], atol=1e-4)  # fmt: skip


def test_without_correlations_it_is_the_best_mean_field(rng):
    cov = np.array([[1, 0.9], [0.9, 1]])
    frame = search(Target(gaussian(np.zeros(2), cov)), np.ones(2), rng, dense=False)
    np.testing.assert_allclose(frame.scale, np.sqrt(1 - 0.9**2), rtol=1e-4)


def test_a_model_in_any_units():
    rng = np.random.default_rng(3)
    x = 1e4 + 300 * rng.normal(size=40)
    y = 3 + 2e-3 * x + rng.normal(size=40)
    with pm.Model() as model:
        a, b = pm.Flat("a"), pm.Flat("b")
        pm.Normal("y", a + b * x, 1, observed=y)
    frame = find_frame(model, random_seed=1)
    design = np.column_stack([np.ones(40), x])
    cov = np.linalg.inv(design.T @ design)
    sd = np.sqrt(np.diagonal(cov))
    mean = np.linalg.lstsq(design, y)[0]
    np.testing.assert_allclose((frame.center - mean) / sd, 0, atol=0.05)
    np.testing.assert_allclose(np.linalg.norm(frame.scale, axis=1), sd, rtol=0.05)


def test_a_start_without_a_gradient_is_moved():
    """The density of extreme values has a limit at a shape of 0, where its gradient is 0 · ∞."""
    y = stats.genextreme(c=-0.1).rvs(60, random_state=1)
    with pm.Model() as model:
        shape = pm.Normal("shape", 0, 0.3)
        tail = pm.math.switch(
            pm.math.eq(shape, 0), pm.math.exp(-y), (1 + shape * y) ** (-1 / shape)
        )
        pm.Potential("y", ((1 + shape) * pm.math.log(tail) - tail).sum())
    frame = find_frame(model, random_seed=1)

    def negative(x):
        return -stats.genextreme(c=-x).logpdf(y).sum() - stats.norm(0, 0.3).logpdf(x)

    mode = optimize.minimize_scalar(negative, (0.02, 0.2)).x
    curvature = (negative(mode - 1e-3) - 2 * negative(mode) + negative(mode + 1e-3)) / 1e-6
    assert frame.center == pytest.approx(mode, abs=1e-4)
    assert frame.scale**-2 == pytest.approx(curvature, rel=1e-3)


def test_a_mode_without_mass_is_left_for_where_the_mass_is():
    """The funnel's density grows without bound as v falls; its mass does not."""
    with pm.Model() as model:
        v = pm.Normal("v", 0, 3)
        pm.Normal("x", 0, pm.math.exp(v / 2), shape=9)
    frame = find_frame(model, random_seed=1)
    assert abs(frame.center[0]) < 6


def test_modes_apart_are_covered_together(rng):
    """Two Gaussians, 20 standard deviations from each other, 1 : 3."""
    centers, weights = np.array([[-10.0, 0], [10.0, 0]]), np.array([0.25, 0.75])

    def evaluate(points):
        offset = points[:, None] - centers
        parts = np.log(weights) - 0.5 * (offset**2).sum(axis=-1)
        top = parts.max(axis=1, keepdims=True)
        share = np.exp(parts - top)
        total = share.sum(axis=1, keepdims=True)
        return (top + np.log(total))[:, 0], -(share[..., None] * offset).sum(axis=1) / total

    frame = search(Target(evaluate), np.array([-9.0, 1.0]), rng, options=SearchOptions(n_starts=30))
    np.testing.assert_allclose(frame.center, [5, 0], atol=1)
    np.testing.assert_allclose(frame.scale[0, 0], np.sqrt(1 + 75), rtol=0.1)


@pytest.mark.parametrize(("most", "n"), [(2, 10), (1, 4)])
def test_many_dimensions_are_searched_from_fewer_points(most, n, rng, monkeypatch):
    monkeypatch.setattr(_search, "MAX_DENSE", most)
    begun = []

    def noted(target, frame, *args):
        begun.append(frame.center)
        return ascend(target, frame, *args)

    ascend = _search.ascend
    monkeypatch.setattr(_search, "ascend", noted)
    options = SearchOptions(same_in_a_row=99, max_climbs=0)
    search(Target(gaussian(np.zeros(2), np.eye(2))), np.ones(2), rng, options=options)
    assert len(begun) == n


def test_restarts_search_many_dimensions_from_all_their_points(monkeypatch):
    begun = []
    monkeypatch.setattr(_search, "MAX_DENSE", 1)
    monkeypatch.setattr(_search.Seeker, "_ascend", lambda _, point: begun.append(point) or [])
    with pm.Model() as model:
        pm.Normal("x", shape=2)
    find_modes(model, n_starts=12, random_seed=1)
    nudged = len(SearchOptions().nudges)
    assert len(begun) == 12 + nudged


def test_a_gaussian_that_reaches_into_a_wall_is_narrowed(rng):
    """The curvature at the mode knows nothing of the wall at 1."""

    def evaluate(z):
        with np.errstate(over="ignore"):
            wall = np.exp(20 * (z[:, 0] - 1))
        return -0.5 * z[:, 0] ** 2 - wall, -z - 20 * wall[:, None]

    frame = search(Target(evaluate), np.array([-0.5]), rng)
    assert frame.center[0] < 0.1
    assert 0.2 < np.ravel(frame.scale)[0] <= 0.5


def test_the_same_seed_gives_the_same_frame():
    with pm.Model() as model:
        pm.Gamma("x", 2, 1, shape=3)
    one, other = (find_frame(model, random_seed=5) for _ in range(2))
    np.testing.assert_array_equal(one.center, other.center)
    np.testing.assert_array_equal(one.scale, other.scale)


def test_a_start_without_density_is_named():
    with pm.Model() as model:
        x = pm.Normal("x")
        pm.Potential("wall", pm.math.switch(x > 5, 0.0, -np.inf))
    with pytest.raises(ModelError, match="wall"):
        find_frame(model)


def test_draws_beyond_a_wall_do_not_rule_a_gaussian_out():
    with pm.Model() as model:
        x = pm.Normal("x")
        pm.Potential("wall", pm.math.switch(x > 5, 0.0, -np.inf))
    frame = find_frame(model, start={"x": 6.0}, random_seed=1)
    # Above 5, a normal has mean 5.187 and standard deviation .181.
    assert 5 <= frame.center[0] < 5.4
    assert 0.1 < frame.scale.item() < 0.4


def test_a_search_that_runs_off_leaves_the_start(rng):
    """A log density without a mode, which is infinite far out."""

    def evaluate(points):
        with np.errstate(all="ignore"):
            value = np.exp(points.sum(axis=1) ** 2)
            gradient = 2 * points.sum(axis=1, keepdims=True) * value[:, None] + 0 * points
        return np.where(value < 1e300, value, np.nan), gradient

    frame = search(Target(evaluate), np.full(2, 0.1), rng)
    assert np.isfinite(frame.center).all()


def test_a_gradient_that_is_infinite_nearby_is_no_error(rng):
    """|x|^1.5 has an infinite curvature at its mode, and sqrt(x) a gradient that is."""

    def evaluate(points):
        size = np.abs(points)
        with np.errstate(all="ignore"):
            return -np.sqrt(size).sum(axis=1), -np.sign(points) * 0.5 / np.sqrt(size)

    frame = search(Target(evaluate), np.zeros(2), rng)
    assert np.isfinite(frame.center).all()


def test_large_data_are_evaluated_less_often():
    cov = np.array([[1, 0.9], [0.9, 1]])
    spent, frames = [], []
    for size in (1_000, 5_000_000):
        target = Target(gaussian(np.ones(2), cov), n_data=size)
        frames.append(search(target, np.zeros(2), np.random.default_rng(1)))
        spent.append(target.evaluations.gradients)
    assert spent[1] < 0.5 * spent[0]
    np.testing.assert_allclose(frames[1].center, frames[0].center, atol=1e-3)
    assert [share_of_draws(n) for n in (0, 10**6, 2 * 10**6, 10**9)] == [1, 1, 0.5, 0.25]


def test_numbers_in_data_are_counted():
    with pm.Model() as model:
        x = pm.Data("x", np.ones((50, 3)))
        pm.Normal("y", x @ pm.Normal("b", shape=3), 1, observed=np.arange(50.0))
    assert 200 <= n_data(density_of(model)) < 260
