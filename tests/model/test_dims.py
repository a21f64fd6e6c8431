"""Models of `pymc.dims`, alone and mixed with others, are like any model."""

import warnings

import numpy as np
import pymc as pm
import pytest
from numpy.testing import assert_allclose

import pymc_flows as pmf
from fits import JAX
from pymc_flows.model.log_density import LogDensity
from pymc_flows.model.logp import ModelDensity

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "The `pymc.dims` module is experimental")
    import pymc.dims as pmd

GROUP = np.repeat(np.arange(3), 10)
X = np.random.default_rng(0).normal(size=30)
Y = np.array([-1.0, 0.0, 2.0])[GROUP] + 0.7 * X + 0.3 * np.random.default_rng(1).normal(size=30)
COORDS = {"group": ["a", "b", "c"], "obs": range(30)}


def named():
    """Effects of groups, a slope that is a plain variable, and a simplex."""
    with pm.Model(coords=COORDS) as model:
        x, group = pmd.Data("x", X, dims="obs"), pmd.Data("index", GROUP, dims="obs")
        mu = pmd.Normal("mu", 0, 3)
        effect = pmd.Normal("effect", mu, 1, dims="group")
        sigma = pmd.HalfNormal("sigma", 1)
        share = pmd.Beta("share", 2, 3, dims="group")
        slope = pm.Normal("slope", 0, 1)
        pmd.Deterministic("product", effect * share)
        pmd.Potential("weight", -0.1 * (share * effect).sum("group"))
        eta = effect.isel(group=group) + pmd.as_xtensor(slope) * x
        pmd.Normal("y", eta, sigma, observed=pmd.as_xtensor(Y, dims="obs"), dims="obs")
    return model


def plain():
    """The same model without names."""
    with pm.Model(coords=COORDS) as model:
        mu = pm.Normal("mu", 0, 3)
        effect = pm.Normal("effect", mu, 1, dims="group")
        sigma = pm.HalfNormal("sigma", 1)
        share = pm.Beta("share", 2, 3, dims="group")
        slope = pm.Normal("slope", 0, 1)
        pm.Potential("weight", -0.1 * (share * effect).sum())
        pm.Normal("y", effect[GROUP] + slope * X, sigma, observed=Y, dims="obs")
    return model


def in_the_order_of(density, other):
    order = [slot.name for slot in other.slots]
    return np.concatenate([np.arange(density.dim)[_slice(density, name)] for name in order])


def _slice(density, name):
    return next(slot.slice for slot in density.slots if slot.name == name)


def test_log_density_and_gradient_are_those_of_the_model_without_names():
    density, other = ModelDensity(named()), ModelDensity(plain())
    points = np.random.default_rng(2).normal(size=(5, density.dim))
    value, gradient = LogDensity(density).value_and_grad(points)
    order = in_the_order_of(density, other)
    expected, expected_gradient = LogDensity(other).value_and_grad(points[:, order])
    assert_allclose(value, expected, rtol=1e-12)
    assert_allclose(gradient[:, order], expected_gradient, rtol=1e-9, atol=1e-9)


def test_starts_are_given_as_for_any_variable():
    density = ModelDensity(named())
    point = density.start({"effect": [1.0, 2.0, 3.0], "sigma": 0.5, "mu": 7.0})
    assert_allclose(point[_slice(density, "effect")], [1, 2, 3])
    assert_allclose(point[_slice(density, "sigma_log__")], [np.log(0.5)])


@pytest.fixture(scope="module")
def fitted():
    """The model, and an approximation after some steps."""
    model = named()
    inference = pmf.NFVI("scale-loc", model=model, random_seed=1)
    return model, inference.fit(20, obj_n_mc=4, **JAX)


def test_draws_have_dims_and_coords(fitted, caplog):
    _, approx = fitted
    posterior = approx.sample(50, random_seed=2).posterior
    assert posterior["effect"].dims == ("chain", "draw", "group")
    assert posterior["product"].dims == ("chain", "draw", "group")
    assert list(posterior["share"].coords["group"].to_numpy()) == ["a", "b", "c"]
    assert posterior["slope"].dims == posterior["mu"].dims == ("chain", "draw")
    assert_allclose(posterior["product"], posterior["effect"] * posterior["share"], rtol=1e-12)
    assert "draw by draw" not in caplog.text


def test_log_densities_of_draws_are_those_of_points(fitted):
    _, approx = fitted
    draws = approx.sample(7, random_seed=3, include_transformed=True)
    posterior = draws.posterior.isel(chain=0)
    points = np.concatenate(
        [posterior[s.name].to_numpy().reshape((7, -1)) for s in approx.density.slots], axis=1
    )
    assert_allclose(approx.log_prob(draws)[0], approx.log_prob(points), rtol=1e-9)


@pytest.mark.filterwarnings("ignore:The effect of Potentials on other parameters")
def test_reports_files_and_predictions(fitted, tmp_path):
    model, approx = fitted
    report = pmf.report(approx, 256, random_seed=4)
    assert np.isfinite(report.quality.elbo)
    approx.save(tmp_path / "approx.nc")
    loaded = pmf.load(tmp_path / "approx.nc", model=named())
    draws = approx.sample(20, random_seed=5)
    again = loaded.sample(20, random_seed=5)
    assert_allclose(again.posterior["effect"], draws.posterior["effect"])
    predicted = pm.sample_posterior_predictive(draws, model=model, random_seed=6, progressbar=False)
    assert predicted.posterior_predictive["y"].dims == ("chain", "draw", "obs")
    # From the same draws of the parameters: the residuals have the standard deviation.
    values = draws.posterior
    eta = values["effect"].to_numpy()[..., GROUP] + values["slope"].to_numpy()[..., None] * X
    residuals = (predicted.posterior_predictive["y"].to_numpy() - eta) / values["sigma"].to_numpy()[
        ..., None
    ]
    assert 0.85 < residuals.std() < 1.15
