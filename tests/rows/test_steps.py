"""Each step of the compiled loop sees its own rows, on both backends, whatever ends a call."""

import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest

from pymc_flows.rows import Rows
from steps import loop_of, state_of, step_of

DATA = np.random.default_rng(4).normal(size=(50, 3))


def rows_and_loop(backend):
    rows = Rows.arrays({"x": DATA}, batch_size=8)
    x = rows["x"]
    step = step_of(
        pm.sgd(learning_rate=0.1),
        lambda noise, a, b: pt.sqr(a - x.mean(axis=0)).sum() + 0 * (b + noise.sum()),
        batch=(x,),
    )
    return rows, loop_of(step, backend, batches=rows.feed(["x"], 3), max_chunk=6)


@pytest.mark.parametrize("backend", ["jax", "numba"])
def test_steps_see_their_rows(backend):
    rows, loop = rows_and_loop(backend)
    [batches] = rows.buffers(12, ["x"])
    rows.feed(["x"], 3).fill(0, [batches])
    losses = [loop.run(np.zeros((n, 0))).losses for n in (1, 6)]
    loop.fail()  # its rows are used up, too
    kept = loop.state_dict()
    losses.append(loop.run(np.zeros((4, 0))).losses)
    a, expected = np.array([1.0, 2.0, 3.0]), []
    for k, batch in enumerate(batches):
        error = a - batch.mean(axis=0)
        if k != 7:
            expected.append(np.square(error).sum())
            a = a - 0.2 * error
    np.testing.assert_allclose(np.concatenate(losses), expected, rtol=1e-12)
    np.testing.assert_allclose(state_of(loop.step)[0], a, rtol=1e-12)
    assert kept["batches"]["taken"] == 8
    loop.load_state_dict(kept, lambda name, *_: kept["arrays"][name])
    assert loop.state_dict()["batches"] == kept["batches"]
