"""Fields given hyperparameters as approximations: draws, densities, reports, files, refusals."""

import logging

import arviz as az
import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest

import pymc_flows as pmf
from pymc_flows.backends.modes import NUMPY
from pymc_flows.errors import ArgumentError, ModelError, NotInvertibleError, StorageError
from pymc_flows.field.gradient import BatchedGradient
from pymc_flows.field.hyper import sample
from pymc_flows.field.options import FieldOptions
from pymc_flows.field.state import FieldState
from pymc_flows.fitting.structured import field_of, fit_structured
from pymc_flows.model.log_density import LogDensity
from pymc_flows.model.logp import ModelDensity
from pymc_flows.model.structure import GroupedDensity, structure

N_GROUPS, N_ROWS = 6, 5


def hierarchy(offset=0.0, family="normal"):
    rng = np.random.default_rng(5)
    group = np.repeat(np.arange(N_GROUPS), N_ROWS)
    effect = rng.normal(1.0, 0.7, N_GROUPS)[group]
    with pm.Model(coords={"site": [f"site {i}" for i in range(N_GROUPS)]}) as model:
        mu = pm.Normal("mu", 0, 2)
        tau = pm.HalfNormal("tau", 1)
        a = pm.Normal("a", mu, tau, dims="site")
        pm.Deterministic("twice", 2 * a, dims="site")
        if family == "normal":
            pm.Normal("y", a[group], 0.5, observed=rng.normal(effect, 0.5) + offset)
        else:
            pm.Bernoulli("y", logit_p=a[group], observed=rng.random(len(group)) < 0.8)
    return model


def exact_moments():
    """Means and standard deviations of mu, log tau and a of the normal model, by quadrature."""
    model = hierarchy()
    observed = np.asarray(model.rvs_to_values[model["y"]].data).reshape(N_GROUPS, N_ROWS)
    means, noise = observed.mean(axis=1), 0.25 / N_ROWS
    log_tau = np.linspace(-7, 2.5, 1501)[:, None]
    tau2 = np.exp(2 * log_tau)
    # Given tau: means ~ N(mu, tau² + noise), mu ~ N(0, 4).
    v = tau2 + noise
    precision = N_GROUPS / v + 1 / 4
    m_mu, v_mu = (means.sum() / v) / precision, 1 / precision
    log_p = (
        -0.5 * N_GROUPS * np.log(v)
        - 0.5 * (means**2).sum() / v
        + 0.5 * m_mu**2 * precision
        + 0.5 * np.log(v_mu)
        - 0.5 * tau2
        + log_tau
    )
    w = np.exp(log_p - log_p.max())[:, 0]
    w /= w.sum()
    shrink = tau2 / v
    m_a = shrink * means + (1 - shrink) * m_mu
    v_a = shrink * noise + (1 - shrink) ** 2 * v_mu

    def moments(m, var):
        mean = w @ m
        return mean, np.sqrt(w @ (var + (m - mean) ** 2))

    return {"mu": moments(m_mu, v_mu), "tau": moments(np.exp(log_tau), 0.0), "a": moments(m_a, v_a)}


@pytest.fixture(scope="module")
def model():
    return hierarchy()


@pytest.fixture(scope="module")
def approx(model):
    return pmf.fit(model=model, random_seed=1)


def test_the_default_call_takes_it_for_a_hierarchy(approx):
    assert isinstance(approx.q, FieldState)
    assert isinstance(approx, pm.variational.opvi.Approximation)
    assert approx.formula.conditional == "laplace"
    [rung] = approx.ladder.rungs
    assert (rung.steps, rung.quality.is_trusted) == (0, True)


def test_draws_have_the_exact_moments(approx):
    posterior = approx.sample(4000, random_seed=2)["posterior"]
    for name, (mean, sd) in exact_moments().items():
        draws = posterior[name].values[0]
        assert np.all(np.abs(draws.mean(axis=0) - mean) < 0.1 * sd), name
        assert np.all(np.abs(draws.std(axis=0) / sd - 1) < 0.1), name


def test_draws_come_with_dims_deterministics_and_what_their_weights_say(approx):
    tree = approx.sample(50, random_seed=2)
    assert tree["posterior"]["a"].dims == ("chain", "draw", "site")
    assert np.array_equal(tree["posterior"]["twice"], 2 * tree["posterior"]["a"])
    attrs = tree["sample_stats"].attrs
    assert attrs["correct"] == "resample"
    assert attrs["khat"] <= attrs["khat_threshold"]
    assert attrs["n_groups"] == N_GROUPS
    plain = approx.sample(5, correct=False)
    assert "correct" not in plain["sample_stats"].attrs


def test_the_same_seed_gives_the_same_draws(approx):
    first, second = (approx.sample(20, random_seed=3)["posterior"] for _ in range(2))
    assert first.equals(second)


def test_the_density_is_that_of_the_draws(approx):
    points, log_q = approx.sample_and_log_prob(30, random_seed=4)
    assert np.allclose(approx.log_prob(points), log_q, rtol=0, atol=1e-8)


def test_given_the_hyperparameters_it_is_the_posterior(approx):
    """The field is Gaussian: log p − log q is a function of the hyperparameters alone."""
    z0 = np.random.default_rng(0).standard_normal((5, approx.ddim))
    hyper = approx.q.structure.hyperparameters
    z0[:, hyper] = z0[0, hyper]
    points, log_q = approx.q.from_base(z0)
    assert np.ptp(points[:, approx.q.structure.field], axis=0).min() > 0.1
    ratios = LogDensity(approx.density).value(points) - log_q
    assert np.ptp(ratios) < 1e-8


def test_the_map_of_the_base_has_the_density(approx):
    z0 = np.random.default_rng(0).standard_normal((4, approx.ddim))
    points, log_q = approx.q.from_base(z0)
    assert np.allclose(approx.forward(z0), points)
    assert np.allclose(approx.log_prob(points), log_q, rtol=0, atol=1e-8)


def test_moments_are_those_of_the_draws(approx):
    exact_mean, exact_sd = exact_moments()["mu"]
    mean, sd, cov = (x.eval(mode=NUMPY) for x in (approx.mean, approx.std, approx.cov))
    assert abs(mean[0] - exact_mean) < 0.1 * exact_sd
    assert abs(sd[0] / exact_sd - 1) < 0.1
    assert np.allclose(np.sqrt(np.diagonal(cov)), sd)


def test_a_report_judges_groups_by_name(approx):
    report = pmf.report(approx, 500, random_seed=1)
    assert (report.status, report.groups.n_groups, report.groups.n_untrusted) == (
        "good",
        N_GROUPS,
        0,
    )
    assert "site=site 0" in str(report)
    assert "groups" in report._repr_html_()


def test_a_report_believes_a_reference_that_differs(approx):
    draws = approx.sample(2000, random_seed=5)["posterior"].to_dataset()
    agreed = pmf.report(approx, 500, reference=draws, random_seed=1)
    assert agreed.status == "good"
    draws["mu"] = draws["mu"] + 3.0
    assert pmf.report(approx, 500, reference=draws, random_seed=1).status == "incomplete"
    draws["tau"] = draws["tau"].where(draws["draw"] >= 100, -1.0)
    with pytest.raises(ArgumentError, match=r"100 of the 2000 draws .* outside of the support"):
        pmf.report(approx, 500, reference=draws, random_seed=1)


def test_a_file_gives_the_same_draws_and_densities(approx, model, tmp_path):
    path = tmp_path / "a.nc"
    approx.save(path)
    again = pmf.load(path, model)
    points, log_q = approx.sample_and_log_prob(10, random_seed=6)
    others = again.sample_and_log_prob(10, random_seed=6)
    assert np.array_equal(others[0], points)
    assert np.allclose(again.log_prob(points), log_q, rtol=0, atol=1e-8)
    first, second = (x.sample(10, random_seed=7)["posterior"] for x in (approx, again))
    assert first.equals(second)
    assert str(again.ladder) == str(approx.ladder)
    with pytest.raises(StorageError, match="other data or priors"):
        pmf.load(path, hierarchy(offset=1.0))


def test_groups_that_are_far_from_gaussian_are_weighed():
    """Few Bernoulli rows per group: corrected as far as the report says."""
    approx = pmf.fit(
        formula="tril-loc | laplace", model=hierarchy(family="bernoulli"), random_seed=1
    )
    groups = approx.q.groups
    assert groups.ess.shape == (N_GROUPS,)
    report = pmf.report(approx, 300, random_seed=1)
    assert report.status == ("good" if approx.q.quality.is_trusted else "unreliable")


def test_roles_can_be_given(model):
    approx = pmf.fit(formula="tril-loc | laplace", model=model, hyper=["tau"], field=["mu", "a"])
    assert approx.q.chain_dim == 1
    assert len(approx.q.structure.field) == 1 + N_GROUPS


@pytest.mark.parametrize("n_new", [2, N_GROUPS * N_ROWS])
def test_data_for_predictions_leave_the_posterior_as_it_was(n_new):
    rng = np.random.default_rng(5)
    group = np.repeat(np.arange(N_GROUPS), N_ROWS)
    with pm.Model() as model:
        index, x = pm.Data("index", group), pm.Data("x", rng.normal(size=len(group)))
        y = pm.Data("y_seen", rng.poisson(2, len(group)))
        tau, b = pm.HalfNormal("tau", 1), pm.Normal("b", 0, 1)
        a = pm.Normal("a", 0, 1, shape=N_GROUPS)
        rate = pm.Deterministic("rate", pm.math.exp(0.5 + tau * a[index] + b * x))
        pm.Poisson("y", rate, observed=y, shape=rate.shape)
    approx = fit_structured(model=model, random_seed=1)
    before = approx.sample(50, random_seed=2).posterior
    new = {"index": np.full(n_new, 1), "x": np.zeros(n_new), "y_seen": np.full(n_new, 9)}
    with model:
        pm.set_data(new)
        after = approx.sample(50, random_seed=2).posterior
    for name in ("tau", "b", "a"):
        np.testing.assert_array_equal(after[name], before[name])
    expected = np.exp(0.5 + after["tau"] * after["a"][..., 1])
    np.testing.assert_allclose(after["rate"], np.repeat(expected.values[..., None], n_new, -1))


def test_posterior_predictive_draws(approx, model):
    with model, pytensor.config.change_flags(mode="FAST_COMPILE"):
        tree = approx.sample(20, random_seed=8)
        pm.sample_posterior_predictive(
            tree, random_seed=1, progressbar=False, extend_inferencedata=True
        )
    assert tree["posterior_predictive"]["y"].shape == (1, 20, N_GROUPS * N_ROWS)
    assert az.summary(tree, var_names=["mu"]).shape[0] == 1


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda m: pmf.NFVI("tril-loc | laplace", model=m), ArgumentError, "no chain of layers"),
        (
            lambda m: pmf.fit(formula="tril-loc | laplace", model=m, callbacks=[print]),
            ArgumentError,
            "not trained step by step",
        ),
        (
            lambda m: pmf.fit(formula="tril-loc | laplace", model=m, more_replacements={"a": 1}),
            ArgumentError,
            "more_replacements has no meaning",
        ),
        (
            lambda m: pmf.fit(formula="tril-loc | laplace", model=m, obj_n_mc=8),
            ArgumentError,
            "obj_n_mc has no meaning",
        ),
        (
            lambda m: pmf.fit(formula="scale-loc", model=m, hyper=["tau"]),
            ArgumentError,
            "hyper= and field=",
        ),
    ],
)
def test_what_has_no_meaning_is_refused(model, call, error, said):
    with pytest.raises(error, match=said):
        call(model)


def test_a_model_without_a_field_is_refused():
    with pm.Model() as model:
        pm.HalfNormal("s", 1)
    with pytest.raises(ModelError, match="no field"):
        pmf.fit(formula="tril-loc | laplace", model=model)


def test_what_needs_one_flow_over_all_variables_says_so(approx):
    with pytest.raises(NotInvertibleError, match="not one map of"):
        approx.inverse(np.zeros(approx.ddim))


def test_a_given_start_is_the_only_point_that_a_structure_is_read_and_used_at(monkeypatch, model):
    density, given = ModelDensity(model), ModelDensity.start

    def only_given(self, start=None, **kwargs):
        assert start is not None, "the model's own initial point was asked for"
        return given(self, start, **kwargs)

    monkeypatch.setattr(ModelDensity, "start", only_given)
    start = model.initial_point()
    found = structure(model, start=start)
    assert found.why_not is None
    point = density.start(start)
    grouped, gradient = GroupedDensity(density, found), BatchedGradient(density)
    total, by_group = grouped(point[None])
    value, _ = gradient(point[None])
    np.testing.assert_allclose(total + by_group.sum(axis=1), value, rtol=1e-9)


def test_a_structure_that_cannot_be_read_is_no_end(monkeypatch, model, caplog):
    def broken(*_, **__):
        raise RuntimeError("an Op of the future")

    monkeypatch.setattr("pymc_flows.fitting.structured.structure", broken)
    monkeypatch.setattr("pymc_flows.fitting.auto._gaussian", _stop)
    with caplog.at_level(logging.WARNING, "pymc_flows"), pytest.raises(StopIteration):
        pmf.fit(model=model, random_seed=1)
    assert "an Op of the future" in caplog.text


def _stop(*_, **__):
    raise StopIteration


@pytest.mark.parametrize(("family", "hyper"), [("normal", ("tau",)), ("bernoulli", ("mu", "tau"))])
def test_fixed_effects_belong_to_a_field_that_is_gaussian_with_them(family, hyper):
    found = fit_structured(model=hierarchy(family=family), random_seed=1).q.structure
    assert found.hyper_names == hyper
    assert ("mu" in found.field_names) == (family == "normal")


def test_a_fixed_effect_of_few_groups_has_its_wide_tails():
    """Its standard deviation grows with the scale, which five groups hardly bound."""
    rng = np.random.default_rng(8)
    group = np.repeat(np.arange(5), 20)
    with pm.Model() as model:
        mu = pm.Normal("mu", 0, 10)
        tau = pm.HalfCauchy("tau", 1)
        a = pm.Normal("a", mu, tau, shape=5)
        observed = rng.normal(rng.normal(0, 0.7, 5)[group], 0.5)
        pm.Normal("y", a[group], 0.5, observed=observed)
    means, noise = observed.reshape(5, 20).mean(axis=1), 0.25 / 20
    log_tau = np.linspace(-8, 8, 3201)
    v = np.exp(2 * log_tau) + noise
    precision = 5 / v + 0.01
    m_mu = means.sum() / v / precision
    log_p = -2.5 * np.log(v) - 0.5 * (means**2).sum() / v - 0.5 * np.log(precision)
    log_p += 0.5 * m_mu**2 * precision + log_tau - np.log1p(np.exp(2 * log_tau))
    w = np.exp(log_p - log_p.max())
    w /= w.sum()
    mean = w @ m_mu
    sd = np.sqrt(w @ (1 / precision + (m_mu - mean) ** 2))
    draws = fit_structured(model=model, random_seed=1).sample(4_000, random_seed=1).posterior
    assert abs(draws["mu"].values.mean() - mean) < 0.06 * sd
    assert abs(draws["mu"].values.std() / sd - 1) < 0.08


def test_the_spread_of_a_scale_of_few_groups_is_known():
    """Five groups leave a tail of large scales: with a kurtosis of 40, few values decide it."""
    means, noise = np.array([0.03, -0.04, 0.05, 0.0, -0.06]), 0.02
    with pm.Model() as model:
        tau = pm.HalfNormal("tau", 1)
        a = pm.Normal("a", 0, tau, shape=5)
        pm.Normal("y", a, noise, observed=means)
    tau = np.linspace(1e-4, 6, 200_001)[:, None]
    v = tau**2 + noise**2
    log_p = (-0.5 * np.log(v) - 0.5 * means**2 / v).sum(axis=1) - 0.5 * tau[:, 0] ** 2
    p = np.exp(log_p - log_p.max())
    p /= p.sum()
    mean = p @ tau[:, 0]
    sd = np.sqrt(p @ (tau[:, 0] - mean) ** 2)
    assert p @ (tau[:, 0] - mean) ** 4 > 15 * sd**4
    for seed in range(3):
        values = fit_structured(model=model, random_seed=seed).q.found.values
        weights, found = np.exp(values.log_weights), np.exp(values.hyper[:, 0])
        spread = np.sqrt(weights @ (found - weights @ found) ** 2)
        assert spread == pytest.approx(sd, rel=0.05)


def test_more_values_far_out_are_taken_while_there_is_time(monkeypatch):
    model = hierarchy(family="bernoulli")
    options = FieldOptions(rounds=(32, 32), values=64, effective=200, flow_rounds=0)

    def n_values(error, seconds):
        monkeypatch.setattr(sample, "SPREAD_ERROR", error)
        monkeypatch.setattr(sample, "SECONDS_TO_FILL", seconds)
        fitted = fit_structured(model=model, options=options, random_seed=1).q.found
        return len(fitted.values.hyper)

    enough = n_values(np.inf, 8.0)
    few = n_values(0.0, 1e-6)
    assert few < enough < n_values(0.0, 8.0)


def test_a_loop_has_no_field_unless_it_is_asked_for(caplog):
    """Its Hessians would be differences of gradients that NumPy takes step by step."""
    with pm.Model() as model:
        x = pm.Normal("x", 0, pm.HalfNormal("tau"), shape=3)
        walk = pytensor.scan(
            lambda before, x: before * x,
            outputs_info=pt.ones(3),
            non_sequences=[x],
            n_steps=2,
            return_updates=False,
        )
        pm.Normal("y", walk, 1, observed=np.zeros((2, 3)))
    with caplog.at_level(logging.INFO, "pymc_flows"):
        assert field_of(model) is None
    assert "step by step through a loop" in caplog.text
    assert len(field_of(model, field=["x"]).field) == 3
