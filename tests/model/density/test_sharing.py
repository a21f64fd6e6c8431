"""One density per model: what was found out and compiled is found again, and never outlives it."""

import gc
import weakref

import numpy as np
import pymc as pm
import pytest
from numpy.testing import assert_allclose
from scipy import stats

import models
import pymc_flows as pmf
from pymc_flows.diagnostics.quality import measure
from pymc_flows.model import log_density
from pymc_flows.model.log_density import LogDensity
from pymc_flows.model.logp import density_of


def normal(**kwargs):
    with pm.Model(**kwargs) as model:
        x = pm.Normal("x", shape=2)
        pm.Normal("y", x[0], 1, observed=pm.Data("data", np.ones(3)))
    return model


def test_approximations_of_a_model_share_its_density():
    model = normal()
    first = pmf.NormalizingFlow("loc", model=model)
    assert pmf.NormalizingFlow("scale-loc", model=model).density is first.density
    assert density_of(model) is first.density
    assert density_of(normal()) is not first.density


def add_a_variable(model):
    with model:
        pm.Normal("z")


def add_a_potential(model):
    with model:
        pm.Potential("more", model["x"].sum())


def take_the_checks_away(model):
    model.check_bounds = False


@pytest.mark.parametrize("change", [add_a_variable, add_a_potential, take_the_checks_away])
def test_a_model_that_changes_has_another_density(change):
    model = normal()
    before = density_of(model)
    change(model)
    after = density_of(model)
    assert after is not before
    assert after is density_of(model)
    assert set(after.named_terms) == {v.name for v in (*model.basic_RVs, *model.potentials)}


def test_a_variable_that_changes_its_shape_has_another_density():
    with pm.Model(coords={"n": range(3)}) as model:
        pm.Normal("x", dims="n")
    before = density_of(model)
    assert density_of(model) is before
    model.set_dim("n", 5, coord_values=range(5))
    assert (before.dim, density_of(model).dim) == (3, 5)


def test_a_density_goes_with_the_last_that_uses_it():
    approx = pmf.NormalizingFlow("loc", model=normal())
    measure(approx, 30)
    density = weakref.ref(approx.density)
    assert approx.density in log_density._FUNCTIONS
    del approx
    gc.collect()
    assert density() is None


def test_functions_are_made_once_and_follow_the_data(monkeypatch):
    made = []
    make = LogDensity._make
    monkeypatch.setattr(
        LogDensity,
        "_make",
        lambda self, n, *args, **kw: made.append(n) or make(self, n, *args, **kw),
    )
    model = normal()
    density = density_of(model)
    points = np.random.default_rng(1).normal(size=(70, 2))
    for y in (np.ones(3), np.arange(3.0), np.arange(9.0)):
        with model:
            pm.set_data({"data": y})
        expected = stats.norm.logpdf(points).sum(1) + stats.norm.logpdf(
            y[:, None], points[:, 0]
        ).sum(0)
        for _ in range(2):
            assert_allclose(LogDensity(density).value(points), expected, rtol=1e-7)
    assert made == [64, 64]  # again only for another length, on which the memory depends


def test_a_model_with_a_scan_is_tried_once(caplog):
    model = models.garch()
    rungs = [pmf.NormalizingFlow("scale-loc", model=model, random_seed=s) for s in (1, 2)]
    found = [measure(approx, 100, random_seed=1).elbo for approx in rungs]
    assert len(set(found)) == 2
    assert sum("one after the other" in r.message for r in caplog.records) == 1
