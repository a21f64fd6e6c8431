"""Values and gradients of whole batches equal those of single draws, for every kind of model."""

import numpy as np
import pytest
from models import ZOO
from single_draws import assert_equal_to_single_draws, by_variable, points_near

from pymc_flows.density import ModelDensity
from pymc_flows.modes import NUMPY, training_mode

# Cases for what differs between backends: shapes in gradients, linear algebra, loops, lookups.
ON_JAX = ("eight_schools", "ordered", "mixture_of_kinds", "indexing", "lkj_cholesky", "gp_latent")
IN_LOOPS = ("eight_schools", "normal_mixture", "random_walks", "indexing", "with_data", "garch")


@pytest.mark.parametrize("name", ZOO)
def test_vectorised_draws_equal_single_ones(name):
    assert_equal_to_single_draws(ZOO[name](), 5)


@pytest.mark.parametrize("micro_batch", [None, 2])
@pytest.mark.parametrize("name", IN_LOOPS)
def test_loops_over_draws_equal_single_ones(name, micro_batch):
    assert_equal_to_single_draws(ZOO[name](), micro_batch)


@pytest.mark.parametrize("name", ON_JAX)
def test_vectorised_draws_equal_single_ones_on_jax(name):
    assert_equal_to_single_draws(ZOO[name](), 5, mode=training_mode("jax"))


@pytest.mark.parametrize("name", ["garch", "hidden_markov", "random_walks"])
def test_loops_over_draws_equal_single_ones_on_jax(name):
    assert_equal_to_single_draws(ZOO[name](), None, mode=training_mode("jax"))


def test_the_reference_is_what_pymc_compiles():
    model = ZOO["eight_schools"]()
    density = ModelDensity(model)
    point = points_near(density, 1)[0]
    from single_draws import reference, value_and_grad

    expected = model.compile_logp(mode=NUMPY)(by_variable(density, point))
    gradient = model.compile_dlogp(mode=NUMPY)(by_variable(density, point))
    values, grads = reference(model, point[None])
    assert values[0] == pytest.approx(float(expected), rel=1e-12)
    np.testing.assert_allclose(grads[0], gradient, rtol=1e-10)
    values, grads = value_and_grad(density, point[None], None)
    assert values[0] == pytest.approx(float(expected), rel=1e-12)
    np.testing.assert_allclose(grads[0], gradient, rtol=1e-10)
