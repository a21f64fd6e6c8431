"""A zoo of PyMC models: every transform and every kind of term that a density must get right.

Each entry of `ZOO` is a function without arguments that builds a small model. They are chosen for
the graphs that they make, not for the statistics.
"""

import warnings
from collections.abc import Callable

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
from pymc.distributions import transforms as tr

type Build = Callable[[], pm.Model]

ZOO: dict[str, Build] = {}

SCHOOL_Y = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SCHOOL_SIGMA = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
SERIES = np.sin(np.arange(12.0)) + np.linspace(0.0, 1.0, 12)


def zoo(build: Build) -> Build:
    """List a model in `ZOO` under its name."""
    ZOO[build.__name__] = build
    return build


# -------------------------------------------------------------------------- supports and transforms


@zoo
def scalars() -> pm.Model:
    with pm.Model() as model:
        a = pm.Normal("a", 1, 2)
        b = pm.HalfNormal("b", 1.5)
        c = pm.Beta("c", 2, 3)
        pm.StudentT("d", nu=4, mu=a, sigma=b)
        pm.Gamma("e", 2 + c, 1)
        pm.Pareto("f", alpha=2, m=1.5)
    return model


@zoo
def arrays_and_dims() -> pm.Model:
    with pm.Model(coords={"row": range(3), "column": range(2)}) as model:
        mu = pm.Normal("mu", 0, 1, dims="column")
        sigma = pm.Exponential("sigma", 1, dims="row")
        pm.Normal("x", mu, sigma[:, None], dims=("row", "column"))
        pm.Normal("one", 0, 1, shape=1)
    return model


@zoo
def eight_schools() -> pm.Model:
    with pm.Model(coords={"school": list("ABCDEFGH")}) as model:
        mu = pm.Normal("mu", 0, 5)
        tau = pm.HalfCauchy("tau", 5)
        raw = pm.Normal("raw", 0, 1, dims="school")
        theta = pm.Deterministic("theta", mu + tau * raw, dims="school")
        pm.Normal("y", theta, SCHOOL_SIGMA, observed=SCHOOL_Y, dims="school")
    return model


@zoo
def intervals() -> pm.Model:
    with pm.Model() as model:
        a = pm.Uniform("a", -1, 2)
        pm.Uniform("b", 0, 3 - a)
        pm.Normal("c", 0, 1, shape=2, transform=tr.Interval(-3, None))
        pm.Triangular("d", lower=-1, c=0, upper=1)
    return model


@zoo
def small_integers() -> pm.Model:
    """Parameters whose powers overflow the small integers that PyTensor stores them in."""
    with pm.Model() as model:
        pm.HalfStudentT("sigma", nu=3, sigma=10)
        pm.StudentT("x", nu=3, mu=8, sigma=10)
    return model


@zoo
def simplex() -> pm.Model:
    with pm.Model() as model:
        p = pm.Dirichlet("p", np.array([1.0, 2.0, 3.0]))
        pm.Dirichlet("q", np.ones((2, 4)))
        pm.Multinomial("y", n=10, p=p, observed=[2, 3, 5])
    return model


@zoo
def ordered() -> pm.Model:
    with pm.Model() as model:
        cut = pm.Normal("cut", [-1.0, 0.0, 1.5], 1, transform=tr.ordered, initval=[-1.0, 0.0, 1.5])
        x = pm.Normal("x", 0, 1)
        pm.OrderedLogistic("y", eta=x, cutpoints=cut, observed=[0, 1, 3])
    return model


@zoo
def log_then_ordered() -> pm.Model:
    chain = tr.Chain([tr.log, tr.ordered])
    with pm.Model() as model:
        pm.Normal("x", [3.0, 10.0, 11.0], 2, transform=chain, initval=[3.0, 10.0, 11.0])
    return model


@zoo
def circular() -> pm.Model:
    with pm.Model() as model:
        mu = pm.VonMises("mu", 0, 2)
        pm.VonMises("x", mu, 3, shape=2)
    return model


@zoo
def zero_sum() -> pm.Model:
    with pm.Model(coords={"a": range(3), "b": range(4)}) as model:
        sigma = pm.HalfNormal("sigma")
        effect = pm.ZeroSumNormal("effect", sigma=sigma, dims="b")
        pm.ZeroSumNormal("both", sigma=1, dims=("a", "b"), n_zerosum_axes=2)
        pm.Normal("y", effect, 1, observed=[1.0, 2.0, -1.0, 0.5])
    return model


@zoo
def lkj_cholesky() -> pm.Model:
    with pm.Model() as model:
        chol, _, _ = pm.LKJCholeskyCov(
            "chol", n=3, eta=2, sd_dist=pm.Exponential.dist(1.0, shape=3)
        )
        mu = pm.Normal("mu", 0, 1, shape=3)
        pm.MvNormal("y", mu, chol=chol, observed=np.eye(3) * 2)
    return model


@zoo
def lkj_correlation() -> pm.Model:
    with pm.Model() as model:
        factor = pm.LKJCorr("factor", n=3, eta=2)
        pm.MvNormal("y", np.zeros(3), chol=factor, observed=np.eye(3))
    return model


@zoo
def without_transform() -> pm.Model:
    """Half of the draws of ``sigma`` lie outside of its support."""
    with pm.Model() as model:
        sigma = pm.HalfNormal("sigma", 1, default_transform=None, initval=0.5)
        pm.Normal("y", 0, sigma, observed=[0.3, -0.8])
    return model


@zoo
def flat() -> pm.Model:
    with pm.Model() as model:
        mu = pm.Flat("mu", shape=2)
        sigma = pm.HalfFlat("sigma")
        pm.Normal("y", mu[0] + mu[1] * np.arange(4), sigma, observed=[1.0, 2.0, 2.5, 4.0])
    return model


# ----------------------------------------------------------------------------------- kinds of terms


@zoo
def custom_dist() -> pm.Model:
    with pm.Model() as model:
        pm.CustomDist("z", logp=lambda z: -((z[..., 0] ** 2 - z[..., 1]) ** 2), signature="->(2)")
        scale = pm.HalfNormal("scale")
        pm.CustomDist("w", scale, logp=lambda w, s: -pt.abs(w) / s - pt.log(2 * s), shape=3)
    return model


@zoo
def potential_and_deterministic() -> pm.Model:
    with pm.Model() as model:
        x = pm.Normal("x", 0, 1, shape=3)
        s = pm.Deterministic("s", x.sum())
        pm.Potential("soft", -0.5 * (s / 0.01) ** 2)
        pm.Potential("vector", -pt.exp(x))
    return model


@zoo
def only_a_potential_sees_the_data() -> pm.Model:
    with pm.Model() as model:
        x = pm.Normal("x", 0, 1)
        pm.Potential("constant", pt.constant(-3.0))
        pm.Potential("data", pm.logp(pm.Normal.dist(x, 1), np.array([1.0, 2.0])).sum())
    return model


@zoo
def normal_mixture() -> pm.Model:
    y = np.concatenate([np.linspace(-3, -1, 6), np.linspace(1, 3, 4)])
    with pm.Model() as model:
        mu = pm.Normal("mu", 0, 2, shape=2, transform=tr.ordered, initval=[-1.0, 1.0])
        sigma = pm.HalfNormal("sigma", 2, shape=2)
        theta = pm.Beta("theta", 5, 5)
        pm.NormalMixture("y", pt.stack([theta, 1 - theta]), mu, sigma, observed=y)
    return model


@zoo
def mixture_of_kinds() -> pm.Model:
    with pm.Model() as model:
        w = pm.Dirichlet("w", np.ones(2))
        mu = pm.Normal("mu", 0, 1)
        parts = [pm.Normal.dist(mu, 1), pm.StudentT.dist(nu=3, mu=mu, sigma=2)]
        pm.Mixture("free", w, parts)
        pm.Mixture("y", w, parts, observed=[0.1, 2.0, -1.0])
        pm.ZeroInflatedPoisson("n", psi=0.7, mu=pt.exp(mu), observed=[0, 0, 3, 1])
    return model


@zoo
def censored_and_truncated() -> pm.Model:
    with pm.Model() as model:
        mu = pm.Normal("mu", 0, 1)
        sigma = pm.HalfNormal("sigma", 1)
        base = pm.Normal.dist(mu, sigma)
        pm.Censored("c", base, lower=-1, upper=1, observed=[-1.0, 0.2, 1.0])
        pm.Truncated("t", base, lower=0, observed=[0.5, 1.0])
        pm.Truncated("free", pm.Normal.dist(mu, 1), lower=-1, upper=2)
    return model


@zoo
def total_size() -> pm.Model:
    with pm.Model() as model:
        mu = pm.Normal("mu", 0, 1)
        pm.Normal("y", mu, 1, observed=[1.0, 2.0, 4.0], total_size=30)
    return model


@zoo
def missing_values() -> pm.Model:
    y = np.ma.masked_invalid([1.0, np.nan, 2.0, np.nan])
    with pm.Model() as model:
        mu = pm.Normal("mu", 0, 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", pm.exceptions.ImputationWarning)
            pm.Normal("y", mu, 1, observed=y)
    return model


@zoo
def counts_and_categories() -> pm.Model:
    with pm.Model() as model:
        b = pm.Normal("b", 0, 1, shape=2)
        pm.Poisson("n", pt.exp(b[0] + b[1] * np.arange(4)), observed=[1, 0, 2, 5])
        pm.Bernoulli("k", logit_p=b[1] * np.array([1.0, -1.0]), observed=[1, 0])
        pm.NegativeBinomial("m", mu=pt.exp(b[0]), alpha=2, observed=[3, 1])
        pm.Categorical("c", p=pm.math.softmax(pt.stack([b[0], b[1], 0.0])), observed=[0, 2, 1])
    return model


@zoo
def indexing() -> pm.Model:
    group = np.array([0, 1, 1, 2, 0])
    with pm.Model() as model:
        a = pm.Normal("a", 0, 1, shape=3)
        sd = pm.HalfNormal("sd", shape=3)
        pm.Normal("y", a[group] * np.arange(5.0), sd[group], observed=np.arange(5.0))
        pm.Potential("picked", -(a[np.array([True, False, True])] ** 2).sum() - a[::-1][0])
    return model


@zoo
def mv_normal() -> pm.Model:
    low = np.array([[1.0, 0.0], [0.5, 0.8]])
    with pm.Model() as model:
        x = pm.MvNormal("x", np.zeros(2), chol=low)
        scale = pm.HalfNormal("scale")
        pm.MvNormal("y", x, cov=scale * low @ low.T, observed=np.ones((3, 2)))
        pm.MvStudentT("t", nu=5, mu=x, scale=np.eye(2), observed=np.ones(2))
    return model


@zoo
def random_walks() -> pm.Model:
    with pm.Model() as model:
        sigma = pm.HalfNormal("sigma")
        rho = pm.Normal("rho", 0, 0.5, shape=2)
        walk = pm.GaussianRandomWalk("walk", sigma=sigma, init_dist=pm.Normal.dist(0, 1), steps=11)
        pm.AR("ar", rho, sigma=sigma, init_dist=pm.Normal.dist(0, 1, shape=2), steps=5)
        pm.Normal("y", walk, 0.5, observed=SERIES)
    return model


@zoo
def gp_marginal() -> pm.Model:
    x = np.linspace(0, 1, 6)[:, None]
    with pm.Model() as model:
        scale = pm.Gamma("scale", 2, 2)
        eta = pm.HalfNormal("eta", 1)
        gp = pm.gp.Marginal(cov_func=eta**2 * pm.gp.cov.Matern52(1, ls=scale))
        noise = pm.HalfNormal("noise", 1)
        gp.marginal_likelihood("y", X=x, y=np.sin(x[:, 0]), sigma=noise)
    return model


@zoo
def gp_latent() -> pm.Model:
    x = np.linspace(0, 1, 5)[:, None]
    with pm.Model() as model:
        scale = pm.Gamma("scale", 2, 2)
        f = pm.gp.Latent(cov_func=pm.gp.cov.ExpQuad(1, ls=scale)).prior("f", X=x)
        pm.Normal("y", f, 0.3, observed=np.sin(x[:, 0]))
    return model


@zoo
def with_data() -> pm.Model:
    with pm.Model() as model:
        x = pm.Data("x", np.linspace(-1, 1, 7))
        y = pm.Data("y", np.linspace(0, 3, 7))
        b = pm.Normal("b", 0, 1, shape=2)
        sigma = pm.HalfNormal("sigma")
        pm.Normal("obs", b[0] + b[1] * x, sigma, observed=y)
    return model


# ------------------------------------------------------------------ models with a loop of their own


@zoo
def garch() -> pm.Model:
    """GARCH(1, 1): the variance follows a recursion over time."""
    y = 0.1 * SERIES
    with pm.Model() as model:
        mu = pm.Normal("mu", 0, 1)
        level = pm.HalfNormal("level", 0.1)
        alpha = pm.Beta("alpha", 1, 2)
        beta = pm.Uniform("beta", 0, 1 - alpha)
        first = pt.constant(0.01)
        variance = pytensor.scan(
            lambda shock, previous, beta: shock + beta * previous,
            sequences=[level + alpha * (pt.as_tensor(y[:-1]) - mu) ** 2],
            outputs_info=[first],
            non_sequences=[beta],
            return_updates=False,
        )
        sigma = pt.sqrt(pt.concatenate([first[None], variance]))
        pm.Normal("y", mu, sigma, observed=y)
    return model


@zoo
def hidden_markov() -> pm.Model:
    """Two hidden states, summed out by the forward algorithm."""

    def forward(emission, transition):
        states = pytensor.scan(
            lambda e, state, move: e + pt.logsumexp(state[:, None] + move, axis=0),
            sequences=[emission[1:]],
            outputs_info=[emission[0]],
            non_sequences=[transition],
            return_updates=False,
        )
        return pt.logsumexp(states[-1])

    def logp(y, mu, stay, leave):
        emission = pm.logp(pm.Normal.dist(mu, 1.0), y[:, None])
        return forward(emission, pt.log(pt.stack([stay, leave])))

    with pm.Model() as model:
        stay = pm.Dirichlet("stay", np.ones(2))
        leave = pm.Dirichlet("leave", np.ones(2))
        mu = pm.Normal("mu", [0.0, 2.0], 1, transform=tr.ordered, initval=[0.0, 2.0])
        pm.CustomDist(
            "y", mu, stay, leave, logp=logp, signature="(k),(k),(k)->(12)", observed=2 * SERIES
        )
    return model
