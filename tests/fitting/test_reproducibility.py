"""Which fits are equal to the last bit, and where `refine` and a further fit go on."""

import numpy as np
import pymc as pm
import pytest
from pymc.variational.callbacks import CheckParametersConvergence

import pymc_flows as pmf
from fits import ADAM, JAX, assert_identical, everything, inference, minibatch_model, parameters
from pymc_flows.backends.functions import counts, forget
from pymc_flows.flows.frame import Frame
from pymc_flows.training import state as _state

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
    inf = inference(minibatch_model(), "planar-scale", jitter=0.5)
    inf.fit(60, obj_n_mc=3, **{"random_seed": 5, **JAX, **kwargs})
    return everything(inf)


@pytest.fixture(scope="module")
def reference():
    return fit_minibatches()


@pytest.mark.parametrize("variant", VARIANTS)
def test_bits_depend_on_nothing_but_the_seed(variant, reference, monkeypatch):
    if variant == "short calls":
        monkeypatch.setattr(_state, "CHUNK_SECONDS", 0.0)
    assert_identical(fit_minibatches(**VARIANTS[variant]()), reference)


def test_the_seed_of_the_inference_is_enough():
    first, second = inference(), inference()
    for inf in (first, second):
        inf.fit(10, **JAX)
        inf.fit(10, **JAX)
    np.testing.assert_array_equal(first.hist, second.hist)
    assert not np.isin(first.hist[10:], first.hist[:10]).any()


def test_another_seed_is_another_fit(reference):
    hist, *_ = reference
    other, *_ = fit_minibatches(random_seed=6)
    assert not np.isin(other, hist).any()


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


# ------------------------------------------------------- what an earlier fit has compiled


def test_a_fit_to_other_data_compiles_nothing_and_has_the_bits_that_it_has_alone():
    def fit(shift):
        with pm.Model() as model:
            x = pm.Normal("x", 0, 3, shape=2)
            pm.Normal("y", x[[0, 1, 1]] * [1.0, 2.0, shift], 1, observed=np.arange(3) + shift)
        frame = Frame(np.full(2, shift), np.array([[0.7, 0.0], [0.1 * shift, 0.9]]))
        inf = pmf.NFVI("planar*2", model=model, random_seed=1, start=frame)
        inf.fit(20, **JAX)
        return everything(inf)

    forget()
    alone = fit(3.0)
    forget()
    assert not np.allclose(fit(0.5)[0], alone[0])
    before = counts().made
    after_another = fit(3.0)
    assert counts().made == before
    assert_identical(after_another, alone)
