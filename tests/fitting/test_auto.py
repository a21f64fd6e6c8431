"""`formula='auto'`: what is tried, what is taken, and what is said of it."""

from types import SimpleNamespace

import numpy as np
import pymc as pm
import pytest

import pymc_flows as pmf
from pymc_flows.backends.modes import NUMPY
from pymc_flows.diagnostics.quality import Quality
from pymc_flows.errors import BackendError, FitError, StorageError
from pymc_flows.fitting import auto as ladder
from pymc_flows.fitting import candidates as _candidates
from pymc_flows.fitting import tried
from pymc_flows.fitting.ladder import Ladder, Rung
from pymc_flows.flows.frame import Frame
from pymc_flows.formula import Formula
from pymc_flows.start.copula import SPLINE as SPLINE_OF_A_COPULA
from pymc_flows.training.trainer import Outcome

IAF = _candidates.AUTOREGRESSIVE
NVP = str(Formula(f"nvp*4-{IAF}-scale-loc"))
COPULA = str(Formula(SPLINE_OF_A_COPULA))
JAX = {"backend": "jax", "progressbar": False}


def quality(elbo, error=0.01, khat=0.3, log_evidence=None):
    evidence = elbo if log_evidence is None else log_evidence
    return Quality(4000, elbo, error, khat, 1000.0, evidence, error)


def test_a_gaussian_posterior_needs_one_rung():
    with pm.Model() as model:
        pm.MvNormal("x", [100, 0.1], cov=[[90, 0.05], [0.05, 1e-4]])
    approx = pmf.fit(300, model=model, random_seed=1, **JAX)
    assert str(approx.formula) == "scale-loc"
    assert [(str(r.formula), r.steps) for r in approx.ladder.rungs] == [("scale-loc", 0)]
    assert len(approx.hist) == 0
    np.testing.assert_allclose(approx.mean.eval(mode=NUMPY), [100, 0.1], rtol=0.01)


@pytest.fixture(scope="module")
def skewed():
    with pm.Model() as model:
        pm.Potential("p", -pm.math.exp(pm.Flat("x")) + 1.5 * model["x"])  # log of a gamma
        pm.Normal("y", model["x"] ** 2, 0.5)
    return pmf.fit(1_000, model=model, random_seed=3, obj_n_mc=32, quality="best", **JAX)


def test_a_posterior_that_is_no_gaussian_gets_a_richer_flow(skewed):
    tried = [str(r.formula) for r in skewed.ladder.rungs]
    assert tried[0] == "scale-loc"
    assert NVP in tried
    assert [r.steps for r in skewed.ladder.rungs] == [0] + [1_000] * (len(tried) - 1)
    assert str(skewed.formula) == tried[skewed.ladder.taken]
    first, *_, last = (r.quality.elbo for r in skewed.ladder.rungs)
    assert last > first + 0.1
    assert len(skewed.hist) == 1_000


def test_the_table_says_what_was_tried(skewed):
    lines = str(skewed.ladder).splitlines()
    assert lines[0].split() == [
        "formula",
        "steps",
        "gradients",
        "Hessians",
        "ELBO",
        "±",
        "error",
        "k-hat",
        "log",
        "Z",
        "seconds",
    ]
    assert sum(line.endswith("taken") for line in lines) == 1
    html = skewed.ladder._repr_html_()
    assert html.count("<tr>") == len(lines)
    assert NVP in html


def test_the_same_seed_climbs_the_same_ladder():
    with pm.Model() as model:
        pm.Normal("x", 3, 2)
    one, other = (
        pmf.fit(50, model=model, random_seed=4, obj_n_mc=8, **JAX).ladder for _ in range(2)
    )
    assert [r.quality for r in one.rungs] == [r.quality for r in other.rungs]


@pytest.mark.parametrize(
    ("qualities", "taken"),
    [
        ([quality(-3), quality(-2.99)], 0),  # within the noise
        ([quality(-3), quality(-2.9)], 1),
        ([quality(-3), quality(-2.9), quality(-2.95)], 1),
        ([quality(-3), quality(-2.9), quality(-2.89)], 1),
        ([quality(-np.inf, np.nan), quality(-5)], 1),
        ([quality(-1e13, 1e13, khat=17), quality(-5)], 1),
        ([quality(-3, khat=0.9), quality(-3)], 1),  # as good, and to be trusted
        ([quality(-3), quality(-3, khat=0.9)], 0),
        ([quality(-3), quality(-np.inf, np.nan)], 0),
    ],
)
def test_the_simpler_flow_wins_within_the_noise(qualities, taken):
    assert tried.best_of(qualities) == taken


@pytest.mark.parametrize(
    ("dim", "expected"),
    [
        (1, ["spline*2-scale-loc"]),
        (2, [f"nvp*4-{IAF}-scale-loc", f"nvp*10-{IAF}-scale-loc"]),
        (5000, [f"nvp*4-scale-hh*10-loc-{IAF}-scale-loc",
                f"nvp*10-scale-hh*10-loc-{IAF}-scale-loc"]),
    ],
)  # fmt: skip
def test_what_is_tried(dim, expected):
    assert [candidate.formula for candidate in _candidates.richer(dim)] == expected


def test_a_trial_has_settings_of_its_own_where_none_are_given():
    candidate = _candidates.Candidate("loc", anneal=0.3, draws=128, rate=0.003)
    own = candidate.arguments({}, 10_000)
    assert (own["anneal"], own["obj_n_mc"], own["schedule"]) == (0.3, 128, "cosine")
    given = {"obj_n_mc": 5, "obj_optimizer": pm.sgd(), "anneal": None}
    assert candidate.arguments(given, 10_000) == given


@pytest.mark.parametrize(
    ("given", "n", "stop"),
    [
        ({}, 10_000, True),
        ({}, 1_000, None),
        ({"stop": False}, 10_000, False),
        ({"schedule": "constant"}, 10_000, None),
        ({"score": False}, 10_000, None),
    ],
)
def test_a_trial_ends_when_its_loss_has_settled_unless_the_caller_has_plans(given, n, stop):
    assert _candidates.Candidate("loc").arguments(given, n).get("stop") == stop
    assert "stop" not in _candidates.Candidate("loc", anneal=0.3).arguments({}, n)


def rung(elbo, log_z, khat=0.1, error=0.001):
    return Rung(Formula("loc"), Quality(4000, elbo, 0.001, khat, 1000.0, log_z, error), 1.0, 9)


def test_a_fit_that_lacks_mass_which_an_earlier_one_has_is_not_good():
    wide, narrow = rung(-3.0, 0.0), rung(-0.7, -0.69)
    assert tried.is_good([narrow], 0.02)
    assert not tried.is_good([wide, narrow], 0.02)
    assert tried.is_good([rung(-3.0, 0.0, khat=0.9), narrow], 0.02)
    assert tried.is_good([rung(-3.0, 0.0, error=0.4), narrow], 0.02)


def test_what_is_tried_where_modes_are_apart(monkeypatch):
    candidates = [
        _candidates.Candidate("scale-loc", 0.3, 8, 0.003),
        _candidates.Candidate("loc", 0.8),
    ]
    monkeypatch.setattr(ladder, "spread", lambda: candidates)
    with pm.Model() as model:
        modes = [pm.Normal.dist(x, 0.4, shape=2) for x in (-3, 0, 3)]
        pm.Mixture("x", np.full(3, 1 / 3), modes, shape=2)
    approx = pmf.fit(20, model=model, random_seed=1, quality="best", **JAX)
    tried = [str(r.formula) for r in approx.ladder.rungs]
    assert tried == ["scale-loc", COPULA, f"tril-{COPULA}", "scale-loc", "loc"]
    scale = approx.q.frame.scale
    scale = np.diag(scale) if scale.ndim == 1 else scale
    np.testing.assert_allclose(np.diag(scale @ scale.T), 6 + 0.4**2, rtol=0.1)


def test_a_mixture_that_covers_modes_is_good_for_draws(tmp_path):
    with pm.Model() as model:
        modes = [pm.Normal.dist(x, 0.4, shape=2) for x in (-3, 0, 3)]
        pm.Mixture("x", np.array([0.5, 0.3, 0.2]), modes, shape=2)
    approx = pmf.fit(model=model, random_seed=1, progressbar=False)
    first, second = approx.ladder.rungs
    assert (first.parts, first.steps, second.steps) == (1, 0, 0)
    assert second.parts > 2
    assert approx.ladder.resamples
    assert f"mixture of {second.parts} scale-loc" in str(approx.ladder)
    draws = approx.sample(8_000, random_seed=2).posterior["x"].values[0]
    shares = np.histogram(draws[:, 0], [-9, -1.5, 1.5, 9])[0] / 8_000
    np.testing.assert_allclose(shares, [0.5, 0.3, 0.2], atol=0.03)
    approx.save(tmp_path / "mixture")
    again = pmf.load(tmp_path / "mixture", model=model)
    assert str(again.ladder) == str(approx.ladder)
    np.testing.assert_array_equal(again.log_prob(draws[:9]), approx.log_prob(draws[:9]))


def test_formulas_for_modes_that_are_apart_are_formulas():
    for candidate in _candidates.spread():
        Formula(candidate.formula)
        assert 0 <= (candidate.anneal or 0) < 1


@pytest.mark.parametrize(
    ("has_jax", "given", "is_numba"),
    [(False, {}, True), (True, {"backend": "numba"}, True), (True, {}, False)],
)
def test_numba_gets_nothing_that_it_compiles_for_long(monkeypatch, has_jax, given, is_numba):
    monkeypatch.setattr(ladder, "has_jax", lambda: has_jax)
    with pm.Model() as model:
        pm.Normal("x", shape=2)
    approx, found = pmf.NormalizingFlow("loc", model=model), SimpleNamespace(notes=[])
    candidates = [_candidates.Candidate("scale-loc"), *_candidates.richer(2)]
    kept = [c.formula for c in ladder._possible(candidates, approx, given, found)]
    if is_numba:
        assert kept == ["scale-loc", _candidates.ON_NUMBA]
        assert NVP in found.notes[0]
    else:
        assert kept == [c.formula for c in candidates]
        assert found.notes == []


def test_a_minibatch_gets_the_first_rung_unjudged():
    data = pm.Minibatch(np.linspace(-1, 2, 60), batch_size=10)
    with pm.Model() as model:
        x = pm.Normal("x")
        pm.Normal("y", x, 1, observed=data, total_size=60)
    approx = pmf.fit(20, model=model, random_seed=1, obj_n_mc=4, **JAX)
    assert [r.quality for r in approx.ladder.rungs] == [None]
    assert "–" in str(approx.ladder)


def test_later_rungs_start_from_what_the_first_has_learned():
    start = Frame(np.array([1.0, 2.0]), np.array([[2.0, 0], [3.0, 4.0]]))
    with pm.Model() as model:
        pm.Normal("x", shape=2)
    for frame in (start, Frame(start.center), Frame(start.center, np.array([2.0, 3.0]))):
        approx = pmf.NormalizingFlow("scale-loc", model=model, start=frame, jitter=0.5)
        learned = pmf.NormalizingFlow(
            "perm-perm", model=model, start=ladder._learned(approx, frame), jitter=0
        )
        for moment in ("mean", "cov"):
            one, other = (getattr(a, moment).eval(mode=NUMPY) for a in (learned, approx))
            np.testing.assert_allclose(one, other, rtol=1e-10)


# ------------------------------------------------------------------------- ends before its time


def skewed_model():
    with pm.Model() as model:
        x = pm.Flat("x")
        pm.Potential("p", 1.5 * x - pm.math.exp(x))
    return model


def two_humps():
    """Lighter tails than those of a Gaussian, whose weights can be trusted, then."""
    with pm.Model() as model:
        x = pm.Flat("x")
        pm.Potential("p", 2 * x**2 - x**4)
    return model


@pytest.fixture
def fits(monkeypatch):
    """What happens at each fit in turn: an error, or the number of steps until an interrupt."""
    script = []

    def train(self, config):
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


def test_a_ladder_of_one_rung_prints():
    text = str(Ladder((Rung(Formula("loc"), quality(1234.5), 1.0, 9),), 0))
    assert "1,234.500" in text


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


# ------------------------------------------------------------------------ evaluations and the clock


def test_evaluations_are_counted_kept_and_shown(skewed):
    first, *trained = skewed.ladder.rungs
    assert first.evaluations.curvatures > 0
    for other in trained:
        assert other.evaluations.gradients == 32 * other.steps
    assert skewed.evaluations == sum((r.evaluations for r in trained), first.evaluations)
    again = Ladder.restored(skewed.ladder.record())
    assert again == skewed.ladder
    header, row, *_ = str(skewed.ladder).splitlines()
    assert "Hessians" in header
    assert f"{first.evaluations.gradients:,}" in row


def test_a_ladder_of_an_earlier_file_has_no_counts():
    record = Ladder((rung(-3.0, 0.0),), 0).record()
    del record["notes"], record["rungs"][0]["evaluations"]
    restored = Ladder.restored(record)
    assert restored.rungs[0].evaluations is None
    assert restored.evaluations.gradients == 0
    assert "–" in str(restored)


def test_what_the_time_did_not_allow_is_in_the_ladder(fits):
    approx = pmf.fit(9, model=skewed_model(), random_seed=1, seconds=1e-9)
    assert len(approx.ladder.rungs) == 1
    assert "Left out, since the time was over: " in str(approx.ladder)
    assert SPLINE in approx.ladder.notes[-1]
    assert "Left out" in approx.ladder._repr_html_()


def test_a_bad_fit_is_not_called_usable(fits, caplog, monkeypatch):
    fits.append(FitError("100 steps"))
    bad = quality(-np.inf, np.nan, khat=140)
    monkeypatch.setattr(tried, "measure", lambda *_, **__: bad)
    pmf.fit(9, model=skewed_model(), random_seed=1, quality="best")
    text = "\n".join(warned(caplog))
    assert "can be used as it is" not in text
    assert "None of 1 flows can be used" in text
