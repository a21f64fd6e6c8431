"""Small models of every odd kind: their log densities are PyMC's own, and draws come in their dims.

Nothing is compiled: PyMC's own graphs run on NumPy nearly as PyMC writes them.
"""

import numpy as np
import pandas as pd
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from numpy.testing import assert_allclose
from pymc.distributions import transforms as tr

import pymc_flows as pmf
from as_written import AS_WRITTEN
from pymc_flows.errors import ModelError
from pymc_flows.model.log_density import LogDensity
from pymc_flows.model.logp import ModelDensity

Y = np.array([0.3, -1.2, 0.8, 2.0, -0.4])
COUNTS = np.array([0, 3, 1, 2, 5])

CASES = {}


def case(build):
    """List a function that fills a model under its name."""
    CASES[build.__name__] = build
    return build


@case
def an_empty_dim():
    pm.Normal("none", shape=(0, 2))
    pm.Normal("y", pm.Normal("mu"), 1, observed=np.zeros(0))


@case
def scalars_only():
    pm.Normal("y", pm.Normal("mu"), pm.HalfNormal("sigma"), observed=1.5)


@case
def one_observation():
    pm.Poisson("y", pm.Gamma("rate", 2, 1, shape=1), observed=[3])


@case
def a_single_category():
    pm.Categorical("y", logit_p=pm.Normal("a", shape=1), observed=np.zeros(4, int))


@case
def separated_classes():
    eta = pm.Normal("a", 0, 10) + pm.Normal("b", 0, 10) * np.array([-2.0, -1.0, 1.0, 2.0])
    pm.Bernoulli("y", logit_p=eta, observed=[0, 0, 1, 1])


@case
def a_constant_predictor():
    pm.Normal("y", pm.Normal("a") + pm.Normal("b") * np.ones(5), 1, observed=Y)


@case
def unused_data():
    pm.Data("nothing", Y)
    pm.Normal("y", pm.Normal("mu"), 1, observed=Y)


@case
def tiny_and_huge_scales():
    small, large = pm.Normal("small", 0, 1e-8), pm.Normal("large", 0, 1e8)
    pm.Normal("y", small * 1e8 + large * 1e-8, 1, observed=Y)


@case
def integers_and_booleans():
    x, is_on = pm.Data("x", np.arange(5)), pm.Data("on", np.arange(5) > 2)
    eta = pm.Normal("a") * x + pt.switch(is_on, pm.Normal("b"), 0.0)
    pm.Bernoulli("y", logit_p=eta, observed=np.array([True, False, True, True, False]))


@case
def data_of_each_dtype():
    total = sum(
        pm.Data(dtype, np.arange(5).astype(dtype)).astype("float64")
        for dtype in ("int8", "int32", "int64", "float32", "float64", "bool")
    )
    pm.Normal("y", pm.Normal("a") * total, 1, observed=Y)


@case
def a_nested_custom_distribution():
    def inner(mu, size):
        return pm.Normal.dist(mu, 1, size=size) + 1

    def outer(mu, size):
        return pt.exp(pm.CustomDist.dist(mu, dist=inner, size=size))

    pm.CustomDist("y", pm.Normal("mu"), dist=outer, observed=np.exp(Y))


@case
def sums_of_zero_over_two_axes():
    pm.ZeroSumNormal("both", shape=(2, 3, 4), n_zerosum_axes=2)


@case
def correlations_of_two_and_ten_dimensions():
    pm.LKJCorr("two", n=2, eta=2)
    sd = pm.HalfNormal.dist(shape=10)
    pm.LKJCholeskyCov("ten", n=10, eta=1, sd_dist=sd, compute_corr=False)


@case
def categories_that_nobody_chose():
    cuts = pm.Normal("cuts", np.arange(3.0), 1, transform=tr.ordered)
    pm.OrderedLogistic("y", pm.Normal("eta"), cuts, observed=[0, 0, 3], compute_p=False)


@case
def truncated_below_above_and_on_both_sides():
    mu, sigma = pm.Normal("mu"), pm.HalfNormal("sigma")
    normal = pm.Normal.dist(mu, sigma)
    pm.Truncated("below", normal, lower=-2, observed=Y)
    pm.Truncated("above", normal, upper=3, observed=Y)
    pm.TruncatedNormal("both", mu, sigma, lower=-2, upper=3, observed=Y)


@case
def censored_below_above_and_on_both_sides():
    normal = pm.Normal.dist(pm.Normal("mu"), pm.HalfNormal("sigma"))
    pm.Censored("below", normal, lower=-1.2, upper=None, observed=Y)
    pm.Censored("above", normal, lower=None, upper=2, observed=Y)
    pm.Censored("both", normal, lower=-1.2, upper=2, observed=Y)


@case
def truncated_and_censored_distributions_of_other_kinds():
    rate = pm.Gamma("rate", 2, 1)
    pm.Truncated("counts", pm.Poisson.dist(rate), lower=1, observed=COUNTS + 1)
    pm.Truncated("tail", pm.Exponential.dist(rate), upper=9, observed=COUNTS + 0.5)
    pm.Censored("late", pm.Weibull.dist(2, rate), lower=None, upper=3, observed=[0.5, 3, 3])
    pm.Censored("rare", pm.Poisson.dist(rate), lower=1, upper=4, observed=[1, 2, 4])
    pm.Censored("each", pm.StudentT.dist(4, rate), lower=[0, -1], upper=[1, 2], observed=[1, 0.5])


@case
def a_mixture_of_mixtures():
    inner = pm.NormalMixture.dist([0.3, 0.7], pm.Normal("mu", shape=2), 1)
    pm.Mixture("y", [0.5, 0.5], [inner, pm.StudentT.dist(nu=4, mu=0, sigma=2)], observed=Y)


@case
def an_autoregression():
    pm.AR("y", pm.Normal("rho", shape=2), 1, init_dist=pm.Normal.dist(shape=1), observed=Y)


@case
def a_path_of_a_stochastic_differential_equation():
    theta = pm.Normal("theta")
    start = pm.Normal.dist(shape=1)

    def drift_and_noise(x, theta):
        return theta * x, 0.5

    path = {"steps": 5, "init_dist": start, "initval": np.zeros((1, 6))}
    pm.EulerMaruyama("path", 0.1, drift_and_noise, [theta], **path)


@case
def a_variance_that_follows_a_recursion():
    share = pm.Dirichlet("share", np.ones(3))
    pm.GARCH11("y", pm.HalfNormal("omega"), share[0], share[1], initial_vol=1.0, observed=Y)


@case
def values_that_follow_from_draws():
    x = pm.Dirichlet("x", np.ones(3), shape=(2, 3))
    pm.Deterministic("logit", pt.log(x) - pt.log1p(-x))
    pm.Deterministic("count", (x > 0.3).sum(axis=-1))
    pm.Deterministic("largest", x.max())


@case
def a_masked_array():
    pm.Normal("y", pm.Normal("mu"), 1, observed=np.ma.masked_greater(Y, 0.5))


@case
def all_data_missing():
    pm.Normal("y", pm.Normal("mu"), 1, observed=np.ma.masked_all(3))


def _model(name):
    with pm.Model() as model:
        CASES[name]()
    return model


@pytest.mark.filterwarnings("ignore:Data in .* contains missing values")
@pytest.mark.parametrize("name", CASES)
def test_the_log_density_is_that_of_pymc(name):
    model = _model(name)
    density = ModelDensity(model)
    noise = np.random.default_rng(1).normal(size=(3, density.dim))
    points = density.start() + 0.3 * noise
    inputs = model.value_vars
    graph = [model.logp(), *pytensor.grad(model.logp(), inputs)]
    reference = pytensor.function(
        model.value_vars, graph, mode=AS_WRITTEN, on_unused_input="ignore"
    )
    value, gradient = LogDensity(density).value_and_grad(points)
    for k, point in enumerate(points):
        parts = [point[s.slice].reshape(s.shape) for s in density.slots]
        expected, *slopes = reference(*parts)
        assert_allclose(value[k], expected, rtol=1e-9)
        flat = np.concatenate([np.ravel(x) for x in slopes])
        assert_allclose(gradient[k], flat, rtol=1e-7, atol=1e-8)


@pytest.mark.filterwarnings("ignore:Data in .* contains missing values")
@pytest.mark.parametrize("name", CASES)
def test_draws_are_what_pymc_makes_of_them(name):
    """Free variables and what follows from them, at the unconstrained values of the same draw."""
    model = _model(name)
    approx = pmf.NormalizingFlow("scale-loc", model=model, jitter=0.3, random_seed=1)
    draws = approx.sample(2, include_transformed=True, random_seed=2).posterior.isel(chain=0)
    follow = [v for v in model.unobserved_value_vars if v not in model.value_vars]
    values = pytensor.function(model.value_vars, follow, mode=AS_WRITTEN, on_unused_input="ignore")
    for k in range(2):
        given = [np.asarray(draws[v.name][k], dtype=v.dtype) for v in model.value_vars]
        for variable, expected in zip(follow, values(*given), strict=True):
            assert_allclose(draws[variable.name][k], expected, rtol=1e-9, atol=1e-12)
    assert {v.name for v in (*follow, *model.value_vars)} == set(draws)


# --------------------------------------------------------------------------- around the density


def regression():
    with pm.Model(coords={"row": range(5)}) as model:
        x = pm.Data("x", np.arange(5.0), dims="row")
        pm.Normal("y", pm.Normal("a") + pm.Normal("b") * x, 1, observed=Y, dims="row")
    return model


def test_interventions_and_copies_have_the_density_of_what_they_are():
    point = np.array([[0.4]])
    fixed = pm.do(regression(), {"a": 2.0})
    exact = -0.5 * (0.4**2 + ((Y - 2 - 0.4 * np.arange(5)) ** 2).sum()) - 3 * np.log(2 * np.pi)
    assert_allclose(LogDensity(ModelDensity(fixed)).value(point), [exact])
    seen = pm.observe(regression(), {"a": 2.0})
    prior = -0.5 * 2.0**2 - 0.5 * np.log(2 * np.pi)
    assert_allclose(LogDensity(ModelDensity(seen)).value(point), [exact + prior])
    values = [
        LogDensity(density).value(density.start({"a": 0.1, "b": 0.4})[None])
        for density in map(ModelDensity, (regression(), regression().copy()))
    ]
    assert_allclose(*values)


def test_submodels_keep_their_prefixes():
    with pm.Model() as model:
        for name in ("first", "second"):
            with pm.Model(name=name):
                pm.Normal("y", pm.Normal("mu"), 1, observed=Y)
    approx = pmf.NormalizingFlow("scale-loc", model=model, random_seed=1)
    assert set(approx.sample(3).posterior) == {"first::mu", "second::mu"}


def test_a_variable_cannot_be_called_like_a_dim():
    """PyMC refuses it: what draws of the other would be labelled by. So it does a name twice."""
    with pm.Model(coords={"a": list("xyz")}) as model:
        pm.Normal("b", dims="a")
        with pytest.raises(ValueError, match="conflicts with an existing"):
            pm.Normal("a")
        with pytest.raises(ValueError, match="conflicts with an existing"):
            model.add_coord("b", [1, 2])
        with pytest.raises(ValueError, match="already exists"):
            pm.Normal("b")


@pytest.mark.parametrize("name", ["chain", "draw"])
def test_a_variable_cannot_be_called_like_what_counts_draws(name):
    """PyMC would return draws without it."""
    with pm.Model() as model:
        pm.Deterministic(name, 2 * pm.Normal("x"))
    with pytest.raises(ModelError, match=f"'{name}' is the name of a dimension of draws"):
        pmf.NormalizingFlow("loc", model=model)


def test_labels_of_several_levels_are_refused_before_a_fit():
    """PyMC says so when it has sampled."""
    levels = pd.MultiIndex.from_product([["a", "b"], [1, 2]])
    with pm.Model(coords={"pair": levels, "other": [1, 2]}) as model:
        pm.Normal("x", dims="pair")
    with pytest.raises(ModelError, match="the labels of 'pair' are a MultiIndex"):
        pmf.NormalizingFlow("loc", model=model)
    with pm.Model(coords={"pair": levels}) as unused:
        pm.Normal("x")
    assert set(pmf.NormalizingFlow("loc", model=unused).sample(2).posterior) == {"x"}


@pytest.mark.filterwarnings("ignore:PyTensor could not link to a BLAS")
def test_a_model_without_an_initial_point_is_refused():
    """PyMC has none for a matrix of one correlation."""
    with pm.Model() as model:
        pm.LKJCorr("one", n=1, eta=1)
    with pytest.raises(ModelError, match="PyMC finds no initial point of the model: IndexError"):
        pmf.NormalizingFlow("loc", model=model)


def test_coords_may_change_between_fit_and_draws():
    model = regression()
    approx = pmf.NormalizingFlow("scale-loc", model=model, random_seed=1)
    with model:
        pm.set_data({"x": np.arange(5.0) + 1}, coords={"row": list("abcde")})
        draws = approx.sample(3, random_seed=2)
    assert list(draws.observed_data["y"].coords["row"].to_numpy()) == list("abcde")


@pytest.mark.filterwarnings("ignore:RandomVariable Ops will stop hiding the rng")
@pytest.mark.filterwarnings("ignore:Calling a RandomVariable without an explicit rng")
def test_a_simulator_has_no_gradient():
    with pm.Model() as model:
        mu = pm.Normal("mu")
        pm.Simulator("y", lambda rng, mu, size: rng.normal(mu, size=5), mu, observed=Y)
    with pytest.raises(ModelError, match=r"no gradient|cannot be evaluated|random"):
        pmf.report(pmf.NormalizingFlow("loc", model=model, random_seed=1), 100)
