"""Many draws of a field that is not Gaussian, with noise that was weighed at a few values."""

import numpy as np
import pytest

from posteriors import Counts
from pymc_flows.field import FieldOptions, fit_field, pools

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


def test_draws_by_anchors_have_the_exact_moments(target, fitted, monkeypatch):
    used = []
    anchors = pools._Anchors

    def noted(*args):
        used.append(anchors(*args))
        return used[-1]

    monkeypatch.setattr(pools, "_Anchors", noted)
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
    found._set_separator([np.exp(2 * d[:, 0]) for d in draws], draws)
    assert not found.can_serve
