"""Functions of the kernels against NumPy, over all that a parameter can be."""

import numpy as np
import pytest

from pymc_flows.flows.kernels.scalar import functions
from pymc_flows.flows.numerics import floor

plain = functions(lambda function: function)


def test_tanh_has_the_precision_of_the_library():
    x = np.concatenate([np.linspace(-25, 25, 4001), np.geomspace(1e-300, 1, 500), [1e300, np.inf]])
    x = np.concatenate([x, -x])
    got = np.array([plain.tanh(v) for v in x])
    np.testing.assert_allclose(got, np.tanh(x), rtol=8e-16)
    assert np.isnan(plain.tanh(np.nan))


@pytest.mark.parametrize("x", [-1e6, -800, -40, -1e-3, 0.0, 1e-3, 1, 40, 800, 1e6])
def test_softplus_and_its_derivative_on_both_sides(x):
    value, slope, mirrored, mirrored_slope = plain.softplus(x)
    np.testing.assert_allclose(value, np.logaddexp(0, x), rtol=1e-15)
    np.testing.assert_allclose(mirrored, np.logaddexp(0, -x), rtol=1e-15)
    np.testing.assert_allclose(slope, np.exp(-np.logaddexp(0, -x)), rtol=1e-13)
    np.testing.assert_allclose(mirrored_slope, np.exp(-np.logaddexp(0, x)), rtol=1e-13)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_thresholds_are_those_of_the_graphs(dtype):
    itemsize = np.dtype(dtype).itemsize
    assert plain.floor(itemsize) == floor(dtype)
    assert plain.tiny(itemsize) == np.sqrt(np.finfo(dtype).tiny)
