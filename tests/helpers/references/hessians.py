"""Hessians and Jacobians that know nothing of structure: by automatic and by plain differences."""

import numpy as np
import pytensor
import pytensor.tensor as pt

from as_written import AS_WRITTEN
from pymc_flows.backends.modes import no_compiler
from pymc_flows.model.log_density import LogDensity
from pymc_flows.model.logp import ModelDensity


def automatic_hessian(density: ModelDensity, z: np.ndarray) -> np.ndarray:
    """Hessian (dim, dim) of a log density at z: one product with a unit vector per column."""
    point = pt.vector("point", shape=(density.dim,))
    direction = pt.vector("direction", shape=(density.dim,))
    with no_compiler():
        total = sum(density.single(point))
        gradient = pytensor.grad(total, point)
        along = pytensor.grad((gradient * direction).sum(), point, disconnected_inputs="ignore")
        fn = pytensor.function([point, direction], along, mode=AS_WRITTEN, on_unused_input="ignore")
    with np.errstate(all="ignore"):
        return np.array([fn(z, row) for row in np.eye(density.dim)])


def differenced_hessian(density: ModelDensity, z: np.ndarray) -> np.ndarray:
    """Hessian (dim, dim) of a log density at z by central differences of its gradient."""
    steps = 1e-5 * np.eye(density.dim)
    gradient = LogDensity(density).value_and_grad
    return (gradient(z + steps)[1] - gradient(z - steps)[1]) / 2e-5


def start_near(density: ModelDensity, seed: int = 1, scale: float = 0.1) -> np.ndarray:
    """A point near the start, where nothing is zero by chance."""
    return density.start() + scale * np.random.default_rng(seed).standard_normal(density.dim)
