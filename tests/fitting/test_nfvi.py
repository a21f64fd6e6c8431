"""`NFVI` on real models: what its arguments do and what a fit finds. On JAX."""

import collections
import inspect
import math

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from pymc.variational.callbacks import CheckParametersConvergence
from pymc.variational.callbacks import Tracker as PyMCTracker

import pymc_flows as pmf
from behind import function_behind
from fits import ADAM, JAX, STILL, Y, assert_identical, inference, normal_mean, parameters
from pymc_flows.backends import functions
from pymc_flows.backends.modes import NUMPY, training_mode
from pymc_flows.errors import ArgumentError, BackendError
from pymc_flows.training.config import FitConfig

# ------------------------------------------------------------------------- steps, draws, losses


def test_the_default_step_size_decays_over_the_fit_and_then_stays():
    tracker = pmf.callbacks.Tracker()
    inf = inference()
    inf.fit(40, random_seed=5, callbacks=[tracker], **JAX)
    inf.refine(20, progressbar=False)
    step = np.abs(np.diff(tracker["1_loc_loc"], axis=0)).ravel()
    # Adam's steps are at most some 0.01 at first and 0.0001 in the end.
    assert 0.003 < step[:5].mean() < 0.012
    assert step[39:].max() < 0.0003
    inf.refine(5, progressbar=False, learning_rate=0.2)
    inf.refine(5, progressbar=False)
    step = np.abs(np.diff(tracker["1_loc_loc"], axis=0)).ravel()
    assert step[59:64].mean() > 0.01
    assert step[64:].mean() > 0.01


def test_refine_changes_a_step_size_only_where_there_is_one():
    inf = inference()
    with pytest.raises(TypeError, match=r"Need to call `\.fit` first"):
        inf.refine(10)
    inf.fit(5, obj_optimizer=ADAM, **JAX)
    before = parameters(inf)
    inf.refine(5, progressbar=False, learning_rate=1e-300)
    assert_identical(parameters(inf), before)
    for rate in (0, 0.0, -0.1, np.nan, np.inf, "0.1"):
        with pytest.raises(ArgumentError, match="learning_rate must be a positive number"):
            inf.refine(5, progressbar=False, learning_rate=rate)
    assert (inf.state.n, inf.state.done) == (5, 5)  # of the last run

    def own(grads, params):
        return {p: p - 0.001 * g for p, g in zip(params, grads, strict=True)}

    inf.fit(2, obj_optimizer=own, **JAX)
    with pytest.raises(ArgumentError, match="learning_rate cannot be changed"):
        inf.refine(1, progressbar=False, learning_rate=0.1)


@pytest.mark.parametrize("n", [-1, 2.5, "10", True, None])
def test_a_number_of_steps_that_is_none(n):
    with pytest.raises(ArgumentError, match="n must be an integer of at least 0"):
        inference().fit(n, **JAX)


@pytest.mark.parametrize("n", [0, -1, 2.5, True])
def test_a_number_of_draws_that_is_none(n):
    with pytest.raises(ArgumentError, match="obj_n_mc must be an integer of at least 1"):
        inference().fit(1, obj_n_mc=n, **JAX)


def test_none_is_one_draw():
    losses = []
    for n in (None, 1):
        inf = inference()
        inf.fit(5, obj_n_mc=n, random_seed=5, **JAX)
        losses.append(inf.hist)
    np.testing.assert_array_equal(*losses)


def test_more_draws_make_the_loss_less_noisy():
    spread = []
    for n in (1, 100):
        (inf := inference()).fit(200, obj_n_mc=n, obj_optimizer=STILL, **JAX)
        spread.append(inf.hist.std())
    assert 6 < spread[0] / spread[1] < 16


def test_without_score_the_fit_is_the_same_but_for_hist():
    scored, silent = inference(), inference()
    got = []
    scored.fit(5, random_seed=5, **JAX)
    silent.fit(5, score=False, random_seed=5, callbacks=[lambda a, h, i: got.append(h)], **JAX)
    silent.refine(2, progressbar=False)
    scored.refine(2, progressbar=False)
    assert got == [None] * 7
    assert len(silent.hist) == len(silent.approx.hist) == 0
    assert_identical(parameters(silent), parameters(scored))


def test_only_one_training_function_is_compiled(monkeypatch):
    compiled = []
    function = pytensor.function

    def counting(*args, **kwargs):
        made = function(*args, **kwargs)
        if hasattr(made.vm, "jit_fn"):
            compiled.append(made)
        return made

    monkeypatch.setattr(functions, "_KEPT", collections.OrderedDict())
    monkeypatch.setattr(pytensor, "function", counting)
    inf = inference(formula="planar*2-loc")
    inf.fit(30, callbacks=[CheckParametersConvergence(every=8, tolerance=0)], **JAX)
    inf.refine(20, progressbar=False)
    inf.refine(3, progressbar=False)
    inf.approx.sample(10)
    points, _ = inf.approx.sample_and_log_prob(10)
    inf.approx.log_prob(points)
    assert len(compiled) == 1
    assert compiled[0] is function_behind(inf.state.loop.function)
    assert compiled[0].vm.jit_fn._cache_size() == 1


# ------------------------------------------------------------------------- arguments


def test_a_constraint_on_the_norm_of_the_gradient():
    tracker = pmf.callbacks.Tracker()
    inf = inference(formula="scale-planar*2-loc", start={"x": 30.0})
    inf.fit(
        20,
        obj_optimizer=pm.sgd(learning_rate=0.5),
        total_grad_norm_constraint=0.1,
        callbacks=[tracker],
        **JAX,
    )
    names = list(inf.approx.groups[0].params_dict)
    assert len(names) == 5
    squares = sum((tracker[f"grad_{name}"].reshape(20, -1) ** 2).sum(axis=1) for name in names)
    np.testing.assert_allclose(np.sqrt(squares), 0.1, rtol=1e-4)
    # They are what sgd has used: the parameters can be followed from them, to the last bit.
    for name in names:
        p, g = tracker[name], tracker[f"grad_{name}"]
        np.testing.assert_array_equal(p[1:], p[:-1] - 0.5 * g[1:])


def test_a_parameter_of_the_model_is_learned_along():
    """The marginal likelihood of y is highest at the mean of y."""
    mu = pytensor.shared(np.array([-1.0]), "mu")  # of a length that PyTensor does not know
    inf = inference(normal_mean(mu[0]))
    inf.fit(
        3000, more_obj_params=[mu], obj_n_mc=20, obj_optimizer=pm.adam(learning_rate=0.05), **JAX
    )
    inf.refine(2000, progressbar=False, learning_rate=0.002)
    assert isinstance(mu.get_value(), np.ndarray)
    assert abs(mu.get_value()[0] - Y.mean()) < 0.03
    points, _ = inf.approx.sample_and_log_prob(20_000, random_seed=1)
    assert abs(points.mean() - Y.mean()) < 0.03
    assert abs(points.std() * math.sqrt(11) - 1) < 0.05


def test_a_parameter_that_the_loss_does_not_know():
    other = pytensor.shared(np.array(1.0), "other")
    with pytest.raises(ArgumentError, match="does not depend on other, one of more_obj_params"):
        inference().fit(1, more_obj_params=[other], **JAX)


def test_further_updates_are_done_once_per_step():
    count = pytensor.shared(np.array(0), "count")
    total = pytensor.shared(np.array(0.0), "total")
    inf = inference()
    x = inf.approx.params[-1]
    inf.fit(
        7,
        more_updates={count: count + 1, total: total + x[0, 0]},
        obj_optimizer=STILL,
        **JAX,
    )
    inf.refine(3, progressbar=False)
    assert count.get_value() == 10
    np.testing.assert_allclose(total.get_value(), 10 * x.get_value()[0, 0], rtol=1e-12)


def test_replacements_reach_the_model():
    """A shared variable, and a minibatch that PyMC clones into the log density."""
    mu = pytensor.shared(np.array(-1.0), "mu")

    def model(x, mu):
        with pm.Model() as made:
            b = pm.Normal("b", mu, 1)
            pm.Normal("y", b * x, 1, observed=Y)
        return made

    batch = pm.Minibatch(np.linspace(5, 9, 40), batch_size=10)
    start = {"b": 0.0}
    replaced = inference(model(batch, mu), start=start)
    given = {batch: pt.constant(Y + 1), mu: pt.constant(np.array(0.7))}
    replaced.fit(5, more_replacements=given, random_seed=5, **JAX)
    written = inference(model(Y + 1, np.float64(0.7)), start=start)
    written.fit(5, random_seed=5, **JAX)
    np.testing.assert_allclose(replaced.hist, written.hist, rtol=1e-10)
    with pytest.raises(ArgumentError, match="has y, but the log density does not depend on it"):
        written.fit(5, more_replacements={pt.scalar("y"): mu}, **JAX)


def test_a_mode_instead_of_a_backend():
    by_mode, by_name = inference(), inference()
    by_mode.fit(5, random_seed=5, compile_kwargs={"mode": training_mode("jax")}, progressbar=False)
    by_name.fit(5, random_seed=5, compile_kwargs={"name": "mine"}, **JAX)
    np.testing.assert_array_equal(by_mode.hist, by_name.hist)
    assert by_name.state.loop.function.name == "mine"
    with pytest.raises(BackendError, match="not both") as info:
        inference().fit(5, compile_kwargs={"mode": "JAX"}, **JAX)
    assert isinstance(info.value, ValueError)


def test_old_and_unused_arguments_warn():
    inf = inference()
    with pytest.warns(DeprecationWarning, match="fn_kwargs is deprecated"):
        inf.fit(0, fn_kwargs={"name": "mine"}, **JAX)
    assert inf.state.loop.function.name == "mine"
    for name, value in {"tf_n_mc": 3, "test_optimizer": pm.adam, "more_tf_params": []}.items():
        with pytest.warns(UserWarning, match=f"`{name}` is not used for NFVI and ignored"):
            inf.fit(0, **{name: value}, **JAX)
    with pytest.raises(TypeError, match="unexpected keyword argument 'obj_n_mcc'"):
        inf.fit(1, obj_n_mcc=3, **JAX)


def test_include_transformed_is_kept_for_the_state():
    inf = inference()
    for value in (True, False):
        inf.fit(0, include_transformed=value, **JAX)
        assert inf.approx.groups[0].include_transformed is value


def test_a_profile_of_the_loop():
    inf = inference()
    inf.fit(3, **JAX)
    before, hist, state = parameters(inf), inf.hist, inf.state
    profile = inf.run_profiling(20, backend="jax", progressbar=False)
    assert profile.fct_callcount >= 2
    assert inf.hist is hist
    assert inf.state is state
    assert not np.array_equal(parameters(inf)[0], before[0])


def test_pymc_fits_it_too():
    inf, own = inference(), inference()
    with inf.approx.model:
        approx = pm.fit(5, method=inf, obj_n_mc=3, **JAX)
    own.fit(5, obj_n_mc=3, **JAX)
    assert approx is inf.approx
    np.testing.assert_array_equal(inf.hist, own.hist)


def test_arguments_that_do_not_exist():
    with pytest.raises(BackendError, match="unknown backend 'c'"):
        inference().fit(10, backend="c", progressbar=False)
    with pytest.raises(TypeError, match="n_draws"):
        inference().fit(10, n_draws=3)
    with pytest.raises(TypeError, match="learning_rate"):
        inference(learning_rate=1)


@pytest.mark.parametrize("start", [[1.0], np.ones(2), "x", 3.0, [], ("x", 1.0)])
def test_a_start_that_is_no_dict(start):
    with pytest.raises(ArgumentError, match=r"start must be a dict .*\nFree variables: x") as info:
        inference(start=start)
    assert f"got {type(start).__name__} " in str(info.value)


@pytest.mark.parametrize("callbacks", [[3], [None], ["x"]])
def test_callbacks_that_cannot_be_called(callbacks):
    with pytest.raises(ArgumentError, match="callback"):
        inference().fit(1, callbacks=callbacks, **JAX)


def test_an_exception_in_a_callback_keeps_the_steps_before():
    def fail(approx, losses, i):
        if i == 5:
            raise RuntimeError("mine")

    inf = inference()
    with pytest.raises(RuntimeError, match="mine"):
        inf.fit(50, callbacks=[fail], **JAX)
    assert len(inf.hist) == len(inf.approx.hist) == 5
    assert inf.approx.sample(10).posterior.sizes["draw"] == 10


def test_the_tracker_of_pymc_records_each_step():
    inf = inference(formula="loc")
    (loc,) = inf.approx.params
    tracker = PyMCTracker(loc=lambda: loc.get_value().copy(), loss=lambda a, h, i: h[-1])
    inf.fit(12, callbacks=[tracker], **JAX)
    assert len(tracker["loc"]) == 12
    np.testing.assert_array_equal(tracker["loss"], inf.hist)
    np.testing.assert_array_equal(tracker["loc"][-1], loc.get_value())


def test_a_callback_may_change_a_symbolic_step_size():
    rate = pytensor.shared(np.array(0.01), "rate")
    locs = []

    def callback(approx, losses, i):
        locs.append(approx.params[-1].get_value()[0, 0])
        assert all(isinstance(v.get_value(borrow=True), np.ndarray) for v in (rate, *approx.params))
        rate.set_value(np.array([0.01, 0.0][i % 2]))

    inference().fit(6, obj_optimizer=pm.adam(learning_rate=rate), callbacks=[callback], **JAX)
    moved = np.abs(np.diff(locs)) > 1e-5
    assert moved.tolist() == [False, True, False, True, False]


# ------------------------------------------------------------------------- the symbolic objective


def test_the_objective_draws_anew_at_each_evaluation():
    inf = inference()
    loss = inf.objective(None)
    grads = pytensor.grad(loss, inf.approx.params)
    assert loss.ndim == 0
    assert loss.eval(mode=NUMPY) != loss.eval(mode=NUMPY)
    for grad, p in zip(grads, inf.approx.params, strict=True):
        first, second = grad.eval(mode=NUMPY), grad.eval(mode=NUMPY)
        assert first.shape == p.get_value().shape
        assert (first != second).all()


def test_the_objective_has_the_level_of_hist():
    inf = inference()
    inf.fit(400, obj_n_mc=50, obj_optimizer=STILL, **JAX)
    loss = inf.objective(20_000).eval(mode=NUMPY)
    error = inf.hist.std() / math.sqrt(400)
    assert abs(loss - inf.hist.mean()) < 5 * error
    with pytest.raises(ArgumentError, match="nmc must be an integer of at least 1"):
        inf.objective(0)


def test_the_objective_of_the_posterior_itself_is_minus_log_z():
    sd = 1 / math.sqrt(11)
    inf = inference(params={0: {"rho": [math.log(math.expm1(sd))]}, 1: {"loc": [Y.sum() / 11]}})
    cov = np.eye(10) + 1
    quadratic = Y @ np.linalg.solve(cov, Y)
    log_z = -0.5 * (quadratic + np.linalg.slogdet(cov)[1] + 10 * math.log(2 * math.pi))
    losses = [inf.objective(1).eval(mode=NUMPY) for _ in range(5)]
    np.testing.assert_allclose(losses, -log_z, rtol=1e-12)
    inf.fit(50, obj_n_mc=1, obj_optimizer=STILL, **JAX)
    np.testing.assert_allclose(inf.hist, -log_z, rtol=1e-12)


def test_a_flow_that_is_the_target_has_no_loss():
    with pm.Model() as model:
        pm.Normal("x", shape=3)
    inf = inference(model, "scale-planar*3-radial*2-loc", jitter=0.0)
    inf.fit(20, obj_n_mc=1, obj_optimizer=STILL, **JAX)
    np.testing.assert_allclose(inf.hist, 0, atol=1e-12)


# ------------------------------------------------------------------------- data of the model


def test_a_fit_on_minibatches_finds_the_posterior_of_all_data():
    data = np.random.default_rng(0).normal(2.0, 1.0, size=400)
    with pm.Model() as model:
        x = pm.Normal("x", 0, 10)
        pm.Normal("y", x, 1, observed=pm.Minibatch(data, batch_size=20), total_size=400)
    inf = inference(model)
    inf.fit(4000, obj_n_mc=16, random_seed=1, **JAX)
    # The loss is per minibatch: divided by total_size / batch_size.
    expected = 20 * (0.5 * math.log(2 * math.pi) + 0.5)
    assert inf.hist[-500:].mean() == pytest.approx(expected, rel=0.1)
    points, _ = inf.approx.sample_and_log_prob(2000, random_seed=1)
    assert points.mean() == pytest.approx(data.mean(), abs=0.1)


def test_new_data_between_fit_refine_and_sample():
    with pm.Model() as model:
        data = pm.Data("data", np.zeros(4))
        x = pm.Normal("x", 0, 1)
        pm.Deterministic("shifted", data + x)
        pm.Normal("y", x, 1, observed=data)
    inf = inference(model)
    inf.fit(1500, obj_n_mc=16, random_seed=1, **JAX)
    loop = inf.state.loop.function
    pm.set_data({"data": np.full(6, 7.0)}, model=model)
    inf.refine(3000, progressbar=False, learning_rate=0.01)
    assert inf.state.loop.function is loop
    draws = inf.approx.sample(200, random_seed=1).posterior
    assert draws["shifted"].shape == (1, 200, 6)
    assert float(draws["x"].mean()) == pytest.approx(42 / 7, abs=0.3)


def test_a_configuration_has_the_names_and_defaults_of_the_arguments_of_fit():
    fit, config = (inspect.signature(f).parameters for f in (pmf.NFVI.fit, FitConfig))
    defaults = {name: p.default for name, p in fit.items() if name != "self"}
    assert {name: p.default for name, p in config.items()} == defaults
