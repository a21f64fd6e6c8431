"""Log densities by group sum to the whole, and a group's changes with its own latents only."""

import numpy as np
import pymc as pm
import pytensor
import pytest
from pytensor.graph.traversal import ancestors

from models import ZOO
from pymc_flows.errors import ArgumentError
from pymc_flows.model.log_density import LogDensity
from pymc_flows.model.logp import ModelDensity
from pymc_flows.model.structure import GroupedDensity, structure_of
from single_draws import points_near

# All kinds of sums, a loop, and points where the density is zero.
NAMES = ("eight_schools", "mv_normal", "zero_sum", "random_walks", "lkj_cholesky", "garch")


@pytest.mark.parametrize("name", [*NAMES, "without_transform"])
def test_groups_sum_to_the_log_density(name):
    density = ModelDensity(ZOO[name]())
    points = points_near(density, 5, scale=1.0)
    grouped = GroupedDensity(density, structure_of(density))
    shared, by_group = grouped(points)
    expected = LogDensity(density).value(points)
    np.testing.assert_allclose(shared + by_group.sum(axis=1), expected, rtol=1e-10)
    assert grouped.n_evaluations == 5
    assert np.isneginf(expected).any() == (name == "without_transform")


def test_variables_and_data_may_be_empty():
    with pm.Model() as model:
        scale = pm.HalfNormal("scale")
        pm.Normal("none", 0, scale, shape=(0, 2))
        a = pm.Normal("a", 0, scale, shape=3)
        pm.Normal("nothing", a[np.zeros(0, int)], 1, observed=np.zeros(0))
        pm.Normal("y", a, 1, observed=np.arange(3.0))
    density = ModelDensity(model)
    points = points_near(density, 2)
    shared, by_group = GroupedDensity(density, structure_of(density))(points)
    assert by_group.shape == (2, 3)
    expected = LogDensity(density).value(points)
    np.testing.assert_allclose(shared + by_group.sum(axis=1), expected)


def test_single_precision():
    with pytensor.config.change_flags(floatX="float32"):
        density = ModelDensity(ZOO["eight_schools"]())
        points = points_near(density, 5)
        shared, by_group = GroupedDensity(density, structure_of(density))(points)
        expected = LogDensity(density).value(points)
    np.testing.assert_allclose(shared + by_group.sum(axis=1), expected, rtol=1e-5)


def test_a_group_sees_its_own_latents():
    density = ModelDensity(ZOO["eight_schools"]())
    found = structure_of(density)
    grouped = GroupedDensity(density, found)
    points = np.repeat(points_near(density, 1), 2, axis=0)
    points[1, found.group_elements(3)] += 1.0
    shared, by_group = grouped(points)
    assert shared[0] == shared[1]
    assert list(np.flatnonzero(by_group[0] != by_group[1])) == [3]


def test_points_are_evaluated_part_by_part(monkeypatch):
    density = ModelDensity(ZOO["eight_schools"]())
    points = points_near(density, 7)
    whole = GroupedDensity(density, structure_of(density))(points)
    monkeypatch.setattr("pymc_flows.model.structure.grouped._MAX_VALUES", 40)
    parts = GroupedDensity(density, structure_of(density))(points)
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_allclose(a, b)


def test_a_constant_belongs_to_no_group():
    density = ModelDensity(ZOO["only_a_potential_sees_the_data"]())
    points = points_near(density, 2)
    shared, by_group = GroupedDensity(density, structure_of(density))(points)
    np.testing.assert_allclose(shared[:1], shared[1:])
    expected = LogDensity(density).value(points)
    np.testing.assert_allclose(shared + by_group.sum(axis=1), expected)


def test_no_row_is_evaluated_for_a_check_that_always_holds():
    with pm.Model() as model:
        p = pm.Deterministic("p", pm.math.sigmoid(pm.Normal("x", shape=3)))
        pm.Bernoulli("y", p=p, observed=[0, 1, 1])
        pm.Bernoulli("z", logit_p=model["x"] - 1.0, observed=[1, 0, 1])
    density = ModelDensity(model)
    conditions = structure_of(density).factors.checks
    assert conditions
    assert set(ancestors(list(conditions))).isdisjoint(density.values)
    points = points_near(density, 2)
    shared, by_group = GroupedDensity(density, structure_of(density))(points)
    np.testing.assert_allclose(shared + by_group.sum(axis=1), LogDensity(density).value(points))


def test_a_long_walk_prints_no_traceback(caplog):
    """A rewrite of PyTensor's fails on it, with constants of 8 bits."""
    with pm.Model() as model:
        walk = pm.GaussianRandomWalk(
            "walk", sigma=pm.Exponential("s", 1), init_dist=pm.Normal.dist(), shape=300
        )
        pm.Normal("y", walk, 1, observed=np.zeros(300))
    density = ModelDensity(model)
    points = points_near(density, 2)
    shared, by_group = GroupedDensity(density, structure_of(density))(points)
    np.testing.assert_allclose(shared + by_group.sum(axis=1), LogDensity(density).value(points))
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_points_must_be_rows():
    density = ModelDensity(ZOO["eight_schools"]())
    grouped = GroupedDensity(density, structure_of(density))
    with pytest.raises(ArgumentError, match=r"expected points of shape \(n, 10\), got \(10,\)"):
        grouped(np.zeros(10))
