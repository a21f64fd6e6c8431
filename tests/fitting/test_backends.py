"""Single precision, and fits on numba held against fits on JAX."""

import warnings

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest

import pymc_flows as pmf
from fits import (
    ADAM,
    JAX,
    assert_identical,
    everything,
    inference,
    interrupted_and_not,
    parameters,
    restore,
    snapshot,
)
from pymc_flows.training import state as _state


def test_single_precision():
    with pytensor.config.change_flags(floatX="float32"):
        inf = inference()
        inf.fit(300, obj_n_mc=8, obj_optimizer=pm.adam(learning_rate=0.05), **JAX)
        inf.refine(5, progressbar=False)
    assert all(p.dtype == np.float32 for p in parameters(inf))
    assert len(inf.hist) == 305
    assert inf.hist[-50:].mean() < inf.hist[:10].mean()


def test_calls_grow_although_skipping_steps_takes_long(monkeypatch):
    inf = inference()
    inf.fit(1, obj_n_mc=2, obj_optimizer=ADAM, **JAX)
    assert inf.state.loop.idle_seconds > 0
    inf.state.chunk, inf.state.loop.idle_seconds = 1, 1e6
    lengths, run = [], inf.state.loop.run

    def spied(settings):
        lengths.append(len(settings))
        return run(settings)

    monkeypatch.setattr(inf.state.loop, "run", spied)
    inf.refine(1 + 8 + 64, progressbar=False)
    assert lengths == [1, 8, 64]


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
        x = pm.Normal("x", 0, 1, shape=2)
        sigma = pm.HalfNormal("sigma", 1)
        pm.Normal("y", op(x), 1 + sigma, observed=[1.5, 1.0])
    return model


FORMULA = "scale-planar*2-loc"
PICKY = {"obj_n_mc": 1, "random_seed": 5, "obj_optimizer": ADAM, "progressbar": False}


@pytest.fixture(scope="module")
def on_numba():
    """The one fit on numba, of a model with an Op that raises at some draws."""
    inf = pmf.NFVI(FORMULA, model=picky_model(Picky()), random_seed=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Numba will use object mode")
        inf.fit(0, backend="numba", **PICKY)
        inf.state.loop.compile()
    return inf


def test_numba_and_jax_agree_also_on_the_steps_that_fail(on_numba):
    jax = pmf.NFVI(
        FORMULA, model=picky_model(lambda x: pt.switch(x > 2.5, np.nan, x)), random_seed=1
    )
    with pytest.warns(UserWarning, match="steps were skipped"):
        jax.fit(100, backend="jax", gradient="total", **PICKY)
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
    monkeypatch.setattr(_state, "CHUNK_SECONDS", 0.0)
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
