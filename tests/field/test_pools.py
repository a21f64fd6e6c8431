"""Many draws of a field that is not Gaussian, with noise that was weighed at a few values."""

import numpy as np
import pytest
from scipy import sparse

from posteriors import Counts, Parts, normal
from pymc_flows.field import FieldOptions, Posterior, fit_field, pools
from pymc_flows.field.conditional.noise import NormalNoise
from pymc_flows.field.conditional.weights import GroupWeights, weigh_groups
from pymc_flows.field.options import Progress
from pymc_flows.field.record import arrays_of, restored
from pymc_flows.formula import Formula
from pymc_flows.support.evaluations import Evaluations

OPTIONS = FieldOptions(rounds=(64, 64), values=128, flow_rounds=0, effective=1_500)


@pytest.fixture(scope="module")
def target():
    """Many counts of 0: their rates may be anything that is small."""
    return Counts(np.random.default_rng(3).poisson(np.exp(-0.5 + 1.5 * np.linspace(-2, 2, 40))))


@pytest.fixture(scope="module")
def fitted(target):
    return fit_field(target.posterior(), options=OPTIONS, random_seed=0)


def exact(target):
    """Means, standard deviations and skewness of x by quadrature over g and each x."""
    axes = np.meshgrid(np.linspace(-3, 2, 51), np.linspace(-2, 2, 51), indexing="ij")
    g = np.stack(axes, axis=-1).reshape(-1, 2)
    log_p = target.log_marginal(g)
    p = np.exp(log_p - log_p.max())
    p /= p.sum()
    x = np.linspace(-7, 7, 701)
    eta = g[:, :1] + np.exp(g[:, 1:]) * x
    found = {}
    for k in np.unique(target.k):
        like = np.exp(k * eta - np.exp(eta) - 0.5 * x**2)
        like /= like.sum(axis=1, keepdims=True)
        mean = p @ (like @ x)
        moments = [p @ (like @ (x - mean) ** i) for i in (2, 3)]
        found[k] = mean, moments[0] ** 0.5, moments[1] / moments[0] ** 1.5
    return np.array([found[k] for k in target.k]).T


@pytest.fixture
def used(monkeypatch):
    """The anchors that draws are tried with, in order."""
    found = []
    anchors = pools._Anchors

    def noted(*args):
        found.append(anchors(*args))
        return found[-1]

    monkeypatch.setattr(pools, "_Anchors", noted)
    return found


def test_draws_by_anchors_have_the_exact_moments(target, fitted, used):
    draws = fitted.corrected(4_000, np.random.default_rng(1))
    assert used[0].can_serve
    mean, sd, skewness = exact(target)
    x = draws[:, 2:]
    np.testing.assert_allclose((x.mean(axis=0) - mean) / sd, 0, atol=0.08)
    np.testing.assert_allclose(x.std(axis=0) / sd, 1, atol=0.06)
    # A Gaussian has the means and spreads, too, but not the skewness.
    zero = target.k == 0
    mine = (x[:, zero] - mean[zero]) / sd[zero]
    assert skewness[zero][0] < -0.2
    assert (mine**3).mean() == pytest.approx(skewness[zero][0], abs=0.06)


class SharedLevel:
    """Counts of rate exp(3 s + exp(g) x_i); s belongs to no group, and g, s and x are N(0, 1)."""

    def __init__(self, counts):
        self.k = np.asarray(counts, float)
        self.pattern = np.eye(len(counts) + 1, dtype=bool)
        self.pattern[0] = self.pattern[:, 0] = True

    def by_group(self, points):
        g, s, x = points[:, :1], points[:, 1:2], points[:, 2:]
        eta = 3 * s + np.exp(g) * x
        return normal(points[:, :2], 1).sum(axis=1), self.k * eta - np.exp(eta) + normal(x, 1)

    def value_and_grad(self, points):
        scale, x = np.exp(points[:, :1]), points[:, 2:]
        slope = self.k - np.exp(3 * points[:, 1:2] + scale * x)
        by_scale, by_level = (scale * x * slope).sum(axis=1), 3 * slope.sum(axis=1)
        gradient = np.column_stack([by_scale, by_level, scale * slope]) - points
        shared, own = self.by_group(points)
        return shared + own.sum(axis=1), gradient

    def curvature(self, point):
        scale = np.exp(point[0])
        rate = np.exp(3 * point[1] + scale * point[2:])
        found = np.diag(1 + np.append(9 * rate.sum(), scale**2 * rate))
        found[0, 1:] = found[1:, 0] = 3 * scale * rate
        rows, columns = self.pattern.nonzero()
        return sparse.csc_matrix((found[rows, columns], (rows, columns)), shape=found.shape)

    def level(self):
        """Mean and standard deviation of s, and its probabilities 2 of these below and above.

        They come by quadrature over g, s and each x.
        """
        g, s = np.meshgrid(np.linspace(-4, 2, 61), np.linspace(-5, 2, 141), indexing="ij")
        x = np.linspace(-7, 7, 281)
        eta = 3 * s[..., None] + np.exp(g[..., None]) * x
        log_p = normal(g, 1) + normal(s, 1)
        with np.errstate(over="ignore"):
            for k in self.k:
                log_p += np.log(np.exp(k * eta - np.exp(eta) + normal(x, 1)).sum(axis=2))
        p = np.exp(log_p - log_p.max()).sum(axis=0)
        p /= p.sum()
        mean = p @ s[0]
        sd = (p @ (s[0] - mean) ** 2) ** 0.5
        total = np.cumsum(p)
        below, above = (np.interp(mean + x * sd, s[0] + 0.025, total) for x in (-2, 2))
        return mean, sd, (below, 1 - above)

    def posterior(self):
        structure = Parts.of(1, np.append(-1, np.arange(len(self.k))))
        start = np.zeros(2 + len(self.k))
        return Posterior(structure, self.value_and_grad, self.curvature, self.by_group, start)


@pytest.fixture(scope="module")
def level():
    return SharedLevel([0, 0, 0])


@pytest.fixture(scope="module")
def with_level(level):
    options = FieldOptions(rounds=(64,), values=64, flow_rounds=0, effective=500)
    return fit_field(level.posterior(), options=options, random_seed=0)


@pytest.mark.parametrize("is_skewed", [True, False])
def test_a_separator_that_is_not_gaussian_keeps_its_moments(
    level, with_level, used, is_skewed, monkeypatch
):
    if not is_skewed:
        monkeypatch.setattr(with_level.marginal, "skew", None)
    parts = [with_level.corrected(8_000, np.random.default_rng(seed)) for seed in range(3)]
    s = np.concatenate(parts)[:, 1]
    assert [x.can_serve for x in used] == 3 * ([True] if is_skewed else [False, True])
    mean, sd, tails = level.level()
    assert (s.mean() - mean) / sd == pytest.approx(0, abs=0.06)
    assert s.std() / sd == pytest.approx(1, abs=0.05)
    # A normal distribution has 0.023 on either side.
    assert tails[0] > 0.03
    assert tails[1] < 0.015
    found = [(s < mean - 2 * sd).mean(), (s > mean + 2 * sd).mean()]
    np.testing.assert_allclose(found, tails, atol=0.005)


def test_a_skewed_separator_has_more_even_weights_of_the_same_mean(with_level, rng):
    marginal, gaussian = with_level.marginal, with_level.mode.gaussian
    noise = NormalNoise.make(marginal.posterior.groups, 256 * 32, rng)
    plain, skewed = (
        weigh_groups(marginal.posterior, gaussian, noise, n_outer=256, skew=skew)
        for skew in (None, marginal.skew)
    )
    within = [weights.variances()[0] for weights in (skewed, plain)]
    assert skewed.outer.var() - within[0] < 0.5 * (plain.outer.var() - within[1])
    error = np.hypot(plain.error, skewed.error)
    assert abs(skewed.log_marginal - plain.log_marginal) < 4 * error < 0.2


def test_a_fit_with_a_skewed_separator_comes_back_from_its_arrays(level, with_level):
    arrays = arrays_of(with_level)
    formula = Formula(f"{with_level.values.flow.formula} | laplace")
    again = restored(level.posterior(), formula, lambda name, shape, dtype: arrays[name])
    same = [found.corrected(100, np.random.default_rng(1)) for found in (with_level, again)]
    np.testing.assert_allclose(*same, rtol=1e-6)
    arrays["skew_shift"] = np.zeros(2)
    with pytest.raises(ValueError, match="a skew of another separator"):
        restored(level.posterior(), formula, lambda name, shape, dtype: arrays[name])


def test_many_draws_cost_as_much_as_few(fitted):
    counts = fitted.posterior.evaluations
    spent = []
    for n in (1_500, 6_000):
        before = counts.copy()
        assert len(fitted.corrected(n, np.random.default_rng(1))) == n
        spent.append(counts.densities - before.densities)
    assert spent[0] == spent[1] == pools.ANCHORS * pools.ANCHOR_POOL


def test_few_draws_are_weighed_where_they_are(fitted):
    before = fitted.posterior.evaluations.copy()
    assert fitted.corrected(10, np.random.default_rng(1)).shape == (10, 42)
    spent = fitted.posterior.evaluations.densities - before.densities
    assert 10 * pools.POOL <= spent < pools.ANCHORS * pools.ANCHOR_POOL


def test_the_separator_moves_by_what_can_be_told(rng):
    """Weights exp(0.3 s) move standard normal s by 0.3, and leave its spread."""
    found = object.__new__(pools._Anchors)
    draws = [rng.standard_normal((8, 3)) for _ in range(400)]
    found._set_separator([np.exp(0.3 * d[:, 0]) for d in draws], draws)
    assert found.can_serve
    np.testing.assert_allclose(found._mean, [0.3, 0, 0], atol=0.04)
    np.testing.assert_allclose(found._spread, 1, atol=0.04)
    # Weights that are even, but skew the separator.
    skewing = [np.exp(np.clip(0.1 * (d[:, 0] ** 3 - 3 * d[:, 0]), -1, 1)) for d in draws]
    assert pools._are_even(skewing)
    found._set_separator(skewing, draws)
    assert not found.can_serve
    found._set_separator([np.exp(2 * d[:, 0]) for d in draws], draws)
    assert not found.can_serve


@pytest.mark.parametrize(("shares", "renewed"), [((0.9,), 0), ((0.1, 0.2, 0.9), 2), ((0.1,), 4)])
def test_draws_of_the_separator_of_which_one_decides_are_taken_anew(
    with_level, monkeypatch, shares, renewed
):
    marginal, options = with_level.marginal, FieldOptions()
    made, left = [], list(shares)
    make = NormalNoise.make

    def noted(groups, n, rng):
        made.append(n)
        return make(groups, n, rng)

    def effective(weights):
        share = left.pop(0) if len(left) > 1 else left[0]
        return share * len(weights.shared)

    monkeypatch.setattr(marginal, "noise", marginal.noise)
    monkeypatch.setattr(marginal, "n_outer", marginal.n_outer)
    monkeypatch.setattr(NormalNoise, "make", staticmethod(noted))
    monkeypatch.setattr(GroupWeights, "outer_ess", property(effective))
    hyper, progress = with_level.values.hyper[:4], Progress(Evaluations())
    rng = np.random.default_rng(1)
    marginal.choose_draws(hyper, with_level.mode.gaussian, options, rng, progress)
    assert len(made) == 1 + renewed
    assert set(made) == {len(marginal.noise)}


def test_the_effective_number_of_blocks():
    def weights(shared):
        return GroupWeights(None, np.array(shared), np.zeros((len(shared), 2, 1)))

    assert weights([3.0, 3.0, 3.0, 3.0]).outer_ess == pytest.approx(4)
    assert weights([0.0, -50.0, -60.0, -np.inf]).outer_ess == pytest.approx(1)
