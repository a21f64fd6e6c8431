"""Small fits on JAX, and how to compare, interrupt and repeat them."""

import copy
import os
import signal
import threading
import time

import numpy as np
import pymc as pm

import pymc_flows as pmf

QUIET = {"progressbar": False}
JAX = {"backend": "jax", **QUIET}
Y = np.array([0.3, 1.2, -0.4, 2.0, 1.1, 0.7, 0.2, 1.6, -0.1, 0.9])
ADAM = pm.adam(learning_rate=0.02)
# Steps that are lost in rounding: losses are those of the flow as it is.
STILL = pm.sgd(learning_rate=1e-300)


def normal_mean(mu=0.0):
    """mu ~ N(0, 1), y_i ~ N(mu, 1): the posterior is normal with variance 1/11."""
    with pm.Model() as model:
        x = pm.Normal("x", mu, 1)
        pm.Normal("y", x, 1, observed=Y)
    return model


def three_variables(a_shape=(), b_dist=pm.HalfNormal, **kwargs):
    with pm.Model() as model:
        pm.Normal("a", shape=a_shape)
        b_dist("b", **kwargs)
        pm.Normal("c", shape=2)
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


def begin(**kwargs):
    """An inference fitted for 30 steps, unless told otherwise."""
    inf = inference()
    inf.fit(**{"n": 30, "random_seed": 5, "obj_n_mc": 4, **JAX, **kwargs})
    return inf


def parameters(inf):
    return [p.get_value() for p in inf.approx.params]


def everything(inf):
    """Losses, parameters and the optimizer's state."""
    return [inf.hist, *parameters(inf), *(v.get_value() for v in inf.state.loop.step.updates)]


def all_state(inf):
    loop = inf.state.loop
    return [
        *everything(inf),
        inf.approx.hist,
        inf.state.i,
        loop.state_dict()["noise_rng"],
        inf.approx.rng.get_state(legacy=False)["state"]["key"],
        loop.failures,
    ]


def assert_identical(values, expected):
    for value, other in zip(values, expected, strict=True):
        np.testing.assert_array_equal(value, other)


def send(delay):
    def kill():
        time.sleep(delay)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


def changing(inf):
    """Shared variables that a fit changes; a loop may carry all parameters as one vector."""
    return [*inf.approx.params, *inf.state.loop.step.updates]


def snapshot(inf):
    loop = inf.state.loop
    return (
        [v.get_value() for v in changing(inf)],
        copy.deepcopy(loop.state_dict()),
        inf.state.i,
        inf.hist,
    )


def restore(inf, saved):
    values, state, inf.state.i, inf.hist = saved
    loop = inf.state.loop
    for v, value in zip(changing(inf), values, strict=True):
        v.set_value(value)
    loop.load_state_dict(state, lambda name, *_: state["arrays"][name])


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
    n = inf.state.i - saved[2]
    assert 0 < n < 10**8
    assert len(inf.hist) == inf.state.i
    inf.refine(50, progressbar=False)
    broken = everything(inf)
    restore(inf, saved)
    inf.refine(n + 50, progressbar=False)
    return broken, everything(inf)
