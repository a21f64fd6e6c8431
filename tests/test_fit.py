"""Fits from the user's side: what `NFVI` and `fit` promise, on JAX unless it says otherwise."""

import numpy as np
import pymc as pm
import pytensor
import pytest
from pymc.variational.callbacks import CheckParametersConvergence
from pymc.variational.callbacks import Tracker as PyMCTracker

import pymc_flows as pmf
from pymc_flows.callbacks import Tracker
from pymc_flows.errors import BackendError, FitError, FlowError, ModelError

QUIET = {"progressbar": False, "backend": "jax"}


@pytest.fixture(scope="module")
def model():
    with pm.Model(coords={"i": range(3)}) as model:
        mu = pm.Normal("mu", 1.0, 2.0)
        x = pm.Normal("x", mu, 1.0, dims="i")
        sigma = pm.HalfNormal("sigma", 1.0)
        pm.Normal("y", x, sigma, observed=[0.3, -0.2, 1.1], dims="i")
    return model


def inference(model, formula="scale-planar*2-loc", seed=3):
    return pmf.NFVI(formula, model=model, random_seed=seed)


def parameters(approx):
    return [v.get_value() for v in approx.params]


def assert_same(a, b):
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def plain(model):
    """A fit of 250 steps, and its state."""
    inf = inference(model)
    inf.fit(250, obj_n_mc=8, random_seed=5, **QUIET)
    return inf.hist.copy(), parameters(inf.approx)


def test_same_seed_same_bits_with_every_kind_of_callback(model, plain):
    seen = []
    inf = inference(model)
    tracker = Tracker()
    callbacks = [CheckParametersConvergence(every=70, tolerance=0), tracker]
    inf.fit(250, obj_n_mc=8, random_seed=5, callbacks=callbacks, **QUIET)
    assert_same([inf.hist, *parameters(inf.approx)], [plain[0], *plain[1]])
    np.testing.assert_array_equal(tracker.dataset["step"], np.arange(1, 251))

    inf = inference(model)
    inf.fit(
        250,
        obj_n_mc=8,
        random_seed=5,
        callbacks=[lambda approx, losses, i: seen.append((i, losses[-1]))],
        **QUIET,
    )
    assert [i for i, _ in seen] == list(range(1, 251))
    np.testing.assert_array_equal([loss for _, loss in seen], plain[0])
    assert_same([inf.hist, *parameters(inf.approx)], [plain[0], *plain[1]])


def test_another_seed_gives_another_fit(model, plain):
    inf = inference(model)
    inf.fit(250, obj_n_mc=8, random_seed=6, **QUIET)
    assert not np.array_equal(inf.hist, plain[0])


@pytest.fixture(scope="module")
def minibatch_model():
    rng = np.random.default_rng(0)
    data = rng.normal(2.0, 1.0, size=400)
    with pm.Model() as model:
        batch = pm.Minibatch(data, batch_size=20)
        m = pm.Normal("m", 0, 10)
        pm.Normal("y", m, 1.0, observed=batch, total_size=len(data))
    return model, data


def test_minibatch_fit_finds_the_posterior_and_repeats(minibatch_model):
    model, data = minibatch_model
    hists = []
    for _ in range(2):
        inf = inference(model, "scale-loc")
        inf.fit(4000, obj_n_mc=16, random_seed=1, **QUIET)
        hists.append(inf.hist)
    np.testing.assert_array_equal(*hists)
    # The loss is per minibatch: divided by total_size / batch_size.
    assert inf.hist[-500:].mean() == pytest.approx(20 * (0.5 * np.log(2 * np.pi) + 0.5), rel=0.1)
    (mean,) = pytensor.function([], [inf.approx.mean], mode="FAST_COMPILE")()
    assert mean[0] == pytest.approx(data.mean(), abs=0.1)


def test_refine_continues_where_fit_ended(model):
    indices = []
    inf = inference(model)
    inf.fit(
        40,
        obj_n_mc=4,
        obj_optimizer=pm.adam(learning_rate=0.01),
        random_seed=2,
        callbacks=[lambda approx, losses, i: indices.append(i)],
        **QUIET,
    )
    inf.refine(25, progressbar=False)
    assert indices == list(range(1, 66))
    whole = inference(model)
    whole.fit(65, obj_n_mc=4, obj_optimizer=pm.adam(learning_rate=0.01), random_seed=2, **QUIET)
    assert_same([inf.hist, *parameters(inf.approx)], [whole.hist, *parameters(whole.approx)])
    assert inf.approx.hist is inf.hist


def test_refine_before_fit_is_a_type_error(model):
    with pytest.raises(TypeError, match=r"Need to call `\.fit` first"):
        inference(model).refine(10)


def test_refine_changes_a_step_size_only_where_there_is_one(model):
    inf = inference(model, "loc")
    inf.fit(5, obj_n_mc=4, obj_optimizer=pm.sgd(learning_rate=0.001), random_seed=1, **QUIET)
    before = parameters(inf.approx)
    inf.refine(5, progressbar=False, learning_rate=0.0)
    assert_same(before, parameters(inf.approx))

    own = inference(model, "loc")
    own.fit(
        2,
        obj_n_mc=4,
        obj_optimizer=lambda grads, params: {p: p - 0.001 * g for p, g in zip(params, grads)},  # noqa: B905
        **QUIET,
    )
    with pytest.raises(FlowError, match="learning_rate"):
        own.refine(1, progressbar=False, learning_rate=0.1)


def test_tracker_has_the_gradients_that_moved_the_parameters(model):
    inf = inference(model)
    start = {name: v.get_value() for name, v in inf.approx.groups[0].params_dict.items()}
    tracker = Tracker()
    inf.fit(
        30,
        obj_n_mc=4,
        obj_optimizer=pm.sgd(learning_rate=0.05),
        total_grad_norm_constraint=3.0,
        callbacks=[tracker],
        random_seed=1,
        **QUIET,
    )
    data = tracker.dataset
    assert set(start) == {str(v) for v in data.data_vars if not str(v).startswith("grad_")}
    norms = 0.0
    for name, first in start.items():
        values = np.concatenate([first[None], data[name].values])
        grads = data[f"grad_{name}"].values
        norms = norms + (grads**2).reshape(30, -1).sum(axis=1)
        np.testing.assert_allclose(values[1:], values[:-1] - 0.05 * grads, rtol=1e-12, atol=1e-15)
    assert (np.sqrt(norms) <= 3.0 + 1e-6).all()
    assert data["1_planar_u"].dims[0] == "step"
    assert data["1_planar_u"].shape == (30, 2, 5)


def test_tracker_keeps_within_its_bytes(model):
    inf = inference(model)
    tracker = Tracker(max_bytes=20_000)
    inf.fit(400, obj_n_mc=2, callbacks=[tracker], random_seed=1, **QUIET)
    steps = tracker.dataset["step"].values
    assert tracker.dataset.nbytes <= 25_000
    assert len(steps) > 10
    assert set(np.diff(steps)) == {steps[1] - steps[0]}
    assert np.log2(steps[1] - steps[0]).is_integer()


def test_callbacks_see_numpy_and_may_set_parameters(model):
    kinds = set()

    def look(approx, losses, i):
        kinds.update(type(v.container.storage[0]) for v in approx.params)
        if i == 3:
            for v in approx.params:
                v.set_value(np.zeros_like(v.get_value()))
        if i == 4:
            values.append(parameters(approx))

    values = []
    inf = inference(model, "loc")
    inf.fit(
        4,
        obj_n_mc=4,
        obj_optimizer=pm.sgd(learning_rate=1e-9),
        callbacks=[look],
        random_seed=1,
        **QUIET,
    )
    assert kinds == {np.ndarray}
    np.testing.assert_allclose(values[0][0], 0, atol=1e-6)


@pytest.mark.parametrize("error", [StopIteration, KeyboardInterrupt])
def test_callback_ends_the_fit_after_its_step(model, error):
    def stop(approx, losses, i):
        if i == 7:
            raise error("enough")

    inf = inference(model)
    approx = inf.fit(50, obj_n_mc=4, callbacks=[stop], random_seed=1, **QUIET)
    assert approx is inf.approx
    assert len(inf.hist) == 7
    assert np.isfinite(inf.hist).all()


def test_exception_in_a_callback_keeps_everything(model):
    def fail(approx, losses, i):
        if i == 5:
            raise RuntimeError("mine")

    inf = inference(model)
    with pytest.raises(RuntimeError, match="mine"):
        inf.fit(50, obj_n_mc=4, callbacks=[fail], random_seed=1, **QUIET)
    assert len(inf.hist) == 5
    assert inf.approx.sample(10).posterior.sizes["draw"] == 10


def test_check_parameters_convergence_stops_a_fit_that_stands_still(model):
    inf = inference(model)
    check = CheckParametersConvergence(every=20)
    inf.fit(
        500,
        obj_n_mc=4,
        obj_optimizer=pm.sgd(learning_rate=0.0),
        callbacks=[check],
        random_seed=1,
        **QUIET,
    )
    assert len(inf.hist) == 20


def test_pymc_tracker_records_parameters_at_each_step(model):
    inf = inference(model, "loc")
    (loc,) = inf.approx.params
    tracker = PyMCTracker(loc=lambda: loc.get_value().copy(), loss=lambda a, h, i: h[-1])
    inf.fit(12, obj_n_mc=4, callbacks=[tracker], random_seed=1, **QUIET)
    assert len(tracker["loc"]) == 12
    np.testing.assert_array_equal(tracker["loss"], inf.hist)
    np.testing.assert_array_equal(tracker["loc"][-1], loc.get_value())


def test_without_score_hist_does_not_grow(model):
    seen = []
    inf = inference(model)
    inf.fit(
        5,
        score=False,
        obj_n_mc=4,
        callbacks=[lambda approx, losses, i: seen.append(losses)],
        **QUIET,
    )
    assert len(inf.hist) == 0
    assert seen == [None] * 5


def test_steps_without_a_finite_loss_are_skipped_and_said(recwarn):
    with pm.Model() as model:
        x = pm.Normal("x")
        pm.Potential("cliff", pm.math.switch(x > 1.5, -np.inf, 0.0))
    inf = inference(model, "scale-loc")
    inf.fit(300, obj_n_mc=2, random_seed=1, **QUIET)
    skipped = int((~np.isfinite(inf.hist)).sum())
    assert 0 < skipped < 300
    texts = [str(w.message) for w in recwarn]
    assert sum(f"{skipped} of 300 steps were skipped" in text for text in texts) == 1
    recwarn.clear()


def test_a_fit_that_cannot_go_on_says_which_term_is_at_fault():
    with pm.Model() as model:
        x = pm.Normal("x")
        # Finite at the start and nowhere else.
        pm.Potential("trap", pm.math.switch(pm.math.abs(x) > 1e-12, -np.inf, 0.0))
    inf = pmf.NFVI("scale-loc", model=model, random_seed=1, jitter=0)
    start = parameters(inf.approx)
    with pytest.raises(FitError, match="trap"):
        inf.fit(1000, obj_n_mc=4, **QUIET)
    assert_same(start, parameters(inf.approx))
    assert 100 <= len(inf.hist) < 1000
    assert issubclass(FitError, FloatingPointError)


def test_start_outside_the_support_is_refused_before_compiling():
    with pm.Model() as model:
        x = pm.Normal("x", initval=3.0)
        pm.Potential("cliff", pm.math.switch(x > 1.5, -np.inf, 0.0))
    with pytest.raises(ModelError, match="cliff"):
        inference(model).fit(10, **QUIET)


def test_unknown_backend_and_keyword(model):
    with pytest.raises(BackendError, match="unknown backend 'c'"):
        inference(model).fit(10, backend="c", progressbar=False)
    with pytest.raises(TypeError, match="n_draws"):
        inference(model).fit(10, n_draws=3)
    with pytest.raises(TypeError, match="learning_rate"):
        pmf.NFVI("scale-loc", model=model, learning_rate=1)


def test_fit_takes_a_formula_or_a_method(model):
    with model:
        a = pmf.fit(20, formula="planar*2-loc", random_seed=1, **QUIET)
        b = pmf.fit(20, method="NFVI=planar*2-loc", random_seed=1, **QUIET)
    assert_same([a.hist], [b.hist])
    with pytest.raises(FlowError, match="not both"):
        pmf.fit(20, formula="loc", method="nfvi", model=model)
    with pytest.raises(FlowError, match=r"pymc\.fit"):
        pmf.fit(20, method="advi", model=model)


def test_conjugate_normal_with_the_defaults():
    data = np.random.default_rng(8).normal(size=10)
    with pm.Model() as model:
        mu = pm.Normal("mu")
        pm.Normal("y", mu, 1.0, observed=data)
    exact = 1 / np.sqrt(11)
    ratios = []
    for seed in range(3):
        approx = pmf.fit(model=model, random_seed=seed, **QUIET)
        mean, std = pytensor.function([], [approx.mean, approx.std], mode="FAST_COMPILE")()
        ratios.append(std[0] / exact)
        assert mean[0] == pytest.approx(data.sum() / 11, abs=0.02)
    assert abs(np.mean(ratios) - 1) < 0.01
    assert max(abs(r - 1) for r in map(float, ratios)) < 0.03


def test_exact_flow_has_a_constant_loss():
    target = pmf.targets.gaussian(np.zeros(2), np.eye(2))
    inf = pmf.NFVI("scale-loc", model=target.model(), jitter=0, random_seed=1)
    inf.fit(20, obj_n_mc=1, obj_optimizer=pm.sgd(learning_rate=0.0), random_seed=1, **QUIET)
    np.testing.assert_allclose(inf.hist, -target.log_z, rtol=1e-12)


def test_new_data_between_fit_refine_and_sample():
    with pm.Model() as model:
        data = pm.Data("data", np.zeros(4))
        m = pm.Normal("m", 0, 1)
        pm.Deterministic("shifted", data + m)
        pm.Normal("y", m, 1.0, observed=data)
    inf = inference(model, "scale-loc")
    inf.fit(1500, obj_n_mc=16, random_seed=1, **QUIET)
    loop = inf.state.loop.function
    pm.set_data({"data": np.full(6, 7.0)}, model=model)
    inf.refine(3000, progressbar=False, learning_rate=0.01)
    assert inf.state.loop.function is loop
    draws = inf.approx.sample(200, random_seed=1).posterior
    assert draws["shifted"].shape == (1, 200, 6)
    assert float(draws["m"].mean()) == pytest.approx(42 / 7, abs=0.3)


def test_numba_and_jax_agree(model):
    hists = []
    for backend in ("jax", "numba"):
        inf = inference(model, "scale-hh*2-planar*2-loc")
        inf.fit(100, obj_n_mc=8, random_seed=5, progressbar=False, backend=backend)
        hists.append(inf.hist)
    np.testing.assert_allclose(*hists, rtol=1e-8)
