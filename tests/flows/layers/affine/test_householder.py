"""Reflections, single and fused."""

import numpy as np
import pytensor.tensor as pt
import pytest

from flow_cases import evaluate, fixed, one_block, shared_params
from pymc_flows.flows import Block, Chain, Householder

LAYER = Householder()


def matrix(chain, v):
    """The matrix A of z' = A z: its columns are the images of the unit points."""
    z, _ = chain.forward_and_log_det(np.eye(chain.dim), shared_params([{"v": v}]))
    return evaluate(z)[0].T


def reflection(v):
    return np.eye(len(v)) - 2 * np.outer(v, v) / (v @ v)


def test_a_reflection_by_hand():
    np.testing.assert_allclose(
        matrix(one_block(LAYER, 1, 2), [[3, 4]]), [[0.28, -0.96], [-0.96, -0.28]], rtol=1e-14
    )


@pytest.mark.parametrize("dim", [1, 2, 5, 9])
@pytest.mark.parametrize("count", [1, 2, 3, 8, 100])
def test_a_block_is_the_product_of_its_reflections(count, dim, rng):
    v = rng.standard_normal((count, dim))
    expected = np.eye(dim)
    for row in v:
        expected = reflection(row) @ expected
    chain = one_block(LAYER, count, dim)
    np.testing.assert_allclose(matrix(chain, v), expected, rtol=0, atol=1e-13)
    z, _ = chain.inverse_and_log_det(np.eye(dim), shared_params([{"v": v}]))
    np.testing.assert_allclose(evaluate(z)[0].T, expected.T, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dim", [1, 2, 5, 9])
@pytest.mark.parametrize("count", [2, 3, 8])
@pytest.mark.parametrize("loop", ["unroll", "scan"])  # fused, and one by one
def test_gradients_of_a_block_are_those_of_single_layers(count, dim, loop, rng):
    v = rng.standard_normal((count, dim))
    fused, single = fixed(v), [fixed(row[None]) for row in v]
    points = fixed(rng.standard_normal((4, dim)))
    chains = (one_block(LAYER, count, dim), Chain(dim, (Block(LAYER),) * count))
    losses = []
    for chain, params in zip(chains, ([{"v": fused}], [{"v": row} for row in single]), strict=True):
        forward, _ = chain.forward_and_log_det(points, params, loop=loop)
        inverse, _ = chain.inverse_and_log_det(points, params, loop=loop)
        losses.append(pt.sin(forward).sum() + pt.cos(inverse).sum())
    together, *rows = evaluate(pt.grad(losses[0], fused), *pt.grad(losses[1], single))
    np.testing.assert_allclose(together, np.concatenate(rows), rtol=0, atol=1e-12)


@pytest.mark.parametrize("count", [2, 4, 100])
def test_pairs_start_at_the_identity(count):
    chain = one_block(LAYER, count, 3)
    (start,) = chain.initial_params(jitter=0, rng=np.random.default_rng(5), dtype="float64")
    np.testing.assert_array_equal(start["v"][::2], start["v"][1::2])
    assert len(np.unique(start["v"], axis=0)) == count // 2
    np.testing.assert_allclose(np.linalg.norm(start["v"], axis=1), 1, rtol=1e-14)
    np.testing.assert_allclose(matrix(chain, start["v"]), np.eye(3), rtol=0, atol=1e-13)


@pytest.mark.parametrize("count", [1, 5])
def test_an_odd_block_starts_at_one_reflection(count):
    chain = one_block(LAYER, count, 3)
    (start,) = chain.initial_params(jitter=0, rng=np.random.default_rng(5), dtype="float64")
    a = matrix(chain, start["v"])
    np.testing.assert_allclose(a @ a.T, np.eye(3), rtol=0, atol=1e-13)
    np.testing.assert_allclose(a, reflection(start["v"][-1]), rtol=0, atol=1e-13)


@pytest.mark.parametrize(("dtype", "short"), [("float64", 1e-200), ("float32", 1e-25)])
def test_without_a_direction_the_first_axis_is_reflected(dtype, short):
    v = fixed([[0, 0, 0], [0, short, 0]], dtype=dtype)
    params = LAYER.constrain({"v": v})
    axis, c = evaluate(params["v"], params["c"])
    assert axis.dtype == c.dtype == dtype
    assert axis.tolist() == [[1, 0, 0], [1, 0, 0]]
    assert c.tolist() == [2, 2]


def test_in_one_dimension_nothing_can_be_learnt(rng):
    v = fixed(rng.standard_normal((3, 1)))
    z, _ = one_block(LAYER, 3, 1).forward_and_log_det(fixed([[0.5]]), [{"v": v}])
    value, slope = evaluate(z, pt.grad(pt.sin(z).sum(), v))
    np.testing.assert_allclose(value, [[-0.5]], rtol=1e-14)
    np.testing.assert_allclose(slope, 0, rtol=0, atol=1e-14)
    assert "gradient is zero" in LAYER.note(1)
    assert LAYER.note(2) == ""
