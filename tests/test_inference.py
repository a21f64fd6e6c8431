"""`NFVI` on real models: what a fit leaves behind, whatever happens to it. On JAX unless noted."""

import copy
import math
import os
import signal
import threading
import time
import warnings

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from pymc.progress_bar import default_progress_theme
from pymc.variational.callbacks import CheckParametersConvergence
from rich.theme import Theme

import pymc_flows as pmf
from pymc_flows import _session, training
from pymc_flows._progress import FitProgress
from pymc_flows.errors import ArgumentError, BackendError, FitError, FlowError
from pymc_flows.modes import NUMPY, training_mode

JAX = {"backend": "jax", "progressbar": False}
Y = np.array([0.3, 1.2, -0.4, 2.0, 1.1, 0.7, 0.2, 1.6, -0.1, 0.9])
ADAM = pm.adam(learning_rate=0.02)


def normal_mean(mu=0.0):
    """mu ~ N(0, 1), y_i ~ N(mu, 1): the posterior is normal with variance 1/11."""
    with pm.Model() as model:
        x = pm.Normal("x", mu, 1)
        pm.Normal("y", x, 1, observed=Y)
    return model


def minibatch_model():
    data = pm.Minibatch(np.linspace(-1, 2, 60), batch_size=7)
    with pm.Model() as model:
        x = pm.Normal("x", 0, 1)
        sigma = pm.HalfNormal("sigma", 1)
        pm.Normal("y", x, sigma, observed=data, total_size=60)
    return model


def inference(model=None, formula="scale-loc", **kwargs):
    return pmf.NFVI(
        formula, model=normal_mean() if model is None else model, random_seed=1, **kwargs
    )


def parameters(inf):
    return [p.get_value() for p in inf.approx.params]


def everything(inf):
    """Losses, parameters and the optimizer's state."""
    return [inf.hist, *parameters(inf), *(v.get_value() for v in inf.state.loop.step.updates)]


def assert_identical(values, expected):
    for value, other in zip(values, expected, strict=True):
        np.testing.assert_array_equal(value, other)


# ------------------------------------------------------------------------- same seed, same bits


VARIANTS = {
    "a callback at every step": lambda: {"callbacks": [lambda *_: None]},
    "a check now and then": lambda: {
        "callbacks": [CheckParametersConvergence(every=7, tolerance=0)]
    },
    "a tracker": lambda: {"callbacks": [pmf.callbacks.Tracker()]},
    "a progress bar": lambda: {"progressbar": True},
    "short calls": dict,
}


def fit_minibatches(**kwargs):
    inf = inference(minibatch_model(), "planar*2-scale", jitter=0.5)
    inf.fit(60, random_seed=5, obj_n_mc=3, **{**JAX, **kwargs})
    return everything(inf)


@pytest.fixture(scope="module")
def reference():
    return fit_minibatches()


@pytest.mark.parametrize("variant", VARIANTS)
def test_bits_depend_on_nothing_but_the_seed(variant, reference, monkeypatch):
    if variant == "short calls":
        monkeypatch.setattr(_session, "CHUNK_SECONDS", 0.0)
    assert_identical(fit_minibatches(**VARIANTS[variant]()), reference)


def test_the_seed_of_the_inference_is_enough():
    first, second = inference(), inference()
    for inf in (first, second):
        inf.fit(10, **JAX)
        inf.fit(10, **JAX)
    np.testing.assert_array_equal(first.hist, second.hist)
    assert not np.isin(first.hist[10:], first.hist[:10]).any()


# ------------------------------------------------------------------------- fit, refine, fit again


def test_refine_goes_on_where_fit_ended():
    tracker, whole_tracker = pmf.callbacks.Tracker(), pmf.callbacks.Tracker()
    steps = []
    callbacks = [tracker, lambda approx, losses, i: steps.append((i, len(losses)))]
    parts = inference()
    parts.fit(4, random_seed=5, obj_optimizer=ADAM, callbacks=callbacks, **JAX)
    for n in (1, 0, 5):
        assert parts.refine(n, progressbar=False) is None
    whole = inference()
    whole.fit(10, random_seed=5, obj_optimizer=ADAM, callbacks=[whole_tracker], **JAX)
    assert_identical(everything(parts), everything(whole))
    np.testing.assert_array_equal(parts.approx.hist, parts.hist)
    assert [i for i, _ in steps] == list(range(1, 11))
    assert [n for _, n in steps] == [1, 2, 3, 4, 1, 1, 2, 3, 4, 5]
    assert tracker.dataset.equals(whole_tracker.dataset)


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


def test_refine_finishes_the_schedule_of_a_fit_that_was_stopped():
    def stop(approx, losses, i):
        if i == 9:
            raise StopIteration

    stopped, whole = inference(), inference()
    stopped.fit(30, random_seed=5, callbacks=[stop], **JAX)
    assert len(stopped.hist) == 9
    stopped.refine(21, progressbar=False)
    whole.fit(30, random_seed=5, **JAX)
    assert_identical(everything(stopped), everything(whole))


def test_a_second_fit_starts_anew_from_the_parameters_of_the_first():
    steps = []
    inf = inference()
    inf.fit(6, obj_optimizer=ADAM, random_seed=5, **JAX)
    after_first = parameters(inf)
    hist = inf.hist
    inf.fit(
        4, obj_optimizer=ADAM, random_seed=6, callbacks=[lambda a, h, i: steps.append(i)], **JAX
    )
    assert steps == [1, 2, 3, 4]
    np.testing.assert_array_equal(inf.hist[:6], hist)
    assert len(inf.hist) == 10
    fresh = inference()
    for p, value in zip(fresh.approx.params, after_first, strict=True):
        p.set_value(value)
    fresh.fit(4, obj_optimizer=ADAM, random_seed=6, **JAX)
    assert_identical(parameters(inf), parameters(fresh))


def test_no_step_and_one_step():
    inf = inference()
    before = parameters(inf)
    assert inf.fit(0, **JAX) is inf.approx
    assert_identical(parameters(inf), before)
    assert len(inf.hist) == 0
    inf.refine(1, progressbar=False)
    assert len(inf.hist) == 1
    inf.fit(1, **JAX)
    assert len(inf.hist) == 2
    assert np.isfinite(inf.hist).all()


@pytest.mark.parametrize("n", [-1, 2.5, "10", True, None])
def test_a_number_of_steps_that_is_none(n):
    with pytest.raises(FlowError, match="n must be an integer of at least 0"):
        inference().fit(n, **JAX)


@pytest.mark.parametrize("n", [0, -1, 2.5, True])
def test_a_number_of_draws_that_is_none(n):
    with pytest.raises(FlowError, match="obj_n_mc must be an integer of at least 1"):
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
        inf = inference()
        inf.fit(200, obj_n_mc=n, obj_optimizer=pm.sgd(learning_rate=0.0), **JAX)
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

    monkeypatch.setattr(pytensor, "function", counting)
    inf = inference(formula="planar*2-loc")
    inf.fit(30, callbacks=[CheckParametersConvergence(every=8, tolerance=0)], **JAX)
    inf.refine(20, progressbar=False)
    inf.refine(3, progressbar=False)
    inf.approx.sample(10)
    points, _ = inf.approx.sample_and_log_prob(10)
    inf.approx.log_prob(points)
    assert len(compiled) == 1
    assert compiled[0] is inf.state.loop.function
    assert compiled[0].vm.jit_fn._cache_size() == 1


# ------------------------------------------------------------------------- arguments


def test_a_constraint_on_the_norm_of_the_gradient():
    tracker = pmf.callbacks.Tracker()
    inf = inference(start={"x": 30.0})
    inf.fit(
        20,
        obj_optimizer=pm.sgd(learning_rate=0.5),
        total_grad_norm_constraint=0.1,
        callbacks=[tracker],
        **JAX,
    )
    squares = sum(
        (tracker[name] ** 2).sum(axis=(1, 2)) for name in ("grad_0_scale_rho", "grad_1_loc_loc")
    )
    np.testing.assert_allclose(np.sqrt(squares), 0.1, rtol=1e-4)
    # They are what sgd has used: the parameters can be followed from them, to the last bit.
    p, g = tracker["1_loc_loc"], tracker["grad_1_loc_loc"]
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
    with pytest.raises(FlowError, match="does not depend on other, one of more_obj_params"):
        inference().fit(1, more_obj_params=[other], **JAX)


def test_further_updates_are_done_once_per_step():
    count = pytensor.shared(np.array(0), "count")
    total = pytensor.shared(np.array(0.0), "total")
    inf = inference()
    x = inf.approx.params[-1]
    inf.fit(
        7,
        more_updates={count: count + 1, total: total + x[0, 0]},
        obj_optimizer=pm.sgd(learning_rate=0.0),
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


@pytest.mark.parametrize("callbacks", [[3], [None], ["x"]])
def test_callbacks_that_cannot_be_called(callbacks):
    with pytest.raises(FlowError, match="callback"):
        inference().fit(1, callbacks=callbacks, **JAX)


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
    inf.fit(400, obj_n_mc=50, obj_optimizer=pm.sgd(learning_rate=0.0), **JAX)
    loss = inf.objective(20_000).eval(mode=NUMPY)
    error = inf.hist.std() / math.sqrt(400)
    assert abs(loss - inf.hist.mean()) < 5 * error
    with pytest.raises(FlowError, match="nmc must be an integer of at least 1"):
        inf.objective(0)


def test_the_objective_of_the_posterior_itself_is_minus_log_z():
    sd = 1 / math.sqrt(11)
    inf = inference(params={0: {"rho": [math.log(math.expm1(sd))]}, 1: {"loc": [Y.sum() / 11]}})
    cov = np.eye(10) + 1
    quadratic = Y @ np.linalg.solve(cov, Y)
    log_z = -0.5 * (quadratic + np.linalg.slogdet(cov)[1] + 10 * math.log(2 * math.pi))
    losses = [inf.objective(1).eval(mode=NUMPY) for _ in range(5)]
    np.testing.assert_allclose(losses, -log_z, rtol=1e-12)
    inf.fit(50, obj_n_mc=1, obj_optimizer=pm.sgd(learning_rate=0.0), **JAX)
    np.testing.assert_allclose(inf.hist, -log_z, rtol=1e-12)


def test_a_flow_that_is_the_target_has_no_loss():
    with pm.Model() as model:
        pm.Normal("x", shape=3)
    inf = inference(model, "scale-planar*3-radial*2-loc", jitter=0.0)
    inf.fit(20, obj_n_mc=1, obj_optimizer=pm.sgd(learning_rate=0.0), **JAX)
    np.testing.assert_allclose(inf.hist, 0, atol=1e-12)


# ------------------------------------------------------------------------- fits that go wrong


def walled(width):
    """A standard normal with a wall: −inf beyond it."""
    with pm.Model() as model:
        x = pm.Normal("x", 0, 1)
        pm.Potential("wall", pt.switch(pt.abs(x) < width, 0.0, -np.inf))
    return model


def test_occasional_infinite_draws_do_not_end_a_fit():
    inf = inference(walled(2.5))
    with pytest.warns(UserWarning, match="of 200 steps were skipped") as record:
        inf.fit(200, obj_n_mc=4, random_seed=5, **JAX)
    skipped = int(np.isnan(inf.hist).sum())
    assert [str(w.message).split()[0] for w in record] == [str(skipped)]
    assert 0 < skipped < 60
    assert np.isfinite(np.concatenate([p.ravel() for p in parameters(inf)])).all()


def test_a_hundred_failures_in_a_row_end_it_and_name_the_term():
    inf = inference(walled(1e-6), jitter=0.0)
    before = parameters(inf)
    with pytest.raises(FitError, match="100 steps in a row failed") as info:
        inf.fit(500, obj_n_mc=4, **JAX)
    assert isinstance(info.value, FloatingPointError)
    assert "wall" in str(info.value)
    assert "step 100" in str(info.value)
    assert_identical(parameters(inf), before)
    np.testing.assert_array_equal(inf.hist, [np.nan] * 100)
    np.testing.assert_array_equal(inf.approx.hist, inf.hist)
    with pytest.raises(FitError, match="step 200"):
        inf.refine(300, progressbar=False)
    assert len(inf.hist) == 200
    inf.approx.sample(5)


def test_a_flow_that_overflows_is_named():
    inf = inference(params={0: {"rho": [1e308]}})
    with pytest.raises(FitError, match=r"coordinate 0 of 'x' is -?inf at draw"):
        inf.fit(200, obj_n_mc=50, **JAX)


def test_a_gradient_that_is_not_finite_is_named():
    with pm.Model() as model:
        x = pm.Normal("x", 0, 1, shape=2)
        pm.Potential("root", pt.sqrt(pt.maximum(x[1] - 100, 0.0)))
    inf = inference(model, "loc-scale-planar*2")
    with pytest.raises(FitError, match=r"gradient with respect to '\w+' of layer \d \(\w+\)"):
        inf.fit(200, obj_n_mc=4, **JAX)


def test_an_update_that_is_not_finite_is_named():
    def broken(grads, params):
        return {p: p * np.nan for p in params}

    inf = inference()
    before = parameters(inf)
    with pytest.raises(FitError, match="the optimizer's update is not") as info:
        inf.fit(200, obj_n_mc=4, obj_optimizer=broken, **JAX)
    assert isinstance(info.value.__cause__, ArithmeticError)
    assert_identical(parameters(inf), before)


# ------------------------------------------------------------------------- interrupts


def send(delay):
    def kill():
        time.sleep(delay)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


def snapshot(inf):
    loop = inf.state.loop
    return (
        [v.get_value() for v in loop.step.updates],
        loop._noise.bit_generator.state,
        copy.deepcopy(loop._rngs),
        inf.state.i,
        inf.hist,
    )


def restore(inf, saved):
    values, noise, rngs, inf.state.i, inf.hist = saved
    loop = inf.state.loop
    for v, value in zip(loop.step.updates, values, strict=True):
        v.set_value(value)
    loop._noise.bit_generator.state = noise
    loop._rngs = rngs


def interrupted_and_not(inf, delay=0.4):
    """Refine until a real SIGINT comes, then 50 more; return this, and the same in one go."""
    saved = snapshot(inf)
    handler = signal.getsignal(signal.SIGINT)
    thread = send(delay)
    begin = time.perf_counter()
    inf.refine(10**8, progressbar=False)
    seconds = time.perf_counter() - begin
    thread.join()
    assert signal.getsignal(signal.SIGINT) is handler
    assert delay < seconds < delay + 5
    n = inf.state.i - saved[3]
    assert 0 < n < 10**8
    assert len(inf.hist) == inf.state.i
    inf.refine(50, progressbar=False)
    broken = everything(inf)
    restore(inf, saved)
    inf.refine(n + 50, progressbar=False)
    return broken, everything(inf)


def test_an_interrupted_fit_goes_on_as_if_nothing_had_happened():
    inf = inference(minibatch_model())
    inf.fit(10, obj_n_mc=3, **JAX)
    assert_identical(*interrupted_and_not(inf))


def test_an_interrupt_in_a_callback_ends_the_fit_there():
    def callback(approx, losses, i):
        if i == 3:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)
            raise AssertionError("never reached")

    inf = inference()
    assert inf.fit(10, callbacks=[callback], **JAX) is inf.approx
    assert len(inf.hist) == inf.state.i == 3


def test_an_interrupt_before_the_first_step_leaves_an_inference_that_works(monkeypatch):
    inf, other = inference(), inference()
    compile_ = training.TrainingLoop._call

    def interrupted(self, *args):
        monkeypatch.setattr(training.TrainingLoop, "_call", compile_)
        os.kill(os.getpid(), signal.SIGINT)
        return compile_(self, *args)

    monkeypatch.setattr(training.TrainingLoop, "_call", interrupted)
    before = parameters(inf)
    with pytest.raises(KeyboardInterrupt):
        inf.fit(10, random_seed=5, **JAX)
    assert len(inf.hist) == 0
    assert_identical(parameters(inf), before)
    inf.refine(10, progressbar=False)
    other.fit(10, random_seed=5, **JAX)
    assert_identical(everything(inf), everything(other))


def test_a_fit_in_another_thread_touches_no_signal_handler():
    inf = inference()
    errors = []

    def work():
        try:
            inf.fit(20, **JAX)
        except BaseException as error:  # a thread's exceptions would be lost
            errors.append(error)

    handler = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert errors == []
    assert len(inf.hist) == 20
    assert signal.getsignal(signal.SIGINT) is handler


# ------------------------------------------------------------------------- progress


def test_the_bar_shows_steps_loss_and_speed(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("FORCE_COLOR", "1")
    inf = inference()
    theme = Theme({"bar.complete": "green", "bar.finished": "green", "bar.pulse": "green"})
    inf.fit(500, progressbar_theme=theme, progressbar=True, backend="jax")
    shown = capsys.readouterr().out
    for text in ("Compiling:", "Fitting:", "Average Loss = ", "steps/s", "100%"):
        assert text in shown
    inf.refine(5, progressbar=False)
    assert capsys.readouterr().out == ""


# ------------------------------------------------------------------------- precision, backends


@pytest.fixture
def jupyter(monkeypatch):
    """A notebook without ipywidgets: what it shows, by lines."""
    lines = {}

    class ZMQInteractiveShell:
        @property
        def display_pub(self):
            return self

        def publish(self, data, *, transient, update):
            assert (transient["display_id"] in lines) == update
            lines.setdefault(transient["display_id"], []).append(data["text/plain"])

    monkeypatch.setattr("builtins.get_ipython", ZMQInteractiveShell, raising=False)
    monkeypatch.setattr("pymc_flows._progress.find_spec", lambda name: None)
    return lines


def test_without_widgets_a_notebook_shows_a_line_of_text(jupyter):
    with FitProgress(20, default_progress_theme, show=True) as bar:
        bar.begin()
        bar.update(10, np.full(10, 3.0))
        bar.update(20, np.array([2.0, np.nan]))
    [shown] = jupyter.values()
    assert shown[0] == "Compiling"
    assert shown[1].startswith("Fitting: 10 of 20 steps  Average Loss = 3  ")
    assert shown[2].startswith("Fitting: 20 of 20 steps  Average Loss = 2  ")
    assert len(shown) == 3
    with FitProgress(20, default_progress_theme, show=False) as bar:
        bar.update(20, np.zeros(0))
    assert len(jupyter) == 1


def test_single_precision():
    with pytensor.config.change_flags(floatX="float32"):
        inf = inference()
        inf.fit(300, obj_n_mc=8, obj_optimizer=pm.adam(learning_rate=0.05), **JAX)
        inf.refine(5, progressbar=False)
    assert all(p.dtype == np.float32 for p in parameters(inf))
    assert len(inf.hist) == 305
    assert inf.hist[-50:].mean() < inf.hist[:10].mean()


class Picky(pytensor.graph.op.Op):
    """The identity, but above 2.5 it raises."""

    __props__ = ()

    def make_node(self, x):
        return pytensor.graph.basic.Apply(self, [x], [x.type()])

    def perform(self, node, inputs, outputs):
        if np.max(inputs[0]) > 2.5:
            raise ValueError("out of range")
        outputs[0][0] = inputs[0].copy()

    def pullback(self, inputs, outputs, cotangents):
        return cotangents

    def infer_shape(self, node, shapes):
        return shapes


def picky_model(op):
    with pm.Model() as model:
        x = pm.Normal("x", 0, 1)
        pm.Normal("y", op(x), 2, observed=[1.5, 1.0])
    return model


PICKY = {"obj_n_mc": 1, "random_seed": 5, "obj_optimizer": ADAM, "progressbar": False}


@pytest.fixture(scope="module")
def on_numba():
    """The one fit on numba, of a model with an Op that raises at some draws."""
    inf = pmf.NFVI("planar*2-loc", model=picky_model(Picky()), random_seed=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Numba will use object mode")
        inf.fit(0, backend="numba", **PICKY)
        inf.state.loop.compile()
    return inf


def test_numba_and_jax_agree_also_on_the_steps_that_fail(on_numba):
    jax = pmf.NFVI(
        "planar*2-loc", model=picky_model(lambda x: pt.switch(x > 2.5, np.nan, x)), random_seed=1
    )
    with pytest.warns(UserWarning, match="steps were skipped"):
        jax.fit(100, backend="jax", **PICKY)
    assert 0 < np.isnan(jax.hist).sum() < 30
    with pytest.warns(UserWarning, match="last exception was ValueError: out of range"):
        on_numba.refine(100, progressbar=False)
    np.testing.assert_allclose(on_numba.hist[:100], jax.hist, rtol=1e-8)


@pytest.mark.filterwarnings("ignore:.*steps were skipped")
def test_on_numba_bits_do_not_depend_on_the_calls_or_on_an_interrupt(on_numba, monkeypatch):
    assert_identical(*interrupted_and_not(on_numba))
    saved = snapshot(on_numba)
    on_numba.refine(300, progressbar=False)
    whole = everything(on_numba)
    restore(on_numba, saved)
    monkeypatch.setattr(_session, "CHUNK_SECONDS", 0.0)
    on_numba.state.chunk = 1
    on_numba.refine(300, progressbar=False)
    assert_identical(everything(on_numba), whole)


@pytest.mark.filterwarnings("ignore:.*steps were skipped")
def test_on_numba_callbacks_see_numpy_arrays(on_numba):
    seen = []

    def callback(approx, losses, i):
        values = [v.get_value(borrow=True) for v in on_numba.state.loop.step.updates]
        seen.append(all(isinstance(value, np.ndarray) for value in values))

    on_numba.state.callbacks.append(callback)
    on_numba.refine(3, progressbar=False)
    on_numba.state.callbacks.remove(callback)
    assert seen == [True] * 3
