"""`calibrate`: uniform ranks where fits are exact, and what is said where they are not."""

import logging
from types import SimpleNamespace

import numpy as np
import pymc as pm
import pytest
from scipy import stats
from xarray import Dataset, DataTree

import pymc_flows as pmf
from pymc_flows.errors import ArgumentError, ModelError
from pymc_flows.many import Calibration, ManyFits
from pymc_flows.many.calibration import _ranks


def model_of_means():
    with pm.Model(coords={"axis": ["first", "second"]}) as model:
        mu = pm.Normal("mu", 1, 2, dims="axis")
        pm.Normal("y", mu[:, None], 1, observed=np.zeros((2, 3)))
    return model


@pytest.fixture(scope="module")
def found():
    return pmf.calibrate(model_of_means(), 40, draws=99, random_seed=4, progressbar=False)


def test_ranks_of_exact_posteriors_are_uniform(found):
    assert found.ranks["mu"].dims == ("fit", "axis")
    assert found.ranks.sizes["fit"] == found.n == 40
    ranks = found.ranks["mu"].values
    assert (ranks >= 0).all()
    assert (ranks <= 99).all()
    assert stats.chisquare(np.histogram(ranks, bins=5, range=(0, 100))[0]).pvalue > 0.01
    assert list(found.scalars()) == ["mu[first]", "mu[second]"]
    assert found.is_calibrated
    assert found.coverage(0.8)["mu"].values == pytest.approx(0.8, abs=0.2)
    assert "Nothing speaks against calibration" in str(found)
    assert "mu[first]" in found._repr_html_()


def test_ranks_are_those_of_the_true_values(found):
    draws = found.fits.tree["posterior"]["mu"].values[:, 0]
    below = (draws < found.truths["mu"].values[:, None]).sum(axis=1)
    np.testing.assert_array_equal(found.ranks["mu"].values, below)
    # Simulated data depend on the true values: so do the fits.
    assert np.corrcoef(draws.mean(axis=1).ravel(), found.truths["mu"].values.ravel())[0, 1] > 0.8


def test_fits_that_are_too_narrow_are_found_out(caplog):
    caplog.set_level(logging.WARNING)

    def draw(mu, size):
        return pm.Normal.dist(mu, 1, size=size)

    def overconfident(value, mu):  # as if each observation had been made 400 times
        return 400 * pm.logp(pm.Normal.dist(mu, 1), value)

    with pm.Model(coords={"axis": ["first", "second"]}) as model:
        mu = pm.Normal("mu", 1, 2, dims="axis")
        pm.CustomDist("y", mu[:, None], dist=draw, logp=overconfident, observed=np.zeros((2, 3)))
    found = pmf.calibrate(model, 20, draws=50, random_seed=1, progressbar=False)
    assert not found.is_calibrated
    assert found.coverage(0.8)["mu"].values == pytest.approx(0.05, abs=0.15)
    assert "Fits of this model are not calibrated: mu[" in caplog.text
    assert "Not calibrated" in str(found)


def synthetic(u):
    values = Dataset({"x": ("fit", u)})
    return Calibration(values, values, 99, ManyFits.__new__(ManyFits), values)


def test_p_values_are_those_of_a_test_and_see_location_and_width(rng):
    p = [synthetic(rng.random(50)).p_values()["x"] for _ in range(300)]
    # Twice the smaller of two: a little conservative, never more than uniform.
    assert np.mean(np.array(p) < 0.05) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)
    assert np.mean(np.array(p) < 0.5) > 0.3
    assert synthetic(rng.beta(2, 1, size=400)).p_values()["x"] < 1e-4
    assert synthetic(rng.beta(0.5, 0.5, size=400)).p_values()["x"] < 1e-3
    assert synthetic(rng.beta(2, 2, size=400)).p_values()["x"] < 1e-3


def test_ties_are_broken_by_lot(found):
    posterior = DataTree(found.fits.tree["posterior"].to_dataset() * 0)
    constant = SimpleNamespace(tree={"posterior": posterior})
    ranks, _ = _ranks(constant, found.truths * 0, range(40), np.random.default_rng(1))
    assert stats.kstest((ranks["mu"].values.ravel() + 0.5) / 100, "uniform").pvalue > 0.01


def test_the_plot_shows_every_scalar(found):
    axes = pmf.plots.calibration(found)
    first = found.scalars()[next(iter(found.p_values()))]
    farthest = abs(axes[0].lines[0].get_ydata()).max()
    assert farthest == pytest.approx(stats.kstest(first, "uniform").statistic)
    assert [ax.get_title() for ax in axes] == list(found.p_values())
    with pytest.raises(ArgumentError, match="0 < level < 1"):
        pmf.plots.calibration(found, level=2)


def with_potential():
    with model_of_means() as model:
        pm.Potential("extra", -(model["mu"] ** 2).sum())
    return model


def without_data():
    with pm.Model() as model:
        pm.Normal("x")
    return model


@pytest.mark.parametrize(
    ("build", "arguments", "error", "message"),
    [
        (model_of_means, {"n": 3}, ArgumentError, "n must be an integer of at least 20"),
        (model_of_means, {"draws": 3}, ArgumentError, "draws must be"),
        (model_of_means, {"correct": "psis"}, ArgumentError, "take 'resample'"),
        (with_potential, {}, ModelError, r"has potentials \(extra\)"),
        (without_data, {}, ModelError, "no observed variable"),
    ],
)
def test_what_cannot_be_simulated_is_refused(build, arguments, error, message):
    with pytest.raises(error, match=message):
        pmf.calibrate(build(), **arguments)
