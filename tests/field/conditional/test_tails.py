import numpy as np
import pytest
from scipy import stats

from posteriors import Counts, LinearMixed, normal
from pymc_flows.field import FieldOptions, fit_field
from pymc_flows.field.conditional.judge import judge
from pymc_flows.field.conditional.mapping import ConditionalField, Surface
from pymc_flows.field.conditional.newton import FieldModes
from pymc_flows.field.conditional.noise import NormalNoise, quadrature
from pymc_flows.field.conditional.tails import LARGEST, PARTS, log_mixture, spreads, want_wider
from pymc_flows.field.conditional.weights import weigh_groups
from pymc_flows.field.factors import factoring
from pymc_flows.field.record import arrays_of, restored
from pymc_flows.formula import Formula

OPTIONS = FieldOptions(rounds=(32, 32), values=32, flow_rounds=0, effective=64)


def gaussian_at(posterior, g, rng):
    """The Gaussian with its mean corrected."""
    modes = FieldModes(posterior, factoring(posterior.pattern, posterior.groups))
    surface = Surface(posterior.start[posterior.hyper], posterior.start[posterior.field])
    conditional = ConditionalField(modes, surface, quadrature(posterior.groups, 8, rng))
    [gaussian] = conditional.centred(conditional.at(np.asarray(g)[None]))
    return gaussian


@pytest.mark.parametrize("size", [1, 3])
def test_a_mixture_has_the_density_of_all_parts(size, rng):
    z = 2 * rng.standard_normal((20, size))
    n, used = 64, spreads(64)
    shares = {1.0: 52 / n, **{wider: 1 / one_of for one_of, wider in PARTS}}
    assert {s: (used == s).mean() for s in shares} == shares
    parts = {s: stats.multivariate_normal(cov=s**2 * np.eye(size)) for s in shares}
    density = sum(share * parts[s].pdf(z) for s, share in shares.items())
    expected = np.log(density) - parts[1.0].logpdf(z)
    found = log_mixture(np.square(z).sum(axis=1, keepdims=True), np.array([size]), used)
    np.testing.assert_allclose(found[:, 0], expected)


def test_small_groups_that_are_not_gaussian_want_wider_tails():
    groups = np.array([0, 1, -1, *[2] * LARGEST, *[3] * (LARGEST + 1)])
    found = want_wider(np.array([64.0, 60.0, np.nan, 30.0]), 64, groups)
    np.testing.assert_array_equal(found, [False, True, True, False])


@pytest.mark.parametrize("g", [(0.0, 1.2), (1.6, 1.2), (0.5, 1.5)])
def test_weights_of_a_count_of_zero_are_bounded(g, rng):
    """Towards −∞ the likelihood is flat, and the posterior falls off as its wide prior."""
    target = Counts([0])
    posterior = target.posterior()
    gaussian = gaussian_at(posterior, g, rng)
    noise = NormalNoise.make(posterior.groups, 4096, rng)
    plain = weigh_groups(posterior, gaussian, noise)
    found = weigh_groups(posterior, gaussian, noise, wide=np.array([True]))
    assert not judge([plain]).is_trusted
    assert judge([found]).is_trusted
    largest = [w.by_group.max() - w.means[0, 0] for w in (plain, found)]
    assert largest[0] > np.log(5)
    assert largest[1] < np.log(2)
    expected = target.log_marginal(np.array([g]))[0]
    assert found.log_marginal == pytest.approx(expected, abs=1e-3)
    assert found.error < plain.error


@pytest.fixture(scope="module")
def counts():
    return Counts(np.repeat([0, 1, 3], [20, 10, 10]))


def test_few_draws_give_the_marginal_with_nearly_the_same_noise_everywhere(counts, rng):
    posterior = counts.posterior()
    noise = NormalNoise.make(posterior.groups, 64, rng)
    hyper = np.array([(0.2, 0.0), (0.0, 0.3), (-0.3, 0.5), (0.4, -0.3)])
    off, errors = [], []
    for g in hyper:
        gaussian = gaussian_at(posterior, g, rng)
        found = weigh_groups(posterior, gaussian, noise, wide=np.ones(40, bool))
        off.append(found.log_marginal - counts.log_marginal(g[None])[0])
        errors.append(found.error)
    assert max(errors) < 0.2
    assert np.abs(off).max() < 3 * max(errors)
    assert np.ptp(off) < 0.1


@pytest.mark.parametrize("groups", [np.arange(6), np.array([0, 1, 2, 3, -1, -1])])
def test_wide_draws_leave_the_marginal_of_gaussian_groups_exact(groups, rng):
    design = rng.standard_normal((12, 6)) * (groups < 0)
    inside = np.flatnonzero(groups >= 0)
    design[np.arange(12), inside[np.arange(12) % len(inside)]] = 1
    target = LinearMixed(rng.standard_normal(12), [design], groups)
    posterior = target.posterior()
    g = np.array([0.2, -0.1])
    noise = NormalNoise.make(groups, 4 * 16, rng)
    wide = np.ones(posterior.n_groups, bool)
    gaussian = gaussian_at(posterior, g, rng)
    found = weigh_groups(posterior, gaussian, noise, n_outer=4, wide=wide)
    assert found.log_marginal == pytest.approx(target.log_marginal(g[None])[0], abs=1e-8)
    assert found.error == pytest.approx(0, abs=1e-8)
    assert (found.ess > 0.85 * 16).all()


def test_resampled_draws_come_from_the_tail_as_often_as_they_should(counts, rng):
    posterior, g = counts.posterior(), np.array([0.5, 1.0])
    noise = NormalNoise.make(posterior.groups, 1024, rng)
    gaussian = gaussian_at(posterior, g, rng)
    weights = weigh_groups(posterior, gaussian, noise, wide=np.ones(40, bool), keep=True)
    draws = gaussian.place(weights.resample(4096, rng, posterior.groups))[:, :20]  # counts of 0
    x = np.linspace(-12, 6, 6001)
    p = np.exp(-np.exp(g[0] + np.exp(g[1]) * x) + normal(x, 1))
    p /= p.sum()
    np.testing.assert_allclose(draws.mean(), x @ p, atol=0.01)
    for place in (-2.5, -2.0, -1.0):
        assert (draws < place).mean() == pytest.approx(p[x < place].sum(), rel=0.05)


@pytest.fixture(scope="module")
def fitted(counts):
    return fit_field(counts.posterior(), options=OPTIONS, random_seed=1)


def test_a_fit_widens_tails_where_they_are_wanted(counts, fitted):
    assert fitted.marginal.wide.any()
    assert fitted.groups.is_trusted
    grid = np.stack(
        np.meshgrid(np.linspace(-3, 3, 61), np.linspace(-4, 2.5, 66), indexing="ij"), axis=-1
    ).reshape(-1, 2)
    log_p = counts.log_marginal(grid)
    evidence = np.log(np.exp(log_p - log_p.max()).sum() * 0.1 * 0.1) + log_p.max()
    overall = fitted.values.overall
    error = np.hypot(overall.log_evidence_error, fitted.values.error)
    assert abs(overall.log_evidence - evidence) < 4 * error


def test_a_gaussian_field_has_no_wide_tails(rng):
    design = np.kron(np.eye(6), np.ones((4, 1)))
    target = LinearMixed(rng.standard_normal(24), [design], np.arange(6))
    found = fit_field(target.posterior(), options=OPTIONS, random_seed=1)
    assert found.marginal.is_gaussian
    assert not found.marginal.wide.any()


def test_a_fit_with_wide_tails_comes_back_from_its_arrays(counts, fitted):
    arrays = arrays_of(fitted)
    formula = Formula("tril-loc | laplace")
    again = restored(counts.posterior(), formula, lambda name, shape, dtype: arrays[name])
    np.testing.assert_array_equal(again.marginal.wide, fitted.marginal.wide)
    first, second = (
        found.corrected(50, np.random.default_rng(4), n_hyper=10) for found in (fitted, again)
    )
    np.testing.assert_allclose(second, first, atol=1e-8)
    points, log_q = again.draw(20, np.random.default_rng(5))
    np.testing.assert_allclose(again.log_prob(points), log_q, rtol=1e-9)
