"""Log densities and gradients draw by draw, straight from PyMC: what batches are held against."""

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
from numpy.testing import assert_allclose

from as_written import AS_WRITTEN
from pymc_flows.backends.modes import NUMPY
from pymc_flows.model.logp import ModelDensity


def points_near(density: ModelDensity, n: int, scale: float = 0.3) -> np.ndarray:
    """Points (n, dim) around the model's initial point."""
    start = density.start()
    noise = np.random.default_rng(0).standard_normal((n, density.dim))
    return (start + scale * noise).astype(start.dtype)


def by_variable(density: ModelDensity, point: np.ndarray) -> dict[str, np.ndarray]:
    return {s.name: point[s.slice].reshape(s.shape).astype(s.dtype) for s in density.slots}


def reference(
    model: pm.Model, points: np.ndarray, mode=AS_WRITTEN
) -> tuple[np.ndarray, np.ndarray]:
    """`model.logp()` (n,) and its gradient (n, dim), one point after the other."""
    density = ModelDensity(model)
    logp = model.logp()
    outputs = [logp, *pytensor.grad(logp, model.value_vars, disconnected_inputs="ignore")]
    # As `model.compile_logp` does, but for both at once and nearly without rewrites.
    fn = pm.compile(model.value_vars, outputs, mode=mode, on_unused_input="ignore")
    rows = [fn(*by_variable(density, point).values()) for point in points]
    values = np.array([row[0] for row in rows])
    grads = np.stack([np.concatenate([np.ravel(x) for x in row[1:]]) for row in rows])
    return values, grads


def value_and_grad(density, points, micro_batch, mode=NUMPY):
    """Sum of the terms (n,) and its gradient (n, dim), all points in one call."""
    z = pt.matrix("z", shape=points.shape, dtype=points.dtype)
    (prior, data), grad, _ = density.value_and_grad(z, weights=[1.0, 1.0], micro_batch=micro_batch)
    return pytensor.function([z], [prior + data, grad], mode=mode)(points)


def assert_equal(found, expected, rtol=1e-9):
    """Values and gradients, up to rounding."""
    (values, grads), (expected_values, expected_grads) = found, expected
    assert np.isfinite(expected_values).any()
    assert_allclose(values, expected_values, rtol=rtol, atol=rtol)
    assert_allclose(grads, expected_grads, rtol=1e2 * rtol, atol=1e2 * rtol)
