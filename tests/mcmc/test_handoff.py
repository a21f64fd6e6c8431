"""neutra() is a posterior in base coordinates; sample() draws from it by NUTS and by proposals."""

import logging

import arviz as az
import numpy as np
import pymc as pm
import pytensor
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import pymc_flows as pmf
from fits import Y, minibatch_model, normal_mean
from models import ZOO
from pymc_flows.backends.modes import NUMPY, training_mode
from pymc_flows.errors import ArgumentError, BackendError, FitError, ModelError
from pymc_flows.mcmc.handoff import _choose, _has
from pymc_flows.mcmc.independence import FlowJump, _metropolis

# PyTensor says so when PyMC takes the initial point of an LKJ distribution, where it finds no BLAS.
pytestmark = pytest.mark.filterwarnings("ignore:PyTensor could not link to a BLAS")

QUIET = {"progressbar": False}
Z0 = np.random.default_rng(7).standard_normal((3, 10))


def flow(formula, model, *, jitter=0.3, framed=True):
    """A flow that is not fitted, but not the identity in any part."""
    dim = pmf.NormalizingFlow("loc", model=model).ddim
    rng = np.random.default_rng(5)
    scale = np.tril(rng.normal(0, 0.1, (dim, dim)), -1) + np.diag(rng.uniform(0.5, 1.5, dim))
    frame = pmf.Frame(rng.normal(0, 0.3, dim), scale) if framed else None
    return pmf.NormalizingFlow(formula, model=model, jitter=jitter, start=frame, random_seed=2)


def log_density(base):
    """The log density of a model with one free variable, as a function of its value."""
    return pytensor.function(base.value_vars, base.logp(), mode=NUMPY)


def log_posterior(model, point):
    """The model's own log density at a flat point, as PyMC evaluates it."""
    values, begin = {}, 0
    for name, start in model.initial_point().items():
        values[name] = point[begin : begin + start.size].reshape(start.shape)
        begin += start.size
    fn = pytensor.function(model.value_vars, model.logp(), mode=NUMPY)
    return fn(*(values[v.name] for v in model.value_vars))


# ------------------------------------------------------------------------------------- the model


@pytest.mark.parametrize(
    ("formula", "backend"),
    [
        ("planar*2-radial-loc", None),
        ("planar*6-scale-loc", None),
        ("hh*3-tril-loc", None),
        ("nvp*2-iaf-spline", None),
        ("nsf-sylvester-tail", None),
        ("planar*6-radial*2", "numba"),
        ("tril*2-lowrank", "numba"),
    ],
)
def test_the_density_is_the_posteriors_times_the_jacobian(formula, backend):
    model = ZOO["eight_schools"]()
    approx = flow(formula, model)
    log_p0 = log_density(pmf.neutra(approx, backend=backend))
    for z0 in Z0:
        point = approx.forward(z0)
        # The flow's own density gives the Jacobian another way: ln q(z) = ln N(z0) − log det.
        log_det = -0.5 * (z0 @ z0 + 10 * np.log(2 * np.pi)) - approx.log_prob(point)
        assert_allclose(log_p0(z0), log_posterior(model, point) + log_det, rtol=1e-9)


@pytest.mark.parametrize("backend", ["numba", "jax"])
def test_compiled_values_and_gradients_are_those_of_differences(backend):
    if backend == "jax":
        pytest.importorskip("jax")
    base = pmf.neutra(flow("planar*5-loc", ZOO["eight_schools"]()), backend=backend)
    fn = base.logp_dlogp_function(ravel_inputs=True, mode=training_mode(backend))
    fn.set_extra_values({})
    z0 = Z0[0]
    value, gradient = fn(z0)
    reference = log_density(base)
    assert_allclose(value, reference(z0), rtol=1e-9)
    steps = 1e-5 * np.eye(10)
    differences = [(reference(z0 + h) - reference(z0 - h)) / 2e-5 for h in steps]
    assert_allclose(gradient, differences, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["eight_schools", "arrays_and_dims", "simplex", "lkj_cholesky"])
def test_deterministics_are_the_models_variables(name):
    model = ZOO[name]()
    approx = flow("scale-loc", model, framed=False)
    base = pmf.neutra(approx)
    zero, rng = np.zeros(approx.ddim), np.random.default_rng(0)
    expected = approx.draws_at(approx.forward(zero[None]), model, rng)
    names = {v.name for v in (*model.free_RVs, *model.deterministics)}
    assert {v.name for v in base.deterministics} == names
    graphs = base.replace_rvs_by_values([base[name] for name in names])
    values = pytensor.function(base.value_vars, graphs, mode=NUMPY)(zero)
    for variable, value in zip(names, values, strict=True):
        assert_allclose(value, expected[variable][0], rtol=1e-10, atol=1e-12)
        assert base.named_vars_to_dims.get(variable) == model.named_vars_to_dims.get(variable)
    assert base.coords == model.coords


def test_it_is_a_model_of_its_own_wherever_it_is_made():
    with ZOO["eight_schools"]() as model:
        base = pmf.neutra(pmf.NormalizingFlow("scale-loc"))
    assert base.parent is None
    assert [v.name for v in base.free_RVs] == ["z0"]
    assert "z0" not in model.named_vars


def test_initial_points_are_draws_of_the_base():
    base = pmf.neutra(pmf.NormalizingFlow("scale-loc", model=ZOO["eight_schools"]()))
    points = np.array([base.initial_point(seed)["z0"] for seed in range(40)])
    assert len(np.unique(points)) == points.size
    assert abs(points.mean()) < 4 / 20
    assert abs(points.std() - 1) < 4 / np.sqrt(2 * 400)


def test_later_changes_of_the_flow_do_not_reach_it():
    approx = flow("scale-loc", normal_mean())
    log_p0 = log_density(pmf.neutra(approx))
    before = log_p0(np.ones(1))
    approx.params[0].set_value(approx.params[0].get_value() + 1)
    assert log_p0(np.ones(1)) == before
    assert log_density(pmf.neutra(approx))(np.ones(1)) != before


def test_new_data_reach_it():
    with pm.Model() as model:
        y = pm.Data("y", [1.0, 2.0])
        x = pm.Normal("x")
        pm.Normal("seen", x, observed=y)
    approx = pmf.NormalizingFlow("scale-loc", model=model, random_seed=1)
    log_p0 = log_density(pmf.neutra(approx))
    model.set_data("y", [1.0, 2.0, 3.0])
    assert_allclose(log_p0(np.ones(1)), log_density(pmf.neutra(approx))(np.ones(1)))


def test_its_names_give_way_to_the_models():
    with pm.Model() as model:
        pm.Normal("z0")
        pm.Normal("log_weight")
    approx = pmf.NormalizingFlow("scale-loc", model=model, random_seed=1)
    base = pmf.neutra(approx)
    assert [v.name for v in base.free_RVs] == ["z0_"]
    assert {v.name for v in base.deterministics} == {"z0", "log_weight"}
    found = pmf.sample(approx, 5, tune=0, chains=1, method="imh", random_seed=1)
    assert set(found.posterior.data_vars) == {"z0", "log_weight"}


def test_a_minibatch_has_no_graph_of_the_posterior_but_the_whole_data_have():
    approx = pmf.NormalizingFlow("scale-loc", model=minibatch_model(), random_seed=1)
    for call in (pmf.neutra, pmf.sample):
        with pytest.raises(ModelError, match="batch by batch"):
            call(approx)
    data = np.linspace(-1, 2, 60)
    with pm.Model() as whole:
        x = pm.Normal("x", 0, 1)
        sigma = pm.HalfNormal("sigma", 1)
        pm.Normal("y", x, sigma, observed=data)
    z0 = np.array([0.2, -0.1])
    log_det = -0.5 * (z0 @ z0 + 2 * np.log(2 * np.pi)) - approx.log_prob(approx.forward(z0))
    expected = log_posterior(whole, approx.forward(z0)) + log_det
    assert_allclose(log_density(pmf.neutra(approx, model=whole))(z0), expected)
    with whole:
        assert_allclose(log_density(pmf.neutra(approx))(z0), expected)
    with pytest.raises(ModelError, match="does not have the free variables"):
        pmf.neutra(approx, model=normal_mean())
    with pytest.raises(BackendError, match="unknown backend 'c'"):
        pmf.neutra(approx, model=whole, backend="c")


# ----------------------------------------------------------------------------------- proposals


def test_metropolis_visits_states_by_their_weights(rng):
    """Proposals from a uniform distribution over four states; its chain is known."""
    weights = np.array([0.1, 0.2, 0.3, 0.4])
    states = rng.integers(4, size=(50, 4_001))
    taken, rate, accepted = _metropolis(np.log(weights)[states], rng)
    visited = np.take_along_axis(states, taken, axis=1)[:, 1:]
    shares = np.array([(visited == k).mean(axis=1) for k in range(4)]).T
    noise = shares.std(axis=0, ddof=1) / np.sqrt(50)
    assert (abs(shares.mean(axis=0) - weights) < 4 * noise).all()
    # Accepted where the chain moves, with the probability that it says.
    assert ((np.diff(taken) != 0) == accepted[:, 1:]).all()
    assert abs(rate[:, 1:].mean() - accepted[:, 1:].mean()) < 0.01
    k = states[0, 1]
    assert rate[0, 1] == pytest.approx(min(1, weights[k] / weights[states[0, 0]]))


def test_chains_leave_where_there_is_no_density_and_never_go_there(rng):
    log_w = np.array([[-np.inf, -np.inf, 0.0, -np.inf, -700.0, 0.0]])
    taken, _, accepted = _metropolis(log_w, rng)
    assert accepted[0, 2]
    assert taken[0, 3] == taken[0, 4] == 2


def exact_flow(model, mean, sd):
    """`scale-loc` with the given mean and standard deviation."""
    return pmf.NormalizingFlow("scale-loc", model=model, start=pmf.Frame(mean, sd), jitter=0)


MEAN, SD = Y.sum() / 11, 11**-0.5  # of the posterior of `normal_mean`


def test_proposals_from_the_posterior_itself_are_all_taken():
    approx = exact_flow(normal_mean(), np.array([MEAN]), np.array([SD]))
    found = pmf.sample(approx, 500, tune=10, chains=3, method="imh", random_seed=3)
    stats = found.sample_stats
    assert stats.accepted.dims == ("chain", "draw")
    assert stats.accepted.shape == (3, 500)
    assert_allclose(stats.acceptance_rate, 1, atol=1e-9)
    gap = (stats.lp - stats.log_q).to_numpy()
    assert np.ptp(gap) < 1e-9  # the log evidence, everywhere
    assert len(np.unique(found.posterior["x"])) == 1500


def two_modes():
    """0.3 N(-3, 0.5) + 0.7 N(3, 0.5), with a second coordinate that is about the same."""
    with pm.Model(coords={"k": ["a", "b"]}) as model:
        x = pm.Flat("x", dims="k")
        left, right = (np.log(w) - 2 * (x[0] - m) ** 2 for w, m in ((0.3, -3), (0.7, 3)))
        pm.Potential("modes", pm.math.logaddexp(left, right) - 2 * (x[1] - x[0]) ** 2)
    return model


def share(found):
    """Share of draws in the mode with weight 0.7, and its standard error."""
    right = (found.posterior["x"].sel(k="a") > 0).to_numpy().astype(float)
    return right.mean(), np.sqrt(0.21 / float(az.ess(right, method="mean")))


def test_proposals_find_the_weights_of_modes():
    wide = exact_flow(two_modes(), np.zeros(2), np.array([[3.0, 0.0], [2.7, 1.2]]))
    found = pmf.sample(wide, 4_000, tune=100, method="imh", random_seed=3)
    mean, error = share(found)
    assert error < 0.02
    assert abs(mean - 0.7) < 4 * error
    assert 0.1 < found.sample_stats.acceptance_rate.mean() < 0.6
    assert found.posterior["x"].dims == ("chain", "draw", "k")
    assert list(found.posterior["k"].to_numpy()) == ["a", "b"]


def test_the_same_seed_gives_the_same_draws():
    wide = exact_flow(two_modes(), np.zeros(2), np.full(2, 3.0))
    a, b, c = (
        pmf.sample(wide, 20, tune=5, chains=2, method="imh", random_seed=seed).posterior["x"]
        for seed in (1, 1, 2)
    )
    assert_array_equal(a, b)
    assert not np.array_equal(a, c)


def test_proposals_that_are_hardly_ever_taken_are_worth_a_warning(caplog):
    far = exact_flow(two_modes(), np.full(2, 40.0), np.full(2, 30.0))
    with caplog.at_level(logging.WARNING, "pymc_flows"):
        pmf.sample(far, 200, tune=200, method="imh", random_seed=1)
    assert "of the proposals were accepted" in caplog.text


def test_proposals_without_any_density_are_an_error():
    with pm.Model() as model:
        x = pm.Flat("x")
        pm.Potential("nowhere", pm.math.switch(x < 1e6, -np.inf, 0.0))
    with pytest.raises(FitError, match="no finite log density"):
        pmf.sample(exact_flow(model, np.zeros(1), np.ones(1)), method="imh", random_seed=1)


# ------------------------------------------------------------------------------------------- nuts


@pytest.mark.parametrize("sampler", ["nutpie", "numpyro", "pymc"])
def test_nuts_finds_the_conjugate_posterior(sampler):
    """In coordinates that are off by a factor and a shift."""
    if sampler != "pymc":
        pytest.importorskip(sampler)
    rough = exact_flow(normal_mean(), np.array([MEAN + 0.3]), np.array([1.7 * SD]))
    found = pmf.sample(rough, 1_000, tune=500, chains=2, sampler=sampler, random_seed=4, **QUIET)
    x = found.posterior["x"]
    assert x.dims == ("chain", "draw")
    assert x.shape == found.sample_stats["diverging"].shape == (2, 1_000)
    assert found.sample_stats["diverging"].sum() == 0
    assert_array_equal(found.observed_data["y"], Y)
    assert found.posterior.attrs["tuning_steps"] == 500
    ess = float(az.ess(x.to_numpy()))
    assert ess > 400
    assert abs(float(x.mean()) - MEAN) < 4 * SD / np.sqrt(ess)
    assert abs(float(x.std()) / SD - 1) < 4 / np.sqrt(ess)


def test_nuts_with_jumps_finds_the_weights_of_modes():
    wide = exact_flow(two_modes(), np.zeros(2), np.array([[3.0, 0.0], [2.7, 1.2]]))
    found = pmf.sample(
        wide, 2_000, tune=300, chains=2, method="nuts+imh", random_seed=5, cores=1, **QUIET
    )
    mean, error = share(found)
    assert error < 0.03
    assert abs(mean - 0.7) < 4 * error
    stats = found.sample_stats
    assert stats["diverging"].shape == stats["jump_accepted"].shape == (2, 2_000)
    rate = float(stats["jump_acceptance_rate"].mean())
    assert 0.1 < rate < 0.6
    assert abs(float(stats["jump_accepted"].mean()) - rate) < 0.05


def test_a_jump_is_never_what_pymc_chooses_itself():
    base = pmf.neutra(exact_flow(normal_mean(), np.zeros(1), np.ones(1)))
    assert FlowJump._competence(base.free_RVs, [True]) == [0]


def test_the_sampler_is_what_is_installed_and_runs_the_model(monkeypatch):
    pytest.importorskip("jax")
    approx = exact_flow(normal_mean(), np.zeros(1), np.ones(1))
    for installed, expected in (
        ({"nutpie", "numpyro", "blackjax"}, ("nutpie", "jax")),
        ({"numpyro", "blackjax"}, ("numpyro", "jax")),
        ({"blackjax"}, ("blackjax", "jax")),
        (set(), ("pymc", "numba")),
    ):
        monkeypatch.setattr("pymc_flows.mcmc.handoff._has", installed.__contains__)
        assert _choose(approx, approx.model, None) == expected
        assert _choose(approx, approx.model, "pymc") == ("pymc", "numba")
    with pytest.raises(BackendError, match=r"not installed\ninstall numpyro,"):
        _choose(approx, approx.model, "numpyro")
    # Without JAX only nutpie and PyMC's own are left.
    monkeypatch.setattr("pymc_flows.model.backend.has_jax", lambda: False)
    monkeypatch.setattr("pymc_flows.mcmc.handoff._has", {"nutpie", "numpyro"}.__contains__)
    assert _choose(approx, approx.model, None) == ("nutpie", "numba")
    monkeypatch.setattr("pymc_flows.mcmc.handoff._has", {"numpyro"}.__contains__)
    assert _choose(approx, approx.model, None) == ("pymc", "numba")


def test_what_is_installed_is_found():
    assert _has("numpy")
    assert not _has("no_such_sampler")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "hmc"}, r"method must be one of 'nuts', 'imh', 'nuts\+imh', got 'hmc'"),
        ({"sampler": "stan"}, "sampler must be one of 'nutpie', .* got 'stan'"),
        ({"method": "imh", "sampler": "nutpie"}, "has no effect with method='imh'"),
        ({"method": "imh", "cores": 1}, "cores= has no effect with method='imh'"),
        ({"initvals": {}}, r"Call pymc.sample\(model=pymc_flows.neutra\(approx\), ...\)"),
        ({"target_accept": 1}, "target_accept must be between 0 and 1, got 1"),
        ({"draws": 0}, "draws must be an integer of at least 1"),
        ({"chains": 2.0}, "chains must be an integer of at least 1"),
        ({"tune": -1}, "tune must be an integer of at least 0"),
    ],
)
def test_what_cannot_be_used_is_refused(arguments, message):
    approx = exact_flow(normal_mean(), np.zeros(1), np.ones(1))
    with pytest.raises(ArgumentError, match=message):
        pmf.sample(approx, **arguments)
