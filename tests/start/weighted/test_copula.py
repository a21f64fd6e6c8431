"""Copulas in closed form, from weighted draws."""

import numpy as np
import pytest
from scipy import stats

from pymc_flows.flows import build_chain
from pymc_flows.flows.evaluate import forward_and_log_det
from pymc_flows.flows.frame import Frame
from pymc_flows.formula import Formula
from pymc_flows.start.weighted.copula import DRAWS, STRAIGHT, WIDER, copulas
from pymc_flows.start.weighted.moments import Weighted

SHAPES = (1.5, 4.0)
LOWER = np.array([[1.0, 0.0], [0.8, 0.6]])


def scores(points):
    """Normal scores of the correlated target, whose marginals are those of log gamma variables."""
    return np.stack(
        [stats.norm.ppf(stats.loggamma(c).cdf(x)) for c, x in zip(SHAPES, points.T, strict=True)]
    )


def log_density(points):
    with np.errstate(all="ignore"):
        z = scores(points).T
        noise = np.linalg.solve(LOWER, z.T).T
        log_p = stats.norm.logpdf(noise).sum(axis=1) - np.log(np.diagonal(LOWER)).sum()
        for c, x, u in zip(SHAPES, points.T, z.T, strict=True):
            log_p += stats.loggamma(c).logpdf(x) - stats.norm.logpdf(u)
    return np.where(np.isfinite(log_p), log_p, -np.inf)


def gap(copula, rng, n=4_000):
    """KL(q ‖ p), in nats; the target is normalised."""
    dim = len(copula.frame.center)
    chain = build_chain(Formula(copula.formula), dim)
    params = [{k: v[None] for k, v in copula.params[i].items()} for i in range(len(chain.blocks))]
    z0 = rng.standard_normal((n, dim))
    z, log_det = forward_and_log_det(chain, z0, params)
    log_q = stats.norm.logpdf(z0).sum(axis=1) - log_det - copula.frame.log_det
    return (log_q - log_density(copula.frame.forward(z))).mean()


@pytest.fixture(scope="module")
def draws():
    rng = np.random.default_rng(3)
    noise = rng.standard_normal((50_000, 2)) @ LOWER.T
    exact = np.stack(
        [stats.loggamma(c).ppf(stats.norm.cdf(z)) for c, z in zip(SHAPES, noise.T, strict=True)]
    )
    frame = Frame(exact.mean(axis=1), np.linalg.cholesky(np.cov(exact)))
    return Weighted.draws(log_density, frame.widened(WIDER), DRAWS, rng)


def test_a_copula_finds_marginals_and_correlations(draws, rng):
    _, copula = copulas(draws)
    assert gap(copula, rng) < 0.01
    lower = copula.params[0]["lower"]
    assert lower[0] == pytest.approx(0.8 / 0.6, abs=0.1)  # of rows with a diagonal of 1


def test_splines_in_front_of_the_matrix_are_better_than_none(draws, rng):
    splines, _ = copulas(draws)
    flat = {0: {"bins": np.zeros_like(splines.params[0]["bins"])}}
    gaussian = type(splines)(splines.formula, splines.frame, flat)
    assert gap(splines, rng) < gap(gaussian, rng) / 2


def test_a_gaussian_stays_one(rng):
    target = stats.multivariate_normal([1.0, -2.0], LOWER @ LOWER.T)
    frame = Frame(np.array([1.0, -2.0]), LOWER)
    found = Weighted.draws(target.logpdf, frame.widened(WIDER), DRAWS, rng)
    for copula in copulas(found):
        chain = build_chain(Formula(copula.formula), 2)
        params = [{k: v[None] for k, v in p.items()} for _, p in sorted(copula.params.items())]
        z0 = rng.standard_normal((2_000, 2))
        z, log_det = forward_and_log_det(chain, z0, params)
        points = copula.frame.forward(z)
        log_q = stats.norm.logpdf(z0).sum(axis=1) - log_det - copula.frame.log_det
        assert (log_q - target.logpdf(points)).mean() < 0.01
        far, _ = forward_and_log_det(chain, np.full((1, 2), STRAIGHT), params)
        assert np.isfinite(far).all()


def test_one_coordinate_has_no_correlations_and_many_have_too_few_draws(rng):
    frame = Frame(np.zeros(1), np.ones(1))
    one = Weighted.draws(lambda z: stats.norm.logpdf(z[:, 0]), frame, 4_000, rng)
    assert [c.formula.split("-")[0].split("(")[0] for c in copulas(one)] == ["spline"]
    few = Weighted.draws(lambda z: stats.norm.logpdf(z[:, 0]), frame, 400, rng)
    assert list(copulas(few)) == []
