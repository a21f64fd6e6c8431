"""`formula='auto'`: what is tried, what is taken, and what is said of it."""

from types import SimpleNamespace

import numpy as np
import pymc as pm
import pytest
from scipy import stats

import pymc_flows as pmf
from pymc_flows.backends.modes import NUMPY
from pymc_flows.diagnostics.quality import Quality
from pymc_flows.fitting import auto as ladder
from pymc_flows.fitting import candidates as _candidates
from pymc_flows.fitting import tried
from pymc_flows.fitting.ladder import Ladder, Rung
from pymc_flows.flows.frame import Frame
from pymc_flows.formula import Formula
from pymc_flows.start.weighted.copula import SPLINE as SPLINE_OF_A_COPULA

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
    # Gaussians first, by weights and by natural gradients, then what is trained.
    steps = [r.steps for r in skewed.ladder.rungs]
    assert tried[:2] == ["scale-loc"] * 2
    assert steps == sorted(steps)
    assert all(n in (0, 1_000) for n in steps)
    assert steps[tried.index(NVP)] == 1_000
    assert str(skewed.formula) == tried[skewed.ladder.taken]
    first, *_, last = (r.quality.elbo for r in skewed.ladder.rungs)
    assert last > first + 0.1
    assert len(skewed.hist) == skewed.ladder.rungs[skewed.ladder.taken].steps


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
        ({}, 10_000, _candidates.WorthwhilePlateau()),
        ({}, 1_000, None),
        ({"stop": False}, 10_000, False),
        ({"schedule": "constant"}, 10_000, None),
        ({"score": False}, 10_000, None),
    ],
)
def test_a_trial_ends_when_its_loss_has_settled_unless_the_caller_has_plans(given, n, stop):
    assert _candidates.Candidate("loc").arguments(given, n).get("stop") == stop
    assert "stop" not in _candidates.Candidate("loc", anneal=0.3).arguments({}, n)


@pytest.mark.parametrize(
    ("evidence", "fall", "has_settled"),
    [
        (-np.inf, 0.0, False),  # noise alone may hide a gain of the usual tolerance
        (-230.0, 0.0, False),
        (-180.0, 0.0, True),
        (-180.0, 10.0, False),
    ],
)
def test_far_from_the_evidence_small_gains_are_not_waited_for(evidence, fall, has_settled, rng):
    stop = _candidates.WorthwhilePlateau(evidence=evidence)
    losses = 230 + rng.standard_normal(stop.window) - fall * np.linspace(0, 1, stop.window)
    assert stop.has_settled(losses) == has_settled
    assert not stop.has_settled(losses[1:])


def rung(elbo, log_z, khat=0.1, error=0.001):
    return Rung(Formula("loc"), Quality(4000, elbo, 0.001, khat, 1000.0, log_z, error), 1.0, 9)


def test_a_fit_that_lacks_mass_which_an_earlier_one_has_is_not_good():
    wide, narrow = rung(-3.0, 0.0), rung(-0.7, -0.69)
    assert tried.is_good([narrow], 0.02)
    assert not tried.is_good([wide, narrow], 0.02)
    assert tried.is_good([rung(-3.0, 0.0, khat=0.9), narrow], 0.02)
    assert tried.is_good([rung(-3.0, 0.0, error=0.4), narrow], 0.02)


def test_a_gaussian_far_behind_a_field_is_no_place_to_begin_flows_at():
    field = Rung(Formula("loc | laplace"), quality(-100.0, khat=2.0, log_evidence=-95.0), 1.0, 0)
    assert tried.is_behind([field, rung(-151.0, -120.0)])
    assert not tried.is_behind([field, rung(-149.0, -120.0)])
    assert not tried.is_behind([rung(-100.0, -95.0), rung(-900.0, -800.0)])
    assert not tried.is_behind([field])


def test_more_layers_are_not_tried_where_a_flow_gained_little():
    """Of a gap of 20 nats that weights tell of which cannot be trusted."""
    first, bad = rung(-30.0, -10.0, khat=3.0), {"log_z": -10.0, "khat": 2.0}
    assert tried.gains_little([first, rung(-29.0, **bad)])
    assert tried.gains_little([first, rung(-31.0, **bad)])
    assert not tried.gains_little([first, rung(-27.0, **bad)])
    assert not tried.gains_little([first, rung(-29.0, -10.0, khat=0.5)])
    assert not tried.gains_little([rung(-30.0, -10.0), rung(-29.0, **bad)])
    assert not tried.gains_little([first])


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


def test_a_minibatch_is_judged_by_all_of_its_rows():
    data = pm.Minibatch(np.linspace(-1, 2, 60), batch_size=10)
    with pm.Model() as model:
        x = pm.Normal("x")
        pm.Normal("y", x, 1, observed=data, total_size=60)
    approx = pmf.fit(20, model=model, random_seed=1, obj_n_mc=4, **JAX)
    [rung] = approx.ladder.rungs
    y = np.linspace(-1, 2, 60)
    expected = stats.multivariate_normal(np.zeros(60), np.eye(60) + 1).logpdf(y)
    assert rung.steps == 0
    assert rung.quality.elbo == pytest.approx(expected, abs=1e-6)


def test_later_rungs_start_from_what_the_first_has_learned():
    start = Frame(np.array([1.0, 2.0]), np.array([[2.0, 0], [3.0, 4.0]]))
    with pm.Model() as model:
        pm.Normal("x", shape=2)
    for frame in (start, Frame(start.center), Frame(start.center, np.array([2.0, 3.0]))):
        approx = pmf.NormalizingFlow("scale-loc", model=model, start=frame, jitter=0.5)
        learned = pmf.NormalizingFlow(
            "perm-perm", model=model, start=_candidates.learned_frame(approx), jitter=0
        )
        for moment in ("mean", "cov"):
            one, other = (getattr(a, moment).eval(mode=NUMPY) for a in (learned, approx))
            np.testing.assert_allclose(one, other, rtol=1e-10)


def test_evaluations_are_counted_kept_and_shown(skewed):
    first, *others = skewed.ladder.rungs
    assert first.evaluations.curvatures > 0
    for trained in (r for r in others if r.steps):
        assert trained.evaluations.gradients == 32 * trained.steps
    assert skewed.evaluations == sum((r.evaluations for r in others), first.evaluations)
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


def test_a_ladder_of_one_rung_prints():
    text = str(Ladder((Rung(Formula("loc"), quality(1234.5), 1.0, 9),), 0))
    assert "1,234.500" in text
