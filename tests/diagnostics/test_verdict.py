"""The report on an approximation, where the truth is known."""

import math

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
import xarray as xr
from numpy.testing import assert_allclose

import pymc_flows as pmf
from conjugate import conjugate, conjugate_model, gaussian
from pymc_flows.approximation import draws as _draws
from pymc_flows.diagnostics import coverage as _coverage
from pymc_flows.diagnostics import verdict as _verdict
from pymc_flows.diagnostics.quality import measure
from pymc_flows.errors import ArgumentError, ModelError
from pymc_flows.fitting.ladder import Ladder, Rung
from pymc_flows.importance import Quality


@pytest.fixture(scope="module")
def data():
    return np.random.default_rng(5).normal(1.5, 2, size=12)


@pytest.fixture(scope="module")
def model(data):
    return conjugate_model(data)


def schools():
    """Named coordinates, of which exactly one is wrong."""
    coords = {"school": ["Choate", "Deerfield", "Exeter"], "k": ["p", "q"]}
    with pm.Model(coords=coords) as model:
        pm.Normal("theta", shape=3, dims="school")
        pm.LogNormal("tau", 0, 1, dims=("k", "school"))
        pm.Dirichlet("share", np.ones(3), dims="school")
        pm.LogNormal("scalar")
    return model


def modes(distance=12.0, share=0.5):
    """Two normals of unit width."""
    with pm.Model() as model:
        x = pm.Flat("x")
        parts = [-0.5 * x**2 + math.log(1 - share), -0.5 * (x - distance) ** 2 + math.log(share)]
        pm.Potential("mixture", pt.logaddexp(*parts) - 0.5 * math.log(2 * math.pi))
    return model


def test_much_data_are_evaluated_at_fewer_draws(model, data, monkeypatch):
    for share, n in ((1.0, 10_000), (0.25, 2_500)):
        monkeypatch.setattr(_verdict, "share_for", lambda _, share=share: share)
        assert pmf.report(gaussian(model, 1.0, 2.0), random_seed=1).quality.n_draws == n


# --------------------------------------------------------------------------------- known posteriors


def test_the_exact_posterior_is_perfect(model, data):
    mean, sd, log_z = conjugate(data)
    found = pmf.report(gaussian(model, mean, sd), 1_000, random_seed=1)
    assert found.status == "good"
    assert found.quality.khat == -math.inf
    assert found.quality.ess == pytest.approx(1_000)
    assert found.quality.elbo == pytest.approx(log_z, abs=1e-6)
    assert found.worst == pytest.approx(0, abs=1e-9)
    assert "all weights are equal" in str(found)
    assert "nan" not in str(found).lower()


@pytest.mark.parametrize(("shift", "factor"), [(0.3, 1.0), (0.0, 1.3), (-0.4, 0.9)])
def test_errors_are_those_of_the_gaussian(model, data, shift, factor):
    mean, sd, log_z = conjugate(data)
    approx = gaussian(model, mean + shift * sd, factor * sd)
    found = pmf.report(approx, 20_000, random_seed=1)
    q = found.quality
    kl = 0.5 * (factor**2 + shift**2 - 1) - math.log(factor)
    assert abs(q.elbo - (log_z - kl)) < 4 * q.elbo_error
    assert abs(q.log_evidence - log_z) < 4 * q.log_evidence_error
    [mu] = found.coordinates
    assert mu.name == "mu"
    assert_allclose([mu.mean, mu.sd], [shift, factor - 1], atol=0.04)
    assert found.status == "correctable"
    assert "sample(correct='resample')" in found.verdict


def test_a_gaussian_that_is_too_narrow_is_not_relied_on(model, data):
    mean, sd, _ = conjugate(data)
    found = pmf.report(gaussian(model, mean, 0.3 * sd), random_seed=1)
    assert found.status == "unreliable"
    assert "Do not rely on it" in found.verdict


@pytest.mark.parametrize(
    ("khat", "ess", "worst", "status"),
    [
        (0.6, 7_000, 0.04, "good"),
        (0.6, 7_000, 0.3, "correctable"),
        (0.8, 7_000, 0.04, "light-tailed"),
        (0.8, 7_000, 0.3, "unreliable"),
        (0.8, 3_000, 0.04, "unreliable"),
        (1.2, 7_000, 0.04, "unreliable"),
        (math.inf, 0, math.nan, "unusable"),
    ],
)
def test_what_the_numbers_come_to(khat, ess, worst, status):
    found = pmf.Report("a fit", Quality(10_000, 0, 0, khat, ess, 0, 0), 0, (), 1, worst)
    assert found.status == status
    assert found.verdict.endswith(".")
    assert found.verdict.count(". ") == 0


def test_a_good_fit_agrees_with_a_reference(model, data, rng):
    mean, sd, _ = conjugate(data)
    reference = {"mu": rng.normal(mean, sd, size=(4, 500))}
    for factor in (1.0, 0.9, 1.05):
        approx = gaussian(model, mean, factor * sd)
        found = pmf.report(approx, reference=reference, random_seed=1)
        assert found.status == "good"
        assert found.coverage.n_draws == 2_000
        assert found.coverage.beyond <= found.coverage.limit
        assert "the reference agrees" in found.verdict
        [mu] = found.coordinates
        assert_allclose(mu.reference_sd, factor - 1, atol=0.06)


def test_errors_that_weights_remove_are_not_held_against_the_fit(model, data, rng):
    mean, sd, _ = conjugate(data)
    reference = {"mu": rng.normal(mean, sd, size=(4, 500))}
    found = pmf.report(gaussian(model, mean + 0.6 * sd, sd), reference=reference, random_seed=1)
    assert found.status == "correctable"
    assert found.coordinates[0].reference_mean == pytest.approx(0.6, abs=0.08)


# --------------------------------------------------------------------------------- missing modes


@pytest.mark.parametrize("distance", [12.0, 40.0])
@pytest.mark.parametrize("share", [0.5, 0.1, 0.03])
def test_a_missing_mode_needs_a_reference(rng, distance, share):
    approx = gaussian(modes(distance, share), 0.0, 1.0)
    alone = pmf.report(approx, 2_000, random_seed=1)
    assert "cannot see modes that it never visited" in alone._repr_html_()
    assert "modes" in str(alone)
    assert "reference=" in str(alone)
    x = rng.normal(size=2_000) + distance * (rng.random(2_000) < share)
    found = pmf.report(approx, 2_000, reference={"x": x[None]}, random_seed=1)
    assert found.status == "incomplete"
    assert found.coverage.is_missing
    assert found.coverage.beyond == pytest.approx(share, abs=0.02)
    assert "Do not use it" in found.verdict
    assert "cannot see modes that it never visited" in found._repr_html_()


def test_a_reference_that_is_another_fit(rng):
    """Two collapsed fits contradict each other."""
    model = modes()
    other = gaussian(model, 12.0, 1.0).sample(1_000, random_seed=2)
    found = pmf.report(gaussian(model, 0.0, 1.0), 2_000, reference=other, random_seed=1)
    assert found.status == "incomplete"
    assert found.coverage.beyond == pytest.approx(1, abs=1e-3)


def test_a_reference_in_one_of_the_modes_contradicts_a_fit_of_both(rng):
    """Its draws are covered; its moments are others."""
    found = pmf.report(
        gaussian(modes(4.0), 2.0, 2.3), reference={"x": rng.normal(size=(2, 500))}, random_seed=1
    )
    assert not found.coverage.is_missing
    assert found.status == "incomplete"
    assert "differ by up to" in found.verdict


def test_a_cover_with_heavy_weights_is_hardly_ever_called_incomplete(rng):
    """Of a reference whose draws are worth few."""
    sd, n, correlation, repeats = 1.6, 1_000, 0.95, 60
    noise = rng.normal(size=(n, repeats))
    for i in range(1, n):
        noise[i] = correlation * noise[i - 1] + math.sqrt(1 - correlation**2) * noise[i]

    def log_weights(z):  # of N(0, sd²) to N(0, 1)
        return 0.5 * z**2 * (1 - 1 / sd**2) - math.log(sd)

    found, worth = [], []
    for series in log_weights(sd * noise).T:
        worth.append(_coverage._effective(series))
        own = log_weights(rng.normal(size=10_000))
        found.append(_coverage._shares(series, worth[-1], own, 1 - 1 / sd**2))
    assert n / 30 < np.mean(worth) < n / 10
    assert max(share[0] for share, _ in found) > 0.02
    assert not any((shares > limits).any() for shares, limits in found)


def test_a_formula_that_was_tried_may_know_of_more():
    """A wide Gaussian has both modes, so it knows the evidence; what was taken has one."""
    model = modes(12.0, 0.3)
    narrow, wide = gaussian(model, 0.0, 1.0), gaussian(model, 3.6, 9.0)
    qualities = [measure(approx, random_seed=1) for approx in (wide, narrow)]
    rungs = tuple(Rung(narrow.formula, q, 0.1, 0) for q in qualities)
    assert pmf.report(narrow, random_seed=1).status == "good"
    narrow.ladder = Ladder(rungs, 1)
    found = pmf.report(narrow, random_seed=1)
    assert found.status == "incomplete"
    assert found.lacking == pytest.approx(0.3, abs=0.04)
    assert "or more of the evidence that another formula of the ladder knew of" in found.verdict
    wide.ladder = Ladder(rungs, 0)
    assert pmf.report(wide, random_seed=1).lacking == 0


# --------------------------------------------------------------------------------- no density


def test_draws_without_density():
    with pm.Model() as model:
        x = pm.Flat("x")
        pm.Potential("half", pt.switch(x > 0, -0.5 * x**2, -np.inf))
    found = pmf.report(gaussian(model, 0.0, 1.0), 2_000, random_seed=1)
    assert found.n_without_density == pytest.approx(1_000, abs=100)
    assert found.quality.elbo == -math.inf
    assert found.quality.log_evidence == pytest.approx(0.5 * math.log(math.pi / 2), abs=0.1)
    assert found.status != "good"
    assert "without density" in str(found)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_model_without_density_is_unusable(value):
    with pm.Model() as model:
        x = pm.Normal("x")
        pm.Potential("none", pt.switch(x > -50, value, 0.0))
    found = pmf.report(gaussian(model, 0.0, 1.0), 200, random_seed=1)
    assert found.status == "unusable"
    assert "not finite at 200 of 200 draws" in found.verdict
    assert found._repr_html_()


def test_one_nan_is_enough_to_be_unusable():
    with pm.Model() as model:
        x = pm.Normal("x")
        pm.Potential("far", pt.switch(x > 2, np.nan, 0.0))
    found = pmf.report(gaussian(model, 0.0, 1.0), 1_000, random_seed=1)
    assert found.status == "unusable"
    assert 0 < found.n_without_density < 100


def test_a_reference_of_another_model(rng):
    with pm.Model() as model:
        pm.HalfNormal("x")
    approx = gaussian(model, -0.6, 1.0)
    x = abs(rng.normal(size=(1, 200)))
    x[0, :20] *= -1
    found = pmf.report(approx, 1_000, reference={"x": x}, random_seed=1)
    assert found.status == "mismatched"
    assert "10 % of the draws of the reference have no density" in found.verdict
    with pytest.raises(ArgumentError, match="none of the 200 draws of the reference"):
        pmf.report(approx, 1_000, reference={"x": -abs(x)})


def test_a_random_density_has_no_report():
    with pm.Model() as model:
        mu = pm.Normal("mu", 0, 3)
        pm.Potential("noisy", -((mu - pm.Normal.dist(0, 0.1)) ** 2))
    with pytest.raises(ModelError, match="log density is random"):
        pmf.report(gaussian(model, 0.0, 1.0))


# --------------------------------------------------------------------------------- names and memory


def test_the_worst_coordinates_come_first_and_have_names():
    model = schools()
    approx = gaussian(model, np.zeros(12), np.ones(12))
    exact = pmf.NormalizingFlow("scale-loc", model=model)
    mean, sd = np.zeros(12), np.ones(12)
    mean[1], sd[7] = 0.6, 1.4
    approx = gaussian(model, mean, sd)
    found = pmf.report(approx, 4_000, random_seed=1)
    assert found.n_coordinates == exact.ddim == 12
    names = [c.name for c in found.coordinates]
    assert {"theta[Deerfield]", "tau_log__[q, Deerfield]"} <= set(names[:4])
    assert {"share_simplex__[0]", "share_simplex__[1]", "scalar_log__"} <= set(names)
    [theta] = [c for c in found.coordinates if c.name == "theta[Deerfield]"]
    assert theta.mean == pytest.approx(0.6, abs=0.1)
    text = str(found)
    assert "theta[Deerfield]" in text
    assert "2 more, with smaller errors" in text


def test_draws_in_several_parts_give_the_same_moments(model, data, monkeypatch):
    mean, sd, log_z = conjugate(data)
    monkeypatch.setattr(_draws, "PART_BYTES", 1)
    found = pmf.report(gaussian(model, mean + 0.3 * sd, sd), 10_010, random_seed=3)
    assert found.coordinates[0].mean == pytest.approx(0.3, abs=0.04)
    assert abs(found.quality.log_evidence - log_z) < 4 * found.quality.log_evidence_error


@pytest.mark.parametrize("khat", [0.698, 0.70, 0.7049, 0.7051, 0.75])
def test_a_k_hat_is_judged_as_it_is_shown(khat):
    found = pmf.Report("a fit", Quality(10_000, 0, 0, khat, 7_000, 0, 0), 0, (), 1, 0.04)
    fine = f"{khat:.2f}" == "0.70"
    assert (found.status == "good") == fine == found.quality.is_trusted
    assert ("0.70, trusted up to 0.70" in str(found)) == fine
    assert ("not trusted above 0.70" in str(found)) != fine
    assert ("is above 0.70" in found.verdict) != fine


def test_a_fit_in_the_units_of_the_data_is_sent_to_find_frame(model, data):
    mean, sd, _ = conjugate(data)
    plain = pmf.NormalizingFlow("loc", model=model, jitter=0, start={"mu": mean + 9 * sd})
    assert "find_frame" in pmf.report(plain, 500, random_seed=1).verdict
    assert "find_frame" not in pmf.report(gaussian(model, mean + 9 * sd, sd), 500).verdict


def test_what_is_no_approximation_is_refused(model):
    for thing in (model, pmf.NFVI("loc", model=model)):
        with pytest.raises(ArgumentError, match=f"got {type(thing).__name__}\n.*pymc_flows.fit"):
            pmf.report(thing)


def test_seeds(model):
    approx = gaussian(model, 1.0, 1.0)
    assert pmf.report(approx, 500, random_seed=1) == pmf.report(approx, 500, random_seed=1)
    assert pmf.report(approx, 500, random_seed=1) != pmf.report(approx, 500, random_seed=2)
    assert pmf.report(approx, 500) != pmf.report(approx, 500)


@pytest.mark.parametrize("n", [0, 99, 2.5, True])
def test_a_number_of_draws_that_is_too_small_is_refused(model, n):
    with pytest.raises(ArgumentError, match="n must be an integer of at least 100"):
        pmf.report(gaussian(model, 0.0, 1.0), n)


def test_a_reference_without_a_variable(model):
    with pytest.raises(ArgumentError, match="no value for 'mu'"):
        pmf.report(gaussian(model, 0.0, 1.0), 200, reference=xr.Dataset({"z": ("draw", [1.0])}))


def test_single_precision(rng):
    with pytensor.config.change_flags(floatX="float32"):
        with pm.Model() as model:
            pm.Normal("x", shape=3)
        approx = gaussian(model, np.zeros(3), np.ones(3))
        found = pmf.report(
            approx, 1_000, reference={"x": rng.normal(size=(2, 300, 3))}, random_seed=1
        )
    assert found.status == "good"
    assert found.quality.khat == -math.inf
