"""Gradients at many points: NumPy at first, and what is faster once calls have taken long."""

import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest

from pymc_flows.field import gradient as module
from pymc_flows.field.gradient import BatchedGradient
from pymc_flows.model.logp import density_of

GROUP = np.arange(60) % 6


@pytest.fixture
def density():
    with pm.Model() as model:
        effects = pm.Normal("effects", 0, 1, shape=6)
        pm.Poisson("y", pt.exp(effects[GROUP]), observed=GROUP)
    return density_of(model)


@pytest.mark.jax
@pytest.mark.parametrize("compiled_takes", [0.001, 1.0])
def test_the_faster_of_two_stays(density, compiled_takes, monkeypatch):
    monkeypatch.setattr(module, "FAST", 0.0)
    monkeypatch.setattr(module, "PATIENCE", {"jax": 0.5, "numba": 0.5})
    now = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    found = BatchedGradient(density)
    plain, compile_ = found._plain, found._compile
    calls = {"plain": 0, "compiled": 0}

    def timed(function, name, takes):
        def call(points):
            calls[name] += 1
            now[0] += takes * len(points)
            return function(points)

        return call

    found._plain = timed(plain, "plain", 0.05)
    found._compile = lambda: timed(compile_(), "compiled", compiled_takes)
    points = np.random.default_rng(1).standard_normal((8, 6))
    expected = plain(points)
    for _ in range(4):
        for mine, theirs in zip(found(points), expected, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-10)
    # It is tried out after two calls: 0.4 s each.
    assert calls["plain"] == (2 if compiled_takes < 0.05 else 4)
    assert calls["compiled"] == (4 if compiled_takes < 0.05 else 2)
