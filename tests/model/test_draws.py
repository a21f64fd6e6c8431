"""sample(): the DataTree that PyMC returns, computed for all draws at once."""

import warnings

import arviz as az
import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from pymc.backends.base import MultiTrace
from pytensor.tensor.blockwise import Blockwise

import pymc_flows as pmf
from behind import function_behind
from models import ZOO
from pymc_flows.backends.functions import Bound
from pymc_flows.backends.modes import NUMPY
from pymc_flows.errors import ArgumentError, ModelError
from pymc_flows.model import draws

# PyTensor says so when PyMC takes the initial point of an LKJ distribution, where it finds no BLAS.
pytestmark = pytest.mark.filterwarnings("ignore:PyTensor could not link to a BLAS")

Y = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])


def rich_model():
    """Dims, data, every kind of deterministic, and transforms that change shapes."""
    coords = {"school": list("abcdefgh"), "k": ["p", "q", "r"]}
    with pm.Model(coords=coords) as model:
        sigma = pm.Data("sigma", np.linspace(9, 18, 8), dims="school")
        pm.Data("scalar", 3.0)
        mu = pm.Normal("mu", 0, 5)
        tau = pm.HalfCauchy("tau", 5)
        pm.Dirichlet("simplex", np.ones(3), dims="k")
        pm.Dirichlet("simplexes", np.ones((2, 4)))
        pm.LKJCholeskyCov("chol", eta=2, n=3, sd_dist=pm.Exponential.dist(1.0, shape=3))
        raw = pm.Normal("raw", dims="school")
        theta = pm.Deterministic("theta", mu + tau * raw, dims="school")
        pm.Deterministic("of_data", sigma * 2, dims="school")
        pm.Deterministic("count", pt.sum(raw > 0))
        pm.Deterministic("flag", raw > 0, dims="school")
        pm.Deterministic("pooled", pm.math.logsumexp(raw))
        pm.Deterministic("diagonal", pt.diag(raw[:2]))
        pm.Potential("soft", -(mu**2))
        pm.Normal("y", theta, sigma, observed=Y, dims="school")
    return model


@pytest.fixture(scope="module")
def model():
    return rich_model()


@pytest.fixture(scope="module")
def approx(model):
    return pmf.NormalizingFlow("planar*2-scale-loc", model=model, jitter=0.1, random_seed=1)


@pytest.fixture
def no_compiler():
    """PyMC's own functions run on NumPy too."""
    with pytensor.config.change_flags(mode=NUMPY):
        yield


def described(tree):
    """Everything of a DataTree but the numbers that were drawn."""
    return {
        name: {
            "variables": [
                (k, v.dims, v.shape, v.dtype, v.attrs) for k, v in node.data_vars.items()
            ],
            "coords": {k: (v.dims, v.dtype, v.values.tolist()) for k, v in node.coords.items()},
            "attrs": {k: v for k, v in node.attrs.items() if k != "created_at"},
            "has date": "created_at" in node.attrs,
        }
        for name, node in tree.subtree_with_keys
    }


# ------------------------------------------------------------------------------- as PyMC returns it


@pytest.fixture(scope="module")
def mean_field(model):
    return pm.MeanField(model=model)


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"include_transformed": True},
        {"log_prior": True},
        {"coords": {"school": list("ABCDEFGH")}},
        {"dims": {"raw": ["another"]}},
    ],
    ids=str,
)
def test_the_datatree_is_that_of_pymc(no_compiler, mean_field, approx, kwargs):
    expected = mean_field.sample(4, **kwargs)
    found = approx.sample(4, **kwargs)
    assert described(found) == described(expected)
    for group in ("observed_data", "constant_data"):
        assert found[group].equals(expected[group])


def test_options_are_checked_by_pymc(approx):
    with pytest.warns(UserWarning, match="Warmup samples will be stored"):
        approx.sample(2, save_warmup=True)
    with pytest.raises(TypeError, match="there are no chains="):
        approx.sample(2, chains=4)
    with pytest.raises(TypeError, match="nope"):
        approx.sample(2, nope=1)


@pytest.mark.parametrize("name", sorted(ZOO))
def test_draws_are_those_of_the_single_draw_graphs(no_compiler, name):
    model = ZOO[name]()
    approx = pmf.NormalizingFlow("scale-loc", model=model, jitter=0.3, random_seed=2)
    posterior = approx.sample(3, random_seed=4, include_transformed=True).posterior.isel(chain=0)
    single = model.compile_fn(model.unobserved_value_vars, inputs=model.value_vars, mode=NUMPY)
    names = [v.name for v in model.unobserved_value_vars]
    assert list(posterior.data_vars) == names
    for i in range(3):
        point = {v.name: posterior[v.name].values[i] for v in model.value_vars}
        for variable, expected in zip(names, single(point), strict=True):
            assert_allclose(posterior[variable].values[i], expected, rtol=1e-10, err_msg=variable)
            assert posterior[variable].dtype == np.asarray(expected).dtype


def test_a_draw_is_a_point_of_sample_and_log_prob(approx):
    posterior = approx.sample(5, random_seed=3, include_transformed=True).posterior.isel(chain=0)
    points, _ = approx.sample_and_log_prob(5, random_seed=3)
    columns = [posterior[s.name].values.reshape(5, -1) for s in approx.density.slots]
    assert_array_equal(np.concatenate(columns, axis=1), points)


def test_transforms_are_undone(approx):
    posterior = approx.sample(50, random_seed=3).posterior
    assert_allclose(posterior.simplex.sum("k"), 1)
    assert_allclose(posterior.simplexes.sum("simplexes_dim_1"), 1)
    corr = posterior.chol_corr.values
    assert_allclose(np.diagonal(corr, axis1=-2, axis2=-1), 1)
    assert_allclose(corr, np.swapaxes(corr, -1, -2))
    assert (posterior.tau > 0).all()


def test_a_multitrace_on_request(model, approx):
    trace = approx.sample(6, random_seed=3, return_inferencedata=False)
    assert isinstance(trace, MultiTrace)
    posterior = approx.sample(6, random_seed=3, include_transformed=True).posterior
    assert (len(trace), trace.nchains) == (6, 1)
    assert trace.varnames == list(posterior.data_vars)
    for name in trace.varnames:
        assert_array_equal(trace[name], posterior[name][0])
    assert_array_equal(trace[2:5]["theta"], posterior.theta[0, 2:5])
    assert trace.point(1)["mu"] == posterior.mu.values[0, 1]
    with pytest.raises(NotImplementedError, match="complete"):
        trace._straces[0].record({}, in_warmup=False)


@pytest.mark.parametrize("n", [0, -1, 2.5, None])
def test_a_number_of_draws_that_is_none_is_refused(approx, n):
    for as_tree in (True, False):
        with pytest.raises(ArgumentError, match="number of draws"):
            approx.sample(n, return_inferencedata=as_tree)


def test_one_draw_and_the_default(approx):
    assert approx.sample(1).posterior.theta.shape == (1, 1, 8)
    assert approx.sample().posterior.sizes["draw"] == 500


def test_seeds(model, approx):
    first = approx.sample(3, random_seed=5).posterior
    assert first.equals(approx.sample(3, random_seed=5).posterior)
    assert not np.isclose(first.mu, approx.sample(3).posterior.mu).any()
    assert not np.isclose(approx.sample(3).posterior.mu, approx.sample(3).posterior.mu).any()


# ------------------------------------------------------------------------------- all draws at once


def compiled(model):
    """Nodes of the function that computes draws."""
    shapes = {name: np.shape(value) for name, value in model.initial_point().items()}
    (fn,) = [
        cell.cell_contents
        for cell in draws.draws_function(model, shapes).__closure__
        if isinstance(cell.cell_contents, Bound)
    ]
    return function_behind(fn).maker.fgraph.toposort()


# A Cholesky factor and a masked assignment: NumPy has no function for a stack of these.
LOOPING = {"gp_latent", "missing_values"}


@pytest.mark.parametrize("name", [None, *sorted(ZOO.keys() - LOOPING)])
def test_there_is_no_loop_over_draws(model, name):
    looping = {
        node.op
        for node in compiled(ZOO[name]() if name else model)
        if isinstance(node.op, Blockwise)
        and not (node.op.gufunc_spec or getattr(node.op.core_op, "gufunc_spec", None))
    }
    assert looping == set()


def test_a_deterministic_with_a_loop_is_computed_draw_by_draw(no_compiler, caplog):
    with pm.Model() as model:
        x = pm.Normal("x", shape=2)
        path = pytensor.scan(
            lambda previous, x: 0.5 * previous + x[0],
            outputs_info=[x[1]],
            non_sequences=[x],
            n_steps=4,
            return_updates=False,
        )
        pm.Deterministic("states", path)
    posterior = pmf.NormalizingFlow("loc", model=model).sample(5).posterior.isel(chain=0)
    state = posterior.x.values[:, 1]
    for i in range(4):
        state = 0.5 * state + posterior.x.values[:, 0]
        assert_allclose(posterior.states[:, i], state)
    assert "Variables of the model are computed draw by draw" in caplog.text


def test_an_invalid_draw_does_not_spoil_the_others():
    with pm.Model() as model:
        scale = pm.Normal("scale", 0, 1)
        pm.Deterministic("lp", pm.logp(pm.Normal.dist(0, scale), 0.5))
    posterior = pmf.NormalizingFlow("loc", model=model).sample(50, random_seed=1).posterior
    scale, lp = posterior.scale.values[0], posterior.lp.values[0]
    assert 10 < (scale > 0).sum() < 40
    assert_array_equal(np.isneginf(lp), scale <= 0)
    good = scale > 0
    expected = -0.5 * (0.5 / scale[good]) ** 2 - np.log(scale[good]) - 0.5 * np.log(2 * np.pi)
    assert_allclose(lp[good], expected)


def test_noise_of_a_deterministic_differs_from_draw_to_draw():
    with pm.Model() as model:
        x = pm.Normal("x", shape=2)
        own = pm.Normal.dist(0, 1)
        pm.Deterministic("own", own)
        pm.Deterministic("twice", 2 * own)
        pm.Deterministic("around", pm.Normal.dist(x, 1e-9))
    approx = pmf.NormalizingFlow("loc", model=model)
    posterior = approx.sample(200, random_seed=1).posterior
    assert posterior.own.std() == pytest.approx(1, rel=0.25)
    assert_allclose(posterior.twice, 2 * posterior.own)
    assert_allclose(posterior.around, posterior.x, atol=1e-7)
    assert posterior.equals(approx.sample(200, random_seed=1).posterior)
    assert not np.isclose(posterior.own, approx.sample(200, random_seed=2).posterior.own).any()
    x, _ = approx.sample_and_log_prob(200, random_seed=1)
    assert_array_equal(posterior.x[0], x)


def test_a_minibatch_model():
    x, y = np.arange(80.0).reshape(40, 2), np.arange(40.0)
    with pm.Model() as model:
        x_batch, y_batch = pm.Minibatch(x, y, batch_size=5)
        b = pm.Normal("b", shape=2)
        pm.Deterministic("first", x_batch[:, 0] * 1.0)
        pm.Normal("y", x_batch @ b, 1, observed=y_batch, total_size=40)
    tree = pmf.NormalizingFlow("scale-loc", model=model).sample(20, random_seed=1)
    first = tree.posterior["first"].values[0]
    assert first.shape == (20, 5)
    assert set(np.unique(first)) <= set(x[:, 0])
    assert len({row.tobytes() for row in first}) > 15  # a batch of its own for every draw


# ------------------------------------------------------------------ models that change, and others


def regression(x):
    with pm.Model(coords={"i": range(len(x))}) as model:
        data = pm.Data("x", x, dims="i")
        a = pm.Normal("a")
        mu = pm.Deterministic("mu", a * data, dims="i")
        pm.Normal("y", mu, 1, observed=pm.Data("y_data", np.zeros(len(x)), dims="i"), dims="i")
    return model


def test_new_data_of_another_length(no_compiler):
    model = regression([1.0, 2.0, 3.0])
    approx = pmf.NormalizingFlow("loc", model=model, jitter=0)
    before = approx.sample(2, random_seed=1)
    function = approx._draws_functions.of(model)
    with model:
        pm.set_data({"x": [5.0, 6.0], "y_data": [1.0, 1.0]}, coords={"i": ["b", "c"]})
    after = approx.sample(2, random_seed=1)
    assert approx._draws_functions.of(model) is function
    assert_allclose(after.posterior.mu, after.posterior.a.values[..., None] * [5.0, 6.0])
    assert list(after.posterior.i.values) == ["b", "c"]
    assert_array_equal(after.constant_data.x, [5.0, 6.0])
    assert_array_equal(after.observed_data.y, [1.0, 1.0])
    assert_array_equal(before.posterior.a, after.posterior.a)
    with model:
        predictive = pm.sample_posterior_predictive(after, progressbar=False, random_seed=1)
    assert predictive.posterior_predictive.y.shape == (1, 2, 2)


def test_a_free_variable_that_changed_its_shape():
    with pm.Model() as model:
        n = pm.Data("n", [1.0, 2.0])
        pm.Normal("x", n, 1)
    approx = pmf.NormalizingFlow("loc", model=model)
    with model:
        pm.set_data({"n": [1.0, 2.0, 3.0]})
    with pytest.raises(ModelError, match=r"'x' changed[^\n]*\nexpected \(2,\), got \(3,\)"):
        approx.sample(2)


def test_a_deterministic_that_is_added_later():
    model = regression([1.0, 2.0])
    approx = pmf.NormalizingFlow("loc", model=model)
    assert "late" not in approx.sample(2).posterior
    with model:
        pm.Deterministic("late", model["a"] + 1)
    posterior = approx.sample(2).posterior
    assert_allclose(posterior.late, posterior.a + 1)


def test_the_model_in_context_counts():
    approx = pmf.NormalizingFlow("loc", model=regression([1.0, 2.0]))
    for factor in (10.0, 20.0, 30.0):  # made and dropped: functions must not be mixed up
        with pm.Model():
            a = pm.Normal("a")
            pm.Deterministic("mu", factor * a)
            posterior = approx.sample(2).posterior
        assert_allclose(posterior.mu, factor * posterior.a)
    assert approx.sample(2).posterior.mu.shape == (1, 2, 2)


def test_an_unrelated_model_in_context_is_refused():
    approx = pmf.NormalizingFlow("loc", model=regression([1.0, 2.0]))
    with pm.Model():
        pm.Normal("a")
        pm.Normal("b")
        with pytest.raises(ModelError, match="'b' that this approximation does not know"):
            approx.sample(2)
    with pm.Model():
        pm.Normal("a", shape=3)
        with pytest.raises(ModelError, match=r"'a' of another shape\nexpected \(\), got \(3,\)"):
            approx.sample(2)
    with pm.Model(), pytest.raises(ModelError, match="no free variable"):
        approx.sample(2)


# --------------------------------------------------------------------------------- into other hands


def test_posterior_predictive(no_compiler, model, approx):
    tree = approx.sample(20, random_seed=1)
    with model, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The effect of Potentials")
        predictive = pm.sample_posterior_predictive(tree, progressbar=False, random_seed=1)
    y = predictive.posterior_predictive.y
    assert y.dims == ("chain", "draw", "school")
    z = (y - tree.posterior.theta) / tree.constant_data.sigma
    assert float(z.std()) == pytest.approx(1, rel=0.3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_arviz(approx):
    tree = approx.sample(100, random_seed=1)
    names = ["mu", "tau", "theta", "simplex"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one chain is too few for ArviZ's taste
        table = az.summary(tree, var_names=names)
        az.plot_dist(tree, var_names=["mu", "tau"], backend="matplotlib")
    assert list(table.index[:3]) == ["mu", "tau", "theta[a]"]
    assert float(table.loc["mu", "mean"]) == pytest.approx(float(tree.posterior.mu.mean()), abs=0.1)
