"""What JAX lacks is no fault of a default call: it goes on without JAX, and says why once."""

import logging

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.graph.basic import Apply
from pytensor.graph.op import Op

import pymc_flows as pmf
from as_written import AS_WRITTEN
from pymc_flows.errors import BackendError
from pymc_flows.flows import build_chain
from pymc_flows.model.backend import choose_backend
from pymc_flows.model.dry_run import DryRun
from pymc_flows.model.log_density import LogDensity
from pymc_flows.model.logp import ModelDensity
from pymc_flows.training.loop import TrainingLoop

Y = np.random.default_rng(0).normal(size=12)


class Twice(Op):
    """2x, which only NumPy knows."""

    __props__ = ()

    def make_node(self, x):
        x = pt.as_tensor_variable(x)
        return Apply(self, [x], [x.type()])

    def perform(self, node, inputs, outputs):
        outputs[0][0] = np.asarray(2 * inputs[0])

    def pullback(self, inputs, outputs, cotangents):
        return [2 * cotangents[0]]


def loop_that_jax_lacks():
    with pm.Model() as model:
        x = pm.Normal("x")
        states = pytensor.scan(
            lambda s, x: 0.5 * s + Twice()(x),
            outputs_info=[pt.zeros(())],
            non_sequences=[x],
            n_steps=4,
            return_updates=False,
        )
        pm.Normal("y", states[-1], 1, observed=1.0)
    return model


def exact(x):
    """The state after four steps is 2x (1 + 1/2 + 1/4 + 1/8)."""
    log_2pi = np.log(2 * np.pi)
    return -0.5 * (x**2 + (1 - 3.75 * x) ** 2) - log_2pi


@pytest.mark.filterwarnings("ignore:Numba will use object mode")
def test_a_loop_that_jax_cannot_run_is_evaluated_all_the_same(caplog):
    density = ModelDensity(loop_that_jax_lacks())
    points = np.array([[0.0], [0.5], [-1.0]])
    with caplog.at_level(logging.WARNING, "pymc_flows"):
        log_p, gradient = LogDensity(density).value_and_grad(points)
        LogDensity(density).value(points)
    np.testing.assert_allclose(log_p, exact(points[:, 0]), rtol=1e-10)
    expected = -points + 3.75 * (1 - 3.75 * points)
    np.testing.assert_allclose(gradient, expected, rtol=1e-10)
    said = [m for m in caplog.messages if "JAX cannot run" in m]
    assert len(said) == 1
    assert "no conversion for Twice" in said[0]


def test_jax_refuses_it_where_it_is_asked_for():
    with pytest.raises(BackendError, match="no conversion for Twice"):
        pmf.NFVI("loc", model=loop_that_jax_lacks()).fit(5, backend="jax", progressbar=False)


# ------------------------------------------------------------- what is known before a fit is folded


def masked_by_data():
    late = Y > 0.3
    with pm.Model() as model:
        mu = pm.Normal("mu", shape=12)
        pm.Normal("y", mu[~late], 1, observed=Y[~late])
        pm.Potential("late", pm.logcdf(pm.Normal.dist(mu[late], 1), Y[late]).sum())
    return model


def masked_in_the_graph():
    y = pt.constant(Y)
    with pm.Model() as model:
        mu = pm.Normal("mu", shape=12)
        pm.Potential("seen", -((mu[y > 0.3] - y[y > 0.3]) ** 2).sum())
    return model


def walk_along_a_dim():
    """Its log density splits the walk by the length of the dim, which PyMC lets change."""
    with pm.Model(coords={"time": range(12)}) as model:
        sigma = pm.Exponential("sigma", 10)
        walk = pm.GaussianRandomWalk("walk", sigma=sigma, init_dist=pm.Normal.dist(), dims="time")
        pm.Normal("y", walk, 1, observed=Y, dims="time")
    return model


def loop_along_a_dim():
    """A loop fills an array as long as the dim, whose gradient asks for its shape."""
    with pm.Model(coords={"time": range(4)}) as model:
        x = pm.Normal("x", dims="time")
        states = pytensor.scan(
            lambda s, x: 0.5 * s + x.sum(),
            outputs_info=[pt.zeros(())],
            non_sequences=[x],
            n_steps=model.dim_lengths["time"],
            return_updates=False,
        )
        pm.Normal("y", states[-1], 1, observed=1.0)
    return model


def missing_values():
    with pm.Model() as model:
        mu = pm.Normal("mu")
        with pytest.warns(pm.exceptions.ImputationWarning):
            pm.Normal("y", mu, 1, observed=np.ma.masked_array(Y, Y > 1))
    return model


@pytest.mark.parametrize(
    "build",
    [masked_by_data, masked_in_the_graph, walk_along_a_dim, loop_along_a_dim, missing_values],
)
def test_masks_and_sizes_that_are_known_run_on_jax(build):
    density = ModelDensity(build())
    assert choose_backend(None, build_chain("loc", density.dim), density, 4) == "jax"


def test_a_length_that_is_held_is_looked_at_anew_in_another_density():
    model = walk_along_a_dim()
    before = ModelDensity(model)
    point = np.linspace(0, 1, before.dim)
    expected = model.compile_logp(mode=AS_WRITTEN)({"sigma_log__": point[0], "walk": point[1:]})
    np.testing.assert_allclose(LogDensity(before).value(point[None]), expected, rtol=1e-10)


def lengths_and_masks_of_data():
    """How long a loop is, a mask, and a size: all of them data that may change."""
    with pm.Model() as model:
        n, late = pm.Data("n", np.array(4)), pm.Data("late", Y > 0.3)
        x, mu = pm.Normal("x"), pm.Normal("mu", shape=12)
        states = pytensor.scan(
            lambda s, x: 0.5 * s + x,
            outputs_info=[pt.zeros(())],
            non_sequences=[x],
            n_steps=n.astype("int64"),
            return_updates=False,
        )
        pm.Normal("y", states[-1], 1, observed=1.0)
        pm.Potential("late_ones", -(mu[late] ** 2).sum())
    return model


def a_size_of_data():
    with pm.Model() as model:
        n = pm.Data("n", np.array(5))
        pm.Normal("y", pm.Normal("x") * pt.arange(n), 1, observed=Y[:5])
    return model


def mask_of_data():
    with pm.Model() as model:
        y = pm.Data("seen", Y)
        mu = pm.Normal("mu", shape=12)
        pm.Potential("p", -((mu[y > 0.3] - y[y > 0.3]) ** 2).sum())
    return model


@pytest.mark.parametrize("build", [lengths_and_masks_of_data, a_size_of_data, mask_of_data])
def test_lengths_of_data_that_can_change_run_on_jax(build):
    density = ModelDensity(build())
    assert choose_backend(None, build_chain("loc", density.dim), density, 4) == "jax"


def mask_of_latents():
    with pm.Model() as model:
        x = pm.Normal("x", shape=3)
        pm.Potential("p", -(x[x > 0] ** 2).sum())
    return model


def test_lengths_that_latents_decide_run_on_numba_by_themselves(caplog):
    density = ModelDensity(mask_of_latents())
    with caplog.at_level(logging.INFO, "pymc_flows"):
        assert choose_backend(None, build_chain("loc", density.dim), density, 4) == "numba"
    assert "JAX cannot run the model: AdvancedSubtensor fails" in caplog.text


def test_series_for_derivatives_run_on_numba_by_themselves(caplog):
    """JAX has the function, and not its derivative by a parameter."""
    with pm.Model() as model:
        nu = pm.Gamma("nu", 2, 1)
        pm.Potential("p", pt.log(pt.betainc(nu, 0.5, pt.constant(Y**2 / (1 + Y**2)))).sum())
    density = ModelDensity(model)
    with caplog.at_level(logging.INFO, "pymc_flows"):
        assert choose_backend(None, build_chain("loc", density.dim), density, 4) == "numba"
    assert "JAX cannot run the model" in caplog.text


def test_what_jax_cannot_compile_after_all_is_fitted_on_numba(monkeypatch, caplog):
    """Trying a density out does not see everything that a fit makes of it."""
    monkeypatch.setattr(DryRun, "why_not_jax", lambda *_: "")
    with pytest.raises(IndexError, match="boolean"):
        pmf.NFVI("loc", model=mask_of_latents()).fit(3, backend="jax", progressbar=False)
    assert_fitted_on_numba(caplog)
    assert len([m for m in caplog.messages if "JAX cannot compile the fit" in m]) == 1


def assert_fitted_on_numba(caplog):
    """The same graph for all tests: numba takes long."""
    inference = pmf.NFVI("loc", model=mask_of_latents(), random_seed=1)
    with caplog.at_level(logging.WARNING, "pymc_flows"):
        inference.fit(3, obj_n_mc=1, obj_optimizer=pm.sgd(learning_rate=0.01), progressbar=False)
    assert inference.state.config.backend == "numba"
    assert np.isfinite(inference.hist).all()
    assert len(inference.hist) == 3


def test_what_jax_cannot_trace_is_compiled_by_numba(monkeypatch, caplog):
    original = TrainingLoop.compile

    def compile_elsewhere(self):
        if self.idle_seconds == 0 and self._length is not None:
            raise TypeError("no concrete value")
        original(self)

    monkeypatch.setattr(TrainingLoop, "compile", compile_elsewhere)
    monkeypatch.setattr(DryRun, "why_not_jax", lambda *_: "")
    assert_fitted_on_numba(caplog)
    assert "JAX cannot compile the fit (TypeError: no concrete value)" in caplog.text
