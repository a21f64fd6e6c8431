"""fit_draws(): maximum likelihood of a flow on draws."""

import logging
from types import SimpleNamespace

import numpy as np
import pymc as pm
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

import pymc_flows as pmf
from fits import JAX
from models import ZOO
from pymc_flows.errors import ArgumentError, BackendError, FlowShapeError, NotInvertibleError
from pymc_flows.fitting.held_out import HeldOut

MEAN, COV = np.array([1.0, -2.0]), np.array([[2.0, 0.9], [0.9, 1.0]])


def plane():
    with pm.Model() as model:
        pm.Flat("z", shape=2)
    return model


def normal_draws(n, seed=1):
    return np.random.default_rng(seed).multivariate_normal(MEAN, COV, n)


def fit(draws, formula, model, **kwargs):
    return pmf.fit_draws(draws, formula, model, random_seed=3, **(JAX | kwargs))


def test_a_gaussian_gets_the_moments_of_the_draws():
    """The maximum-likelihood Gaussian has the mean and covariance of the draws."""
    z = normal_draws(2_000)
    approx = fit(z, "tril-loc", plane(), n=500, batch=2_000, held_out=0)
    expected = stats.multivariate_normal(z.mean(axis=0), np.cov(z.T, ddof=0))
    entropy = -expected.logpdf(z).mean()
    assert_allclose(-approx.log_prob(z).mean(), entropy, atol=1e-4)
    assert_allclose(approx.hist[-50:].mean(), entropy, atol=0.01)
    points = np.array([[0.0, 0.0], [3.0, -1.0]])
    assert_allclose(approx.log_prob(points), expected.logpdf(points), atol=0.02)


@pytest.mark.parametrize(
    ("formula", "n"),
    [("planar*4-scale-loc", 300), ("nvp*2-scale-loc", 600), ("iaf*2", 600)],
)
def test_richer_flows_describe_a_banana_better_than_a_gaussian(formula, n, caplog):
    target = pmf.targets.banana
    z, fresh = (target.sample(4_000, random_seed=seed) for seed in (1, 2))
    approx = fit({"banana": z}, formula, target.model(), n=n)
    assert len(approx.hist) == n
    truth = (target.log_density(fresh) - target.log_z).mean()
    gaussian = stats.multivariate_normal(z.mean(axis=0), np.cov(z.T)).logpdf(fresh).mean()
    found = approx.log_prob(fresh).mean()
    assert gaussian + 0.15 < found < truth + 0.01
    assert "by heart" not in caplog.text


def test_numba_fits_as_jax_does():
    z = normal_draws(500)
    fits = [fit(z, "scale-loc", plane(), n=50, backend=name) for name in ("numba", "jax")]
    assert_allclose(fits[0].hist, fits[1].hist, rtol=1e-9)


def test_all_modes_of_the_draws_are_covered_and_proposals_weigh_them():
    """Draws that were split half and half between modes of weights 0.3 and 0.7."""
    with pm.Model() as model:
        x = pm.Flat("x", shape=2)
        left, right = (np.log(w) - 2 * (x[0] - m) ** 2 for w, m in ((0.3, -3), (0.7, 3)))
        pm.Potential("modes", pm.math.logaddexp(left, right) - 2 * (x[1] - x[0]) ** 2)
    rng = np.random.default_rng(1)
    first = np.repeat([-3.0, 3.0], 1_000) + rng.normal(0, 0.5, 2_000)
    draws = np.stack([first, first + rng.normal(0, 0.5, 2_000)], axis=-1)
    approx = fit(rng.permutation(draws), "spline-tril-loc", model, n=500)
    share = (approx.sample_and_log_prob(4_000, random_seed=1)[0][:, 0] > 0).mean()
    assert abs(share - 0.5) < 0.05
    found = pmf.sample(approx, 2_000, tune=100, method="imh", random_seed=2, model=model)
    assert found.sample_stats["acceptance_rate"].mean() > 0.3
    assert abs(float((found.posterior["x"][..., 0] > 0).mean()) - 0.7) < 0.04


def test_the_best_parameters_on_held_out_draws_are_kept(caplog):
    z = normal_draws(60)
    with caplog.at_level(logging.INFO, "pymc_flows"):
        careful = fit(z, "nvp*2-scale-loc", plane(), n=1_000, held_out=0.3)
    eager = fit(z[:42], "nvp*2-scale-loc", plane(), n=1_000, held_out=0)
    assert_array_equal(careful.hist, eager.hist)  # the same steps, on the same 42 draws
    assert careful.log_prob(z[42:]).mean() > eager.log_prob(z[42:]).mean() + 0.1
    fresh = normal_draws(5_000, seed=2)
    assert careful.log_prob(fresh).mean() > eager.log_prob(fresh).mean() + 0.1
    loss = -careful.log_prob(z[42:]).mean()
    assert f"Held-out draws: mean of -log q {loss:.5g}" in caplog.text


def test_a_flow_that_learns_draws_by_heart_is_warned_of(caplog):
    """What the end of the fit was like is known from one that keeps it."""
    z = np.random.default_rng(1).normal(size=(200, 5))
    with pm.Model() as model:
        pm.Flat("z", shape=5)
    careful = fit(z, "nvp*2-scale-loc", model, n=600, held_out=0.3)
    [warning] = [record.getMessage() for record in caplog.records]
    eager = fit(z[:140], "nvp*2-scale-loc", model, n=600, held_out=0)
    own, end = (-eager.log_prob(part).mean() for part in (z[:140], z[140:]))
    best = -careful.log_prob(z[140:]).mean()
    assert warning.startswith(
        "The flow 'nvp*2-scale-loc' learned draws by heart: after 600 steps the mean of -log q was "
        f"{own:.5g} at the 140 draws of the fit and {end:.5g} at the 60 held out, where it had "
        f"been {end - best:.5g} ± "
    )
    assert f"{sum(p.get_value().size for p in careful.params):,} of them are many" in warning
    assert "longer" not in warning


class Draws:
    """Stands for a flow whose log density goes up, and down again."""

    params = ()

    def __init__(self, state):
        self.state, self.looks = state, []

    def log_prob(self, points):
        self.looks.append(self.state.i)
        return np.full(len(points), -abs(self.state.i - 300.0))


def test_looks_are_frequent_at_first():
    """From one epoch on, or ten steps; and rarer by and by, down to twenty in all."""
    for epoch, first in ((4, 10), (40, 40), (4_000, 250)):
        state = SimpleNamespace(i=0)
        q = Draws(state)
        held_out = HeldOut(q, np.zeros((3, 2)), 250, epoch)
        while state.i < 5_000:
            state.i += 1
            if held_out.is_due(state.i):
                held_out.act(state, np.empty(0))
        gaps = np.diff(q.looks)
        assert (q.looks[:2], gaps[-1]) == ([0, first], 250)
        assert len(gaps) < 50
        assert not held_out.learns


def test_draws_by_name_and_of_chains_are_placed_as_log_prob_does():
    model = ZOO["eight_schools"]()
    start = pmf.NormalizingFlow("scale-loc", model=model, jitter=0.3, random_seed=1)
    idata = start.sample(300, random_seed=1)
    approx = fit(idata, "scale-loc", model, n=0, held_out=0)
    points = start.sample_and_log_prob(300, random_seed=1)[0]
    assert_allclose(approx.center_point(), points.mean(axis=0), atol=0.1)
    assert_array_equal(approx.hist, [])
    with model:
        again = pmf.fit_draws(idata.posterior, "scale-loc", n=0, held_out=0, random_seed=3, **JAX)
    assert_array_equal(again.log_prob(points), approx.log_prob(points))


def test_each_chain_gives_its_last_draws():
    """Two chains, whose last tenths are far from the rest."""
    z = np.random.default_rng(1).normal(0, 1, (2, 100, 2))
    z[:, 90:] += 1e3
    approx = fit(z, "scale-loc", plane(), n=0)
    assert_allclose(approx.center_point(), z[:, :90].reshape(-1, 2).mean(axis=0), atol=0.1)


def test_the_same_seed_gives_the_same_flow():
    z = normal_draws(200)
    first, second = (fit(z, "scale-loc", plane(), n=20) for _ in range(2))
    other = pmf.fit_draws(z, "scale-loc", plane(), n=20, random_seed=4, **JAX)
    assert_array_equal(first.hist, second.hist)
    assert not np.array_equal(first.hist, other.hist)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"draws": np.zeros((20, 3))}, FlowShapeError, r"draws must have shape \(n, 2\)"),
        ({"draws": np.zeros(2)}, FlowShapeError, r"got \(2,\)"),
        ({"draws": np.ones((20, 2))}, ArgumentError, "equal in coordinate 0 of 'z'"),
        ({"draws": np.full((20, 2), np.nan)}, ArgumentError, "20 of 20 draws are not finite"),
        ({"draws": normal_draws(9)}, ArgumentError, "at least 10 draws are needed, got 9"),
        ({"draws": {"y": [1.0]}}, ArgumentError, "'y', which is not a free variable"),
        ({"held_out": 1}, ArgumentError, "held_out must be a share"),
        ({"batch": 0}, ArgumentError, "batch must be an integer of at least 1"),
        ({"backend": "c"}, BackendError, "unknown backend 'c'"),
    ],
)
def test_what_cannot_be_used_is_refused(change, error, message):
    given = {"draws": normal_draws(20), "formula": "scale-loc", "model": plane()} | change
    with pytest.raises(error, match=message):
        pmf.fit_draws(**given)


def test_draws_outside_of_the_support_are_refused():
    with pm.Model() as model:
        pm.HalfNormal("sigma")
    with pytest.raises(ArgumentError, match="1 of 20 draws are not finite, or outside"):
        fit({"sigma": np.linspace(-0.01, 1, 20)}, "loc", model)


def test_a_flow_without_an_inverse_is_refused(monkeypatch):
    monkeypatch.setattr(pmf.FLOWS["planar"], "has_inverse", False)
    with pytest.raises(NotInvertibleError, match="planar in 'planar-loc' has no inverse"):
        fit(normal_draws(20), "planar-loc", plane())


def test_a_ctrl_c_is_a_warning(monkeypatch, caplog):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(HeldOut, "act", interrupt)
    with caplog.at_level(logging.WARNING, "pymc_flows"):
        approx = fit(normal_draws(100), "loc", plane(), n=40)
    assert 0 < len(approx.hist) < 40
    [said] = [m for m in caplog.messages if m.startswith("Interrupted after")]
    assert "the approximation can be used as it is" in said
