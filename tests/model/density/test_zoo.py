"""Values and gradients of whole batches equal those of single draws, for every kind of model."""

from functools import cache

import numpy as np
import pytest

from as_written import AS_WRITTEN
from models import ZOO
from pymc_flows.backends.modes import NUMPY, training_mode
from pymc_flows.model.logp import ModelDensity
from single_draws import assert_equal, by_variable, points_near, reference, value_and_grad

# Cases for what differs between backends: shapes in gradients, linear algebra, loops, lookups.
ON_JAX = ("eight_schools", "ordered", "mixture_of_kinds", "indexing", "gp_latent")
IN_LOOPS = ("eight_schools", "normal_mixture", "random_walks", "indexing", "with_data", "garch")


@cache
def case(name):
    """Density, points, and their values and gradients from PyMC."""
    model = ZOO[name]()
    density = ModelDensity(model)
    points = points_near(density, 5)
    # As it is written, PyTensor's gradient overflows there, as its int8 constants do.
    mode = NUMPY if name == "small_integers" else AS_WRITTEN
    return density, points, reference(model, points, mode)


@pytest.mark.parametrize("name", ZOO)
def test_vectorised_draws_equal_single_ones(name):
    density, points, expected = case(name)
    assert_equal(value_and_grad(density, points, 5), expected)


@pytest.mark.parametrize("micro_batch", [None, 2])
@pytest.mark.parametrize("name", IN_LOOPS)
def test_loops_over_draws_equal_single_ones(name, micro_batch):
    density, points, expected = case(name)
    assert_equal(value_and_grad(density, points, micro_batch), expected)


@pytest.mark.parametrize("name", ON_JAX)
def test_vectorised_draws_equal_single_ones_on_jax(name):
    density, points, expected = case(name)
    assert_equal(value_and_grad(density, points, 5, training_mode("jax")), expected)


@pytest.mark.parametrize("name", ["garch", "hidden_markov", "random_walks"])
def test_loops_over_draws_equal_single_ones_on_jax(name):
    density, points, expected = case(name)
    assert_equal(value_and_grad(density, points, None, training_mode("jax")), expected)


def test_the_reference_is_what_pymc_compiles():
    density, points, (values, grads) = case("eight_schools")
    at = by_variable(density, points[0])
    expected = float(density.model.compile_logp(mode=NUMPY)(at))
    assert values[0] == pytest.approx(expected, rel=1e-12)
    gradient = density.model.compile_dlogp(mode=NUMPY)(at)
    np.testing.assert_allclose(grads[0], gradient, rtol=1e-10)
