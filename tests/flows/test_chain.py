"""Blocks and chains: order, parameters and refusals."""

import re

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.graph.traversal import toposort

from flow_cases import ALL_FIVE, compiled, evaluate, fixed, normal_params, shared_params
from pymc_flows.backends.modes import NUMPY
from pymc_flows.errors import FlowError, FlowShapeError, FormulaError
from pymc_flows.flows import Block, Chain, Loc, Planar, Scale, build_chain


def test_direction_a_formula_reads_from_base_to_posterior():
    chain = build_chain("scale-loc", 1)
    params = shared_params([{"rho": [[np.log(np.expm1(2))]]}, {"loc": [[3]]}])
    z, log_det = evaluate(*chain.forward_and_log_det(fixed([1]), params))
    # First doubled, then shifted; log_det is that of this direction.
    np.testing.assert_allclose(z, [5], rtol=1e-15)
    assert log_det == pytest.approx(np.log(2), rel=1e-14)
    z, log_det = evaluate(*chain.inverse_and_log_det(fixed([5]), params))
    np.testing.assert_allclose(z, [1], rtol=1e-15)
    assert log_det == pytest.approx(np.log(2), rel=1e-14)


def test_blocks_follow_the_formula():
    chain = build_chain("(planar*2-loc)*2-loc-scale", 3)
    expected = [(Planar(), 2), (Loc(), 1), (Planar(), 2), (Loc(), 2), (Scale(), 1)]
    assert chain == Chain(3, tuple(Block(layer, count) for layer, count in expected))
    assert len(chain) == 8
    with pytest.raises(FormulaError):
        build_chain("panar*2", 3)


def test_param_shapes_are_stacked_and_alphabetical():
    shapes = build_chain("radial*2-hh-planar*3", 4).param_shapes()
    assert [list(each.items()) for each in shapes] == [
        [("a", (2,)), ("b", (2,)), ("z_ref", (2, 4))],
        [("v", (1, 4))],
        [("b", (3,)), ("u", (3, 4)), ("w", (3, 4))],
    ]


def test_promises_hold_for_a_chain_if_they_hold_for_each_layer():
    promises = {
        formula: [
            chain.has_inverse,
            chain.is_volume_preserving,
            chain.is_affine,
            chain.is_elementwise,
        ]
        for formula in ("loc", "scale-loc", "hh*2-loc", "scale-hh-loc", ALL_FIVE)
        for chain in [build_chain(formula, 2)]
    }
    assert promises == {
        "loc": [True, True, True, True],
        "scale-loc": [True, False, True, True],
        "hh*2-loc": [True, True, True, False],
        "scale-hh-loc": [True, False, True, False],
        ALL_FIVE: [True, False, False, False],
    }


def test_initial_params_are_the_reference_plus_jitter():
    chain = build_chain("loc*500-scale", 4)
    quiet, _ = chain.initial_params(jitter=0, rng=np.random.default_rng(1), dtype="float64")
    noisy, _ = chain.initial_params(jitter=0.01, rng=np.random.default_rng(1), dtype="float64")
    again, _ = chain.initial_params(jitter=0.01, rng=np.random.default_rng(1), dtype="float64")
    assert quiet["loc"].shape == (500, 4)
    assert not quiet["loc"].any()
    np.testing.assert_array_equal(noisy["loc"], again["loc"])
    np.testing.assert_allclose(noisy["loc"].std(), 0.01, rtol=0.1)
    np.testing.assert_allclose(noisy["loc"].mean(), 0, atol=0.001)


def test_jitter_leaves_the_random_part_of_a_reference_as_it_is():
    chain = build_chain(ALL_FIVE, 3)
    starts = [
        chain.initial_params(jitter=jitter, rng=np.random.default_rng(2), dtype="float64")
        for jitter in (0, 1e-6)
    ]
    for quiet, noisy in zip(*starts, strict=True):
        for name in quiet:
            assert 0 < np.abs(quiet[name] - noisy[name]).max() < 1e-5


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_initial_params_have_the_type_asked_for(dtype):
    chain = build_chain(ALL_FIVE, 3)
    start = chain.initial_params(jitter=0.1, rng=np.random.default_rng(0), dtype=dtype)
    assert {value.dtype for each in start for value in each.values()} == {np.dtype(dtype)}


def test_lengths_that_are_not_static_are_checked_when_run(rng):
    chain = build_chain("planar*2-loc", 3)
    points, loc = pt.matrix("points"), pt.matrix("loc")
    params = normal_params(chain, rng)
    outputs = chain.forward_and_log_det(points, (params[0], {"loc": loc}))
    assert outputs[0].type.shape == (None, 3)
    function = compiled([points, loc], outputs)
    assert function(np.zeros((5, 3)), np.zeros((1, 3)))[0].shape == (5, 3)
    with pytest.raises(AssertionError, match="SpecifyShape"):
        function(np.zeros((5, 1)), np.zeros((1, 3)))
    with pytest.raises(AssertionError, match="SpecifyShape"):
        function(np.zeros((5, 3)), np.zeros((2, 3)))


def refusal(match):
    return pytest.raises(FlowShapeError, match=re.escape(match))


def test_wrong_points_are_refused(rng):
    chain = build_chain("loc", 3)
    params = normal_params(chain, rng)
    with refusal("points must have shape (..., 3), got a scalar"):
        chain.forward_and_log_det(fixed(0), params)
    with refusal("points must have shape (5, 3), got (5, 1)"):
        chain.inverse_and_log_det(fixed(np.zeros((5, 1))), params)


def test_wrong_params_are_refused():
    chain, points = build_chain("loc-scale*2", 3), fixed(np.zeros(3))
    loc, rho = {"loc": np.zeros((1, 3))}, {"rho": np.zeros((2, 3))}
    with refusal("expected parameters of 2 blocks, got 1"):
        chain.forward_and_log_det(points, (loc,))
    with refusal("block 1 (scale) expects the parameters rho, got sigma"):
        chain.forward_and_log_det(points, (loc, {"sigma": rho["rho"]}))
    with refusal("rho of block 1 (scale) must have shape (2, 3), got (3,)"):
        chain.forward_and_log_det(points, (loc, {"rho": np.zeros(3)}))
    with refusal("loc of block 0 (loc) must have shape (1, 3), got (1, 1)"):
        chain.forward_and_log_det(points, ({"loc": np.zeros((1, 1))}, rho))


@pytest.mark.parametrize("value", [0, -1, 2.0, True, None, "3"])
def test_counts_and_dimensions_are_positive_integers(value):
    with pytest.raises(FlowShapeError, match="at least 1"):
        Block(Loc(), value)
    with pytest.raises(FlowShapeError, match="at least 1"):
        Chain(value, (Block(Loc()),))
    with pytest.raises(FlowShapeError, match="at least 1"):
        build_chain("loc", value)


@pytest.mark.parametrize("blocks", [(), [Block(Loc())], None], ids=str)
def test_blocks_are_a_tuple(blocks):
    with refusal("a chain needs a tuple of blocks"):
        Chain(2, blocks)


def test_an_unknown_loop_is_refused(rng):
    chain = build_chain("loc", 2)
    with pytest.raises(FlowError, match="'scan' or 'kernel', got 'while'"):
        chain.forward_and_log_det(fixed([0, 0]), normal_params(chain, rng), loop="while")


@pytest.mark.parametrize(("n", "copied"), [(3, True), (300, False), (None, False)])
def test_a_fused_block_takes_few_points_layer_by_layer_in_loops(n, copied, rng):
    chain = build_chain("hh*4", 2)
    params = chain.initial_params(jitter=1.0, rng=rng, dtype="float64")
    z = pt.tensor("z", shape=(n, 2), dtype="float64")
    value = rng.normal(size=(n or 5, 2))
    by_loop, plain = (
        chain.forward_and_log_det(z, params, loop=loop)[0] for loop in ("scan", "unroll")
    )
    names = {str(node.op) for node in toposort([by_loop])}
    assert any("SolveTriangular" in name for name in names) is not copied
    one, other = (pytensor.function([z], out, mode=NUMPY)(value) for out in (by_loop, plain))
    np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-13)
