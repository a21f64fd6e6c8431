from dataclasses import replace
from itertools import groupby

import numpy as np
import pytest

from posteriors import Bernoulli, CentredMeans, Funnel, LinearMixed, on_grid
from pymc_flows.errors import FitError
from pymc_flows.field import FieldOptions, fit_field, result
from pymc_flows.field.conditional.judge import judge
from pymc_flows.field.options import Progress, effort
from pymc_flows.field.state import FieldState
from pymc_flows.importance import systematic
from pymc_flows.support.evaluations import Evaluations

OPTIONS = FieldOptions(rounds=(64, 64), values=128, effective=1_000, most_values=1_000)
QUICK = replace(OPTIONS, rounds=(32, 32), values=32, flow_rounds=0)


def simulated(rng, design, scales=(0.0, -0.7)):
    x = rng.standard_normal(design.shape[1])
    return np.exp(scales[0]) * design @ x + np.exp(scales[1]) * rng.standard_normal(len(design))


def plate(rng, *, centred=False):
    design = np.kron(np.eye(6), np.ones((4, 1)))
    return LinearMixed(simulated(rng, design), [design], np.arange(6), centred=centred)


def centred_plate(rng):
    return plate(rng, centred=True)


def crossed(rng):
    rows, columns = np.divmod(np.arange(24), 4)
    design = np.zeros((24, 10))
    design[np.arange(24), rows] = design[np.arange(24), 6 + columns] = 1
    return LinearMixed(simulated(rng, design), [design], [0, 1, 2, 3, 4, 5, -1, -1, -1, -1])


def nested(rng):
    """Two schools of three classes each: a group is a school with its classes."""
    design = np.zeros((24, 8))
    classes = np.arange(24) // 4
    design[np.arange(24), 2 + classes] = design[np.arange(24), classes // 3] = 1
    return LinearMixed(simulated(rng, design), [design], [0, 1, 0, 0, 0, 1, 1, 1])


def random_walk(rng):
    design = np.tril(np.ones((15, 15)))
    return LinearMixed(simulated(rng, design, (-1.0, -1.0)), [design], np.zeros(15, int))


def gaussian_process(rng):
    t = np.linspace(0, 3, 15)
    covariance = np.exp(-0.5 * (t[:, None] - t) ** 2) + 1e-9 * np.eye(15)
    design = np.linalg.cholesky(covariance)
    return LinearMixed(simulated(rng, design), [design], np.zeros(15, int))


MODELS = [plate, centred_plate, crossed, nested, random_walk, gaussian_process]


@pytest.mark.parametrize("make", MODELS)
def test_linear_mixed_models_have_their_exact_marginals(make):
    target = make(np.random.default_rng(5))
    found = fit_field(target.posterior(), options=OPTIONS, random_seed=1)
    mean, sd, evidence = on_grid(target.log_marginal, [np.linspace(-4, 3, 141)] * 2)
    values = found.values
    assert found.marginal.is_gaussian
    assert (found.groups.khat == -np.inf).all()
    assert abs(values.overall.log_evidence - evidence) < 4 * values.overall.log_evidence_error
    weights = np.exp(values.log_weights)
    weighted = weights @ values.hyper
    np.testing.assert_allclose((weighted - mean) / sd, 0, atol=0.1)
    spread = np.sqrt(weights @ (values.hyper - weighted) ** 2)
    np.testing.assert_allclose(spread / sd, 1, atol=0.1)
    assert values.quality.ess > 0.6 * values.quality.n_draws


@pytest.fixture(scope="module")
def plated():
    target = plate(np.random.default_rng(5))
    return target, fit_field(target.posterior(), options=OPTIONS, random_seed=1)


def test_the_first_values_are_like_all_values():
    """Those of the first rounds are from wider distributions, by 3 of these standard errors."""
    target = random_walk(np.random.default_rng(5))
    found = fit_field(target.posterior(), options=OPTIONS, random_seed=2)
    hyper, n = found.values.hyper, sum(OPTIONS.rounds)
    distance = np.linalg.norm(hyper - hyper.mean(axis=0), axis=1)
    assert abs(distance[:n].mean() - distance.mean()) < 2 * distance.std() / np.sqrt(n)


@pytest.mark.parametrize("make", [plate, crossed])
def test_draws_have_the_density_that_log_prob_gives(make, rng):
    target = make(np.random.default_rng(5))
    posterior = target.posterior()
    found = fit_field(posterior, options=QUICK, random_seed=1)
    points, log_q = found.draw(40, rng, n_hyper=20)
    np.testing.assert_allclose(found.log_prob(points), log_q, rtol=1e-10)
    # The field is Gaussian: all of the joint weight is that of the hyperparameters.
    log_p, _ = posterior.value_and_grad(points)
    hyper = points[:, posterior.hyper]
    marginal = target.log_marginal(hyper)
    np.testing.assert_allclose(
        log_p - log_q, marginal - found.values.flow.log_prob(hyper), atol=1e-8
    )


def test_draws_without_a_gaussian_are_drawn_again(plated, rng, monkeypatch):
    _, found = plated
    whole, calls = found.marginal.gaussians, []

    def flaky(hyper):
        calls.append(len(hyper))
        pairs = list(whole(hyper))
        return [(0, None), *pairs[1:]] if len(calls) < 3 else pairs

    monkeypatch.setattr(found.marginal, "gaussians", flaky)
    points, log_q = FieldState(found, None).draw(3, rng)
    assert calls == [3, 1, 1]
    np.testing.assert_allclose(found.log_prob(points), log_q)


def test_corrected_draws_have_the_posterior_moments(plated, rng):
    target, found = plated
    draws = found.corrected(2000, rng)
    mean, sd, _ = on_grid(target.log_marginal, [np.linspace(-4, 3, 141)] * 2)
    np.testing.assert_allclose((draws[:, :2].mean(axis=0) - mean) / sd, 0, atol=0.1)
    np.testing.assert_allclose(draws[:, :2].std(axis=0) / sd, 1, atol=0.1)


@pytest.mark.parametrize("data", [([0, 3, 1, 2, 4, 1], [5] * 6), ([1, 0, 1, 1] * 8, [1] * 32)])
def test_draws_of_groups_suffice_for_differences_of_the_log_marginal(data):
    target = Bernoulli(*data)
    found = fit_field(target.posterior(), options=QUICK, random_seed=0)
    weights = np.exp(found.values.log_weights)
    rows = systematic(weights, 64, np.random.default_rng(1))
    hyper, progress = found.values.hyper[rows], Progress(Evaluations())
    values = found.marginal.evaluate(hyper, progress, "test")
    off = values.log_p - target.log_marginal(hyper)
    assert off.std() < 2 * QUICK.group_error
    assert (np.abs(off) < 4 * values.error + 2 * QUICK.group_error).all()


@pytest.mark.parametrize("cut", [1.0, 0.4])
def test_values_whose_groups_have_no_density_are_left_out(cut):
    class Cut(Bernoulli):
        def by_group(self, points):
            shared, own = super().by_group(points)
            own[points[:, 1] > cut] = np.nan
            return shared, own

    posterior = Cut([1, 3, 2, 0, 4, 1], [5] * 6).posterior()
    values = fit_field(posterior, options=QUICK, random_seed=0).values
    assert values.overall.ess > 50
    assert np.isfinite(values.error)


def test_many_draws_take_few_values_where_gaussians_take_long(rng, monkeypatch):
    found = fit_field(crossed(rng).posterior(), options=QUICK, random_seed=0)
    posterior, n_hyper = found.posterior, found.posterior.n_hyper
    assert posterior.factor_products == 4**3 // 3
    each = effort(result.EACH, posterior.sizes, posterior.factor_products)
    monkeypatch.setattr(result, "FEWEST", 8)
    for affordable, distinct in ((0, 8), (20.5, 20)):
        monkeypatch.setattr(result, "SECONDS_TO_DRAW", affordable * each)
        draws = found.corrected(400, np.random.default_rng(1))
        assert len(draws) == 400
        assert 0.5 * distinct < len(np.unique(draws[:, :n_hyper], axis=0)) <= distinct


def test_factors_of_a_large_separator_count_as_effort():
    progress = Progress(Evaluations(factors=2), factor_products=1_000**3 // 3)
    without = Progress(Evaluations(factors=2))
    assert progress.effort - without.effort == pytest.approx(2 * 0.017, rel=0.1)


def test_a_centred_hierarchy_in_the_units_of_its_data_is_found_from_zero():
    rng = np.random.default_rng(4)
    target = CentredMeans(540 + 40 * rng.standard_normal(30) + 30 * rng.standard_normal(30), 30.0)
    found = fit_field(target.posterior(), options=OPTIONS, random_seed=0)
    axes = [np.linspace(480, 600, 121), np.linspace(-10, 6, 321)]
    mean, sd, evidence = on_grid(target.log_marginal, axes)
    values = found.values
    weights = np.exp(values.log_weights)
    weighted = weights @ values.hyper
    np.testing.assert_allclose((weighted - mean) / sd, 0, atol=0.15)
    assert abs(values.overall.log_evidence - evidence) < 5 * values.overall.log_evidence_error


def test_neals_funnel_is_exact():
    found = fit_field(Funnel(9).posterior(), options=OPTIONS, random_seed=0)
    values = found.values
    assert values.overall.log_evidence == pytest.approx(0, abs=0.02)
    v = found.draw(500, np.random.default_rng(0))[0][:, 0]
    assert v.mean() == pytest.approx(0, abs=0.3)
    assert v.std() == pytest.approx(3, rel=0.1)
    assert values.quality.elbo > -0.02


def test_few_rows_per_group_are_corrected():
    """Two Bernoulli rows in each group: Laplace's approximation is off, the weights know it."""
    rng = np.random.default_rng(2)
    x = rng.standard_normal(60)
    p = 1 / (1 + np.exp(-0.3 - 1.5 * x))
    target = Bernoulli(rng.binomial(2, p), np.full(60, 2))
    options = replace(OPTIONS, group_error=0.05)
    found = fit_field(target.posterior(), options=options, random_seed=0)
    axes = [np.linspace(-1.5, 2, 36), np.linspace(-4, 2.5, 66)]
    mean, sd, evidence = on_grid(target.log_marginal, axes)
    values = found.values
    assert not found.marginal.is_gaussian
    error = np.hypot(values.overall.log_evidence_error, values.error)
    assert abs(values.overall.log_evidence - evidence) < 4 * error
    weighted = np.exp(values.log_weights) @ values.hyper
    np.testing.assert_allclose((weighted - mean) / sd, 0, atol=0.15)
    # The Gaussian alone has uneven weights, with wider tails they are good.
    groups = found.groups
    assert found.marginal.wide.all()
    assert groups.ess.min() > 0.9 * groups.n_draws
    assert groups.is_trusted


def test_a_fit_repeats_itself_and_reports_what_it_does():
    target = plate(np.random.default_rng(5))
    said = []
    first = fit_field(
        target.posterior(),
        options=QUICK,
        random_seed=3,
        report=lambda stage, counts, seconds: said.append((stage, counts)),
    )
    second = fit_field(target.posterior(), options=QUICK, random_seed=3)
    np.testing.assert_array_equal(first.values.hyper, second.values.hyper)
    assert first.evaluations == second.evaluations
    stages = [stage for stage, _ in groupby(stage for stage, _ in said)]
    assert stages[0].startswith("mode")
    assert [stage for stage, _, _ in first.history] == stages
    counts = [c.gradients for _, c in said]
    assert counts == sorted(counts)


def test_evaluations_are_bounded(plated):
    _, found = plated
    rounds = 64 + 64 + 128 * (1 + OPTIONS.flow_rounds) + 1.375 * OPTIONS.most_values
    # A Gaussian field takes one curvature per value of the hyperparameters.
    assert found.evaluations.curvatures < rounds + 120
    assert found.evaluations.gradients < 2 * rounds + 500


def test_an_interrupt_ends_a_fit():
    def interrupt(stage, counts, seconds):
        if stage.startswith("curvature"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_field(plate(np.random.default_rng(5)).posterior(), random_seed=3, report=interrupt)


def test_a_start_without_a_density_is_refused():
    target = plate(np.random.default_rng(5))
    with pytest.raises(FitError, match="no mode at the starting values"):
        fit_field(target.posterior(), start=np.full(8, np.nan))


def test_groups_that_few_draws_call_bad_are_judged_by_more(monkeypatch):
    def stern(found):
        quality = judge(found)
        few = quality.n_draws < 100
        return replace(quality, khat=np.full(len(quality.khat), np.inf)) if few else quality

    monkeypatch.setattr("pymc_flows.field.fit.judge", stern)
    target = Bernoulli(np.array([12, 17, 20, 24]), np.full(4, 40))
    options = replace(QUICK, judge_draws=50)
    found = fit_field(target.posterior(), options=options, random_seed=0).groups
    assert found.n_draws == 8 * 50
    assert found.is_trusted
    hurried = replace(options, judge_seconds=0.0)
    found = fit_field(target.posterior(), options=hurried, random_seed=0).groups
    assert found.n_draws == 50
    assert not found.is_trusted
