"""Steps of the training loop that are small enough to be followed by hand."""

import numpy as np
import pytensor
import pytensor.tensor as pt

from pymc_flows.backends.modes import NUMPY
from pymc_flows.training.loop import Step, TrainingLoop

DRAWS, DIM = 2, 3


def noise_of(n):
    """The base noise of the first n steps, as anyone can draw it with NumPy."""
    return np.random.default_rng(np.random.SeedSequence(1)).standard_normal((n, DRAWS, DIM))


def step_of(optimizer, loss_of=None, **fields):
    """A step with parameters a (3,) and b () and a loss that is not a quadratic."""
    noise = pt.matrix("z0", shape=(DRAWS, DIM))
    a = pytensor.shared(np.array([1.0, 2.0, 3.0]), "a", shape=(3,))
    b = pytensor.shared(np.array(0.5), "b", shape=())
    if loss_of is None:
        loss = pt.log1p(pt.sqr(noise * pt.exp(b) + a).sum(axis=-1)).mean()
    else:
        loss = loss_of(noise, a, b)
    grads = pytensor.grad(loss, [a, b], disconnected_inputs="ignore")
    updates = optimizer(grads, [a, b])
    return Step(noise, loss, dict(zip("ab", grads, strict=True)), updates, **fields)


def loop_of(step, backend="jax", *, model_seed=2, **kwargs):
    return TrainingLoop(
        step,
        backend=backend,
        noise_seed=np.random.SeedSequence(1),
        model_seed=np.random.SeedSequence(model_seed),
        **kwargs,
    )


def by_hand(step, noise):
    """Losses, then values of all that the step updates, by one Python call per step."""
    one = pytensor.function([step.noise], step.loss, updates=list(step.updates.items()), mode=NUMPY)
    losses = [float(one(z)) for z in noise]
    return np.array(losses), [v.get_value() for v in step.updates]


def state_of(step):
    return [np.array(v.get_value()) for v in step.updates]


def param(step, name):
    return next(v for v in step.updates if v.name == name)


def assert_same(values, expected, rtol=1e-12):
    for value, other in zip(values, expected, strict=True):
        np.testing.assert_allclose(value, other, rtol=rtol, atol=1e-14)


def assert_identical(values, expected):
    for value, other in zip(values, expected, strict=True):
        np.testing.assert_array_equal(value, other)


def run(loop, n):
    """Take n steps with settings of 0."""
    return loop.run(np.zeros((n, len(loop.step.settings))))
