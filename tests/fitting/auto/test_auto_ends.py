"""`formula='auto'` that ends early: by an error, by an interrupt, or with draws to be resampled."""

import numpy as np
import pymc as pm
import pytest
from scipy import stats

import pymc_flows as pmf
from pymc_flows.diagnostics.quality import Quality
from pymc_flows.errors import BackendError, FitError, StorageError
from pymc_flows.fitting import auto as ladder
from pymc_flows.fitting import tried
from pymc_flows.fitting.ladder import Ladder
from pymc_flows.flows.frame import Frame
from pymc_flows.formula import Formula
from pymc_flows.start.weighted.copula import SPLINE as SPLINE_OF_A_COPULA
from pymc_flows.training.trainer import Outcome

COPULA = str(Formula(SPLINE_OF_A_COPULA))


def two_humps():
    """Lighter tails than those of a Gaussian, whose weights can be trusted, then."""
    with pm.Model() as model:
        x, width = pm.Flat("x"), pm.Data("width", 2.0)
        pm.Deterministic("scaled", width * x)
        pm.Potential("p", width * x**2 - x**4)
    return model


def skewed_model():
    with pm.Model() as model:
        x = pm.Flat("x")
        pm.Potential("p", 1.5 * x - pm.math.exp(x))
    return model


@pytest.fixture
def fits(monkeypatch):
    """What happens at each fit in turn: an error, or the number of steps until an interrupt."""
    script = []

    def train(self, config, deadline):
        happens, formula = script.pop(0), str(self.approx.formula)
        if isinstance(happens, BaseException):
            raise happens
        ends = happens < config.n
        interrupted = f"Interrupted after {happens} of {config.n} steps of {formula!r}" * ends
        falls = f"The loss of {formula} was still falling."
        return Outcome(happens, "Finished.", interrupted, warnings=(falls,))

    monkeypatch.setattr(ladder.NFVI, "train", train)
    return script


def warned(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


SPLINE = "spline*2-scale-loc"


@pytest.mark.parametrize(
    ("happens", "said"),
    [
        (KeyboardInterrupt(), f"Fitting '{SPLINE}' was not finished (interrupted): "),
        (FitError("100 steps"), f"Fitting '{SPLINE}' was not finished (FitError: 100 steps): "),
        (3, f"Interrupted after 3 of 9 steps of '{SPLINE}': "),
    ],
)
def test_what_was_fitted_before_an_end_is_kept(fits, caplog, happens, said):
    fits.append(happens)
    approx = pmf.fit(9, model=two_humps(), random_seed=1, quality="best")
    assert str(approx.formula) == COPULA
    assert [r.steps for r in approx.ladder.rungs] == [0, 0] + [3] * (happens == 3)
    [text] = warned(caplog)
    assert text.startswith(said)
    assert f"Taken is {COPULA!r}, the best so far" in text


@pytest.mark.parametrize("error", [KeyboardInterrupt, FitError, BackendError])
def test_an_end_before_anything_was_fitted_is_an_error(fits, error):
    fits.append(error())
    with pytest.raises(error):
        pmf.fit(9, model=skewed_model(), start=Frame(np.zeros(1), np.ones(1)))


def test_a_backend_that_is_refused_is_an_error_unless_it_costs_a_fit(fits, caplog):
    fits += [BackendError("no such Op"), 9, BackendError("no such Op")]
    with pytest.raises(BackendError):
        pmf.fit(9, model=skewed_model(), random_seed=1, quality="best")
    start = Frame(np.array([0.5]), np.array([0.7]))
    approx = pmf.fit(9, model=skewed_model(), start=start, random_seed=1)
    assert [r.steps for r in approx.ladder.rungs] == [9]
    assert any("(BackendError: no such Op)" in text for text in warned(caplog))


def test_convergence_warnings_are_told_of_the_one_that_is_taken(fits, caplog):
    fits += [9, 9]
    start = Frame(np.array([0.5]), np.array([0.7]))
    approx = pmf.fit(9, model=skewed_model(), start=start, random_seed=1)
    assert (str(approx.formula), len(approx.ladder.rungs)) == ("scale-loc", 2)
    said = [text for text in warned(caplog) if "falling" in text]
    assert said == ["The loss of scale-loc was still falling."]


def test_what_the_time_did_not_allow_is_in_the_ladder(fits):
    approx = pmf.fit(9, model=skewed_model(), random_seed=1, seconds=1e-9)
    assert len(approx.ladder.rungs) == 1
    assert "Left out, since the time was over: " in str(approx.ladder)
    assert SPLINE in approx.ladder.notes[-1]
    assert "Left out" in approx.ladder._repr_html_()


def test_a_bad_fit_is_not_called_usable(fits, caplog, monkeypatch):
    fits.append(FitError("100 steps"))
    bad = Quality(4_000, -np.inf, np.nan, 140, 1_000.0, -np.inf, np.nan)
    monkeypatch.setattr(tried, "measure", lambda *_, **__: bad)
    pmf.fit(9, model=skewed_model(), random_seed=1, quality="best")
    text = "\n".join(warned(caplog))
    assert "can be used as it is" not in text
    assert "None of 1 flows can be used" in text


# ------------------------------------------------------------------------------- resampled draws


@pytest.fixture(scope="module")
def humps():
    return pmf.fit(model=two_humps(), random_seed=1)


def test_draws_that_can_be_resampled_end_the_search(humps):
    assert humps.correction == "resample"
    assert [r.steps for r in humps.ladder.rungs] == [0, 0]
    assert "Draws are resampled by their importance weights" in str(humps.ladder)
    assert "Draws are resampled" in humps.ladder._repr_html_()
    report = pmf.report(humps, random_seed=1)
    assert (report.status, "resamples" in report.verdict) == ("good", True)


def test_resampled_draws_are_those_of_the_posterior(humps):
    grid = np.linspace(-4, 4, 8_001)
    density = np.exp(2 * grid**2 - grid**4)
    cdf = np.cumsum(density) / density.sum()
    idata = humps.sample(4_000, random_seed=2)
    draws = idata["posterior"]["x"].values.ravel()
    assert len(draws) == 4_000
    assert idata["sample_stats"].attrs["correct"] == "resample"
    assert 3_400 < idata["sample_stats"].attrs["importance_ess"] < 5_000
    # The 99.9 % point of Kolmogorov's statistic for as many independent draws.
    found = np.interp(np.sort(draws), grid, cdf) - (np.arange(4_000) + 0.5) / 4_000
    assert np.abs(found).max() < 1.95 / np.sqrt(4_000)
    plain = humps.sample(4_000, correct=False, random_seed=2)
    assert not plain["sample_stats"].data_vars


def test_other_data_leave_resampled_draws_as_they_were(humps):
    before = humps.sample(200, random_seed=2).posterior
    with humps.model:
        pm.set_data({"width": -5.0})
        after = humps.sample(200, random_seed=2).posterior
        pm.set_data({"width": 2.0})
    np.testing.assert_array_equal(after["x"], before["x"])
    np.testing.assert_allclose(after["scaled"], -5 * before["x"])


def test_a_posterior_that_a_constraint_cuts_in_half():
    """No flow has a finite ELBO: each has draws on the wrong side, and weights take them out.

    The data know of the sum alone, so the difference keeps its prior, half of a normal.
    """
    y = np.random.default_rng(1).normal(1.0, 0.5, 20)
    with pm.Model() as model:
        x = pm.Normal("x", 0, 1, shape=2)
        pm.Potential("in order", pm.math.switch(x[0] < x[1], 0.0, -np.inf))
        pm.Normal("y", x[0] + x[1], 0.5, observed=y)
    approx = pmf.fit(model=model, random_seed=1, progressbar=False)
    assert approx.correction == "resample"
    draws = approx.sample(4000, random_seed=2).posterior["x"].values[0]
    total, difference = draws.sum(axis=1), draws[:, 1] - draws[:, 0]
    precision = 0.5 + 20 / 0.25
    np.testing.assert_allclose(total.mean(), y.sum() / 0.25 / precision, atol=0.01)
    np.testing.assert_allclose(total.std(), precision**-0.5, rtol=0.06)
    assert (difference > 0).all()
    np.testing.assert_allclose(difference.mean(), 2 / np.sqrt(np.pi), rtol=0.04)
    np.testing.assert_allclose(difference.std(), np.sqrt(2 - 4 / np.pi), rtol=0.04)
    cov = 0.25 * np.eye(20) + 2
    log_z = stats.multivariate_normal(np.zeros(20), cov).logpdf(y) - np.log(2)
    taken = approx.ladder.rungs[approx.ladder.taken].quality
    assert abs(taken.log_evidence - log_z) < 4 * taken.log_evidence_error


def test_a_copy_and_a_file_know_that_draws_are_resampled(humps, tmp_path):
    humps.save(tmp_path / "fit.nc")
    again = pmf.load(tmp_path / "fit.nc", model=humps.model)
    assert again.correction == "resample"
    record = humps.ladder.record()
    record["rungs"][record["taken"]]["quality"] = None
    with pytest.raises(StorageError, match="malformed"):
        Ladder.restored(record)


def weights(share, khat, log_z=0.0, elbo=-3.0):
    return Quality(4_000, elbo, 0.001, khat, 4_000 * share, log_z, 0.001)


@pytest.mark.parametrize(
    ("qualities", "expected"),
    [
        ([weights(0.8, 0.6), weights(0.7, 0.4)], 1),  # fewer heavy weights
        ([weights(0.8, 0.1), weights(0.9, 0.2, elbo=-4.0)], 1),  # more draws count
        ([weights(0.4, 0.1)], None),  # too few do
        ([weights(0.8, 0.9)], None),  # weights cannot be trusted
        ([weights(0.8, 0.1, log_z=-1.0), weights(0.3, 0.1)], None),  # lacks what another knows
        ([], None),
    ],
)
def test_whose_draws_are_resampled(qualities, expected):
    assert tried.safest_of(qualities) == expected
