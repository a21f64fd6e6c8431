"""Models of the kinds that users have, on made-up data; none was used to choose a default.

Each function returns a model. Data are in the units that they would come in, with fixed seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pymc as pm
import pytensor.tensor as pt


def _pooled(*, centred: bool) -> pm.Model:
    """Pupils in 12 schools of very different sizes: a score on hours of practice."""
    rng = np.random.default_rng(101)
    sizes = rng.integers(2, 30, 12)
    school = np.repeat(np.arange(12), sizes)
    hours = rng.gamma(3.0, 4.0, len(school))
    level = rng.normal(62, 6, 12)
    score = level[school] + 0.8 * hours + rng.normal(0, 9, len(school))
    with pm.Model(coords={"school": np.arange(12)}) as model:
        mean = pm.Normal("mean", 50, 30)
        spread = pm.HalfNormal("spread", 15)
        slope = pm.Normal("slope", 0, 5)
        noise = pm.HalfNormal("noise", 20)
        if centred:
            base = pm.Normal("base", mean, spread, dims="school")
        else:
            offset = pm.Normal("offset", dims="school")
            base = pm.Deterministic("base", mean + spread * offset, dims="school")
        pm.Normal("score", base[school] + slope * hours, noise, observed=score)
    return model


def pooling_centred() -> pm.Model:
    """Partial pooling, group means as they are."""
    return _pooled(centred=True)


def pooling_noncentred() -> pm.Model:
    """Partial pooling, group means as offsets."""
    return _pooled(centred=False)


def logistic_correlated() -> pm.Model:
    """Logistic regression on ten predictors with correlations of 0.9, in unlike units."""
    rng = np.random.default_rng(102)
    n, k = 300, 10
    common = rng.standard_normal((n, 1))
    units = np.geomspace(0.01, 100, k)
    x = (np.sqrt(0.9) * common + np.sqrt(0.1) * rng.standard_normal((n, k))) * units
    weights = np.linspace(-1, 1, k) / units
    y = rng.random(n) < 1 / (1 + np.exp(0.5 - x @ weights))
    with pm.Model(coords={"predictor": np.arange(k)}) as model:
        intercept = pm.Normal("intercept", 0, 5)
        beta = pm.Normal("beta", 0, 5 / units, dims="predictor")
        pm.Bernoulli("y", logit_p=intercept + x @ beta, observed=y.astype(int))
    return model


def negative_binomial_offsets() -> pm.Model:
    """Overdispersed counts with exposures, three predictors and eight sites."""
    rng = np.random.default_rng(103)
    n, sites = 160, 8
    site = rng.integers(0, sites, n)
    exposure = rng.uniform(50, 2_000, n)
    x = np.column_stack([rng.normal(20, 8, n), rng.random(n) < 0.4, rng.exponential(3, n)])
    rate = np.exp(-5 + 0.03 * x[:, 0] + 0.5 * x[:, 1] - 0.1 * x[:, 2])
    mean = exposure * rate * np.exp(rng.normal(0, 0.4, sites))[site]
    y = rng.poisson(mean * rng.gamma(2.0, 0.5, n))
    with pm.Model(coords={"site": np.arange(sites), "predictor": np.arange(3)}) as model:
        intercept = pm.Normal("intercept", 0, 10)
        beta = pm.Normal("beta", 0, 2, dims="predictor")
        spread = pm.HalfNormal("spread", 1)
        effect = pm.Normal("effect", 0, 1, dims="site")
        shape = pm.Exponential("shape", 0.5)
        log_mean = pt.log(exposure) + intercept + x @ beta + spread * effect[site]
        pm.NegativeBinomial("y", mu=pt.exp(log_mean), alpha=shape, observed=y)
    return model


def poisson_unscaled() -> pm.Model:
    """Poisson regression on years since 1960 and their square, uncentred, with flat priors."""
    rng = np.random.default_rng(104)
    year = np.arange(1960.0, 2021.0)
    t = (year - 1990) / 30
    y = rng.poisson(np.exp(3 + 0.4 * t - 0.5 * t**2))
    x = np.column_stack([year - 1960, (year - 1960) ** 2])
    with pm.Model() as model:
        intercept = pm.Flat("intercept")
        beta = pm.Flat("beta", shape=2)
        pm.Poisson("y", pt.exp(intercept + x @ beta), observed=y)
    return model


def horseshoe() -> pm.Model:
    """Regression on 15 predictors, three of which matter, with a regularised horseshoe.

    Piironen & Vehtari, EJS 11(2), 2017.
    """
    rng = np.random.default_rng(105)
    n, k = 80, 15
    x = rng.standard_normal((n, k))
    y = x[:, :3] @ [2.0, -1.0, 0.6] + rng.normal(0, 1, n)
    with pm.Model(coords={"predictor": np.arange(k)}) as model:
        noise = pm.HalfNormal("noise", 2)
        overall = pm.HalfStudentT("overall", 2, 3 / (k - 3) / np.sqrt(n))
        local = pm.HalfStudentT("local", 3, dims="predictor")
        slab = pm.InverseGamma("slab", 4, 8)
        width = local * pt.sqrt(slab / (slab + overall**2 * local**2))
        raw = pm.Normal("raw", dims="predictor")
        beta = pm.Deterministic("beta", raw * overall * width, dims="predictor")
        pm.Normal("y", x @ beta, noise, observed=y)
    return model


def ordered_logit() -> pm.Model:
    """Answers on a scale of six, on four predictors."""
    rng = np.random.default_rng(106)
    n = 250
    x = rng.standard_normal((n, 4)) * [1, 1, 10, 0.1]
    latent = x @ [0.8, -0.4, 0.05, 3.0] + rng.logistic(size=n)
    y = np.digitize(latent, [-2.5, -1, 0, 1.5, 4])
    with pm.Model() as model:
        beta = pm.Normal("beta", 0, [2, 2, 1, 10], shape=4)
        cutpoints = pm.Normal(
            "cutpoints",
            0,
            5,
            shape=5,
            transform=pm.distributions.transforms.ordered,
            initval=np.arange(-2.0, 3.0),
        )
        pm.OrderedLogistic("y", eta=x @ beta, cutpoints=cutpoints, compute_p=False, observed=y)
    return model


def student_regression() -> pm.Model:
    """Regression with outliers; the degrees of freedom are learned."""
    rng = np.random.default_rng(107)
    n = 120
    x = np.column_stack([rng.normal(170, 9, n), rng.normal(40, 12, n)])
    y = -40 + 0.6 * x[:, 0] + 0.2 * x[:, 1] + 4 * rng.standard_t(3, n)
    with pm.Model() as model:
        intercept = pm.Normal("intercept", 0, 200)
        beta = pm.Normal("beta", 0, 10, shape=2)
        scale = pm.HalfCauchy("scale", 10)
        nu = pm.Gamma("nu", 2, 0.1)
        pm.StudentT("y", nu=nu, mu=intercept + x @ beta, sigma=scale, observed=y)
    return model


def lkj_effects() -> pm.Model:
    """Intercepts and slopes of 15 groups, correlated, not centred."""
    rng = np.random.default_rng(108)
    groups, per_group = 15, 8
    group = np.repeat(np.arange(groups), per_group)
    x = rng.uniform(0, 5, len(group))
    cov = [[4.0, -0.9], [-0.9, 0.5]]
    effects = rng.multivariate_normal([10, 1.5], cov, groups)
    y = effects[group, 0] + effects[group, 1] * x + rng.normal(0, 1.5, len(group))
    with pm.Model(coords={"group": np.arange(groups), "effect": ["level", "slope"]}) as model:
        mean = pm.Normal("mean", 0, [20, 5], dims="effect")
        chol, corr, _ = pm.LKJCholeskyCov(
            "chol", n=2, eta=2.0, sd_dist=pm.Exponential.dist(0.5, shape=2)
        )
        pm.Deterministic("correlation", corr[0, 1])
        raw = pm.Normal("raw", dims=("group", "effect"))
        each = pm.Deterministic("each", mean + raw @ chol.T, dims=("group", "effect"))
        noise = pm.HalfNormal("noise", 5)
        pm.Normal("y", each[group, 0] + each[group, 1] * x, noise, observed=y)
    return model


def gp_counts() -> pm.Model:
    """A latent Gaussian process at 14 places, seen through counts."""
    rng = np.random.default_rng(109)
    x = np.sort(rng.uniform(0, 10, 14))
    y = rng.poisson(np.exp(1.5 + np.sin(x)))
    distance = (x[:, None] - x) ** 2
    with pm.Model() as model:
        length = pm.InverseGamma("length", 5, 8)
        height = pm.HalfNormal("height", 1.5)
        level = pm.Normal("level", 0, 2)
        cov = height**2 * pt.exp(-0.5 * distance / length**2) + 1e-6 * pt.eye(14)
        raw = pm.Normal("raw", shape=14)
        log_rate = pm.Deterministic("log_rate", level + pt.linalg.cholesky(cov) @ raw)
        pm.Poisson("y", pt.exp(log_rate), observed=y)
    return model


def change_point() -> pm.Model:
    """A rate of counts that changes at an unknown time, within a season or so."""
    rng = np.random.default_rng(110)
    t = np.arange(80.0)
    y = rng.poisson(np.where(t < 47, 3.0, 1.4))
    with pm.Model() as model:
        when = pm.Uniform("when", 0, 80)
        width = pm.Gamma("width", 3, 1)
        before = pm.Exponential("before", 0.3)
        after = pm.Exponential("after", 0.3)
        share = pm.math.sigmoid((t - when) / width)
        pm.Poisson("y", before + (after - before) * share, observed=y)
    return model


def weibull_censored() -> pm.Model:
    """Lifetimes, a third of which were still going on when the study ended."""
    rng = np.random.default_rng(111)
    n = 90
    treated = rng.random(n) < 0.5
    age = rng.normal(60, 10, n)
    life = 30 * np.exp(0.4 * treated - 0.02 * (age - 60)) * rng.weibull(1.6, n)
    with pm.Model() as model:
        intercept = pm.Normal("intercept", 3, 2)
        beta = pm.Normal("beta", 0, [1, 0.1], shape=2)
        shape = pm.HalfNormal("shape", 3)
        scale = pt.exp(intercept + beta[0] * treated + beta[1] * (age - 60))
        latent = pm.Weibull.dist(shape, scale)
        pm.Censored("life", latent, lower=None, upper=36.0, observed=np.minimum(life, 36.0))
    return model


def simplex_counts() -> pm.Model:
    """Shares of six kinds in twelve samples, rare ones among them."""
    rng = np.random.default_rng(112)
    share = np.array([0.5, 0.25, 0.15, 0.07, 0.02, 0.01])
    total = rng.integers(5, 40, 12)
    y = np.array([rng.multinomial(n, rng.dirichlet(20 * share)) for n in total])
    with pm.Model() as model:
        kinds = pm.Dirichlet("kinds", np.ones(6))
        strength = pm.Gamma("strength", 2, 0.1)
        pm.DirichletMultinomial("y", n=total, a=strength * kinds, observed=y)
    return model


def stochastic_volatility() -> pm.Model:
    """The log volatility of 50 returns, as a stationary autoregression, not centred."""
    rng = np.random.default_rng(113)
    n = 50
    h = np.zeros(n)
    for i in range(1, n):
        h[i] = 0.95 * h[i - 1] + 0.25 * rng.standard_normal()
    y = np.exp(h / 2) * rng.standard_normal(n)
    lags = np.maximum(np.arange(n)[:, None] - np.arange(n), 0)
    lower = np.tri(n)
    with pm.Model() as model:
        level = pm.Normal("level", 0, 2)
        persistence = pm.Beta("persistence", 20, 1.5)
        spread = pm.HalfNormal("spread", 0.5)
        raw = pm.Normal("raw", shape=n)
        first = np.arange(n) == 0
        shocks = raw * pt.switch(first, spread / pt.sqrt(1 - persistence**2), spread)
        path = pm.Deterministic("path", level + (lower * persistence**lags) @ shocks)
        pm.Normal("y", 0, pt.exp(path / 2), observed=y)
    return model


def beta_binomial_groups() -> pm.Model:
    """Success rates of 18 groups around a common one, on the scale of rates."""
    rng = np.random.default_rng(114)
    tries = rng.integers(10, 60, 18)
    y = rng.binomial(tries, rng.beta(6, 18, 18))
    with pm.Model() as model:
        mean = pm.Beta("mean", 1, 1)
        strength = pm.Pareto("strength", 1.5, 1.0)
        rate = pm.Beta("rate", mean * strength, (1 - mean) * strength, shape=18)
        pm.Binomial("y", tries, rate, observed=y)
    return model


def zero_inflated() -> pm.Model:
    """Counts with too many zeros, and both reasons for a zero."""
    rng = np.random.default_rng(115)
    n = 150
    x = rng.standard_normal((n, 2))
    here = rng.random(n) < 1 / (1 + np.exp(-0.5 - x[:, 0]))
    y = here * rng.poisson(np.exp(0.3 + 0.5 * x[:, 1]))
    with pm.Model() as model:
        present = pm.Normal("present", 0, 2, shape=2)
        log_rate = pm.Normal("log_rate", 0, 2, shape=2)
        psi = pm.math.sigmoid(present[0] + present[1] * x[:, 0])
        pm.ZeroInflatedPoisson("y", psi, pt.exp(log_rate[0] + log_rate[1] * x[:, 1]), observed=y)
    return model


MODELS: Mapping[str, Callable[[], pm.Model]] = {
    build.__name__: build
    for build in (
        pooling_centred,
        pooling_noncentred,
        logistic_correlated,
        negative_binomial_offsets,
        poisson_unscaled,
        horseshoe,
        ordered_logit,
        student_regression,
        lkj_effects,
        gp_counts,
        change_point,
        weibull_censored,
        simplex_counts,
        stochastic_volatility,
        beta_binomial_groups,
        zero_inflated,
    )
}
