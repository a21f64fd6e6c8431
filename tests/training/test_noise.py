"""Where base noise comes from."""

import numpy as np
import pymc as pm
import pytest
from scipy import stats

from pymc_flows.training.loop import noise as _noise
from pymc_flows.training.loop.noise import aligned_zeros, standard_normal_by_jax
from steps import DIM, DRAWS, by_hand, loop_of, step_of


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(1, 3, 2), (7, 1, 1), (1000, 3, 7)])
def test_noise_lies_where_jax_takes_it_as_it_is(shape, dtype):
    noise = aligned_zeros(shape, dtype)
    assert noise.shape == shape
    assert noise.dtype == dtype
    assert not noise.any()
    assert noise.ctypes.data % 64 == 0
    assert noise.flags.c_contiguous
    assert noise.flags.writeable


def by_jax(rng, n, length, dtype="float64"):
    return np.array(standard_normal_by_jax(rng, n, (length, DRAWS, DIM), dtype))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_jax_draws_is_standard_normal(dtype):
    drawn = by_jax(np.random.default_rng(1), 4_000, 4_000, dtype)
    assert drawn.dtype == dtype
    assert len(np.unique(drawn)) > 0.99 * drawn.size
    assert stats.kstest(drawn.ravel(), "norm").pvalue > 0.01
    assert np.abs(np.corrcoef(drawn.reshape(4_000, -1).T) - np.eye(DRAWS * DIM)).max() < 0.06


def test_what_jax_draws_does_not_depend_on_the_length_of_a_call():
    rng = np.random.default_rng(1)
    parts = [by_jax(rng, 3, 5)[:3], by_jax(rng, 4, 8)[:4]]
    np.testing.assert_array_equal(np.concatenate(parts), by_jax(np.random.default_rng(1), 7, 7))


def test_a_fit_on_an_accelerator(monkeypatch):
    monkeypatch.setattr(_noise, "is_on_accelerator", lambda: True)
    noise = by_jax(np.random.default_rng(np.random.SeedSequence(1)), 7, 7)
    losses, state = by_hand(step_of(pm.adam(learning_rate=0.05)), noise)
    step = step_of(pm.adam(learning_rate=0.05))
    loop = loop_of(step, max_chunk=4)
    found = [loop.run(np.zeros((n, 0))).losses for n in (4, 1, 2)]
    np.testing.assert_allclose(np.concatenate(found), losses, rtol=1e-10)
    for variable, value in zip(step.updates, state, strict=True):
        np.testing.assert_allclose(variable.get_value(), value, rtol=1e-10)


def test_a_cpu_is_no_accelerator():
    assert not _noise.is_on_accelerator()
