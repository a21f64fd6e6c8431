"""Chains on arrays: the same numbers as their graphs, from a few shared functions."""

import dataclasses
from typing import ClassVar

import numpy as np
import pytensor.tensor as pt
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import pymc_flows as pmf
from pymc_flows.backends.modes import NUMPY
from pymc_flows.errors import NotInvertibleError
from pymc_flows.flows import Block, Chain, Loc, build_chain
from pymc_flows.flows.evaluate import _stage_function, forward_and_log_det, inverse_and_log_det

ALL_FIVE = "scale-radial*2-hh*3-planar*2-hh-loc"
FORMULAS = ["loc", "scale", "hh", "hh*7", "planar*3", "radial*3", ALL_FIVE]


def far_params(chain, rng, dtype="float64"):
    """Raw values N(0, 1) of each block."""
    return tuple(
        {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
        for shapes in chain.param_shapes()
    )


def by_graph(chain, points, params, *, inverse=False):
    """The reference: the chain's own graph on constants."""
    constants = [{k: pt.constant(v) for k, v in block.items()} for block in params]
    method = chain.inverse_and_log_det if inverse else chain.forward_and_log_det
    return [x.eval(mode=NUMPY) for x in method(pt.constant(points), constants)]


@pytest.mark.parametrize("dim", [1, 3])
@pytest.mark.parametrize("formula", FORMULAS)
def test_both_directions_agree_with_the_graph(rng, formula, dim):
    chain = build_chain(formula, dim)
    params = far_params(chain, rng)
    z = 2 * rng.standard_normal((11, dim))
    y, log_det = forward_and_log_det(chain, z, params)
    assert (y.shape, log_det.shape) == ((11, dim), (11,))
    for found, expected in zip((y, log_det), by_graph(chain, z, params), strict=True):
        assert_allclose(found, expected, rtol=1e-12, atol=1e-13)
    back, again = inverse_and_log_det(chain, y, params)
    assert_allclose(back, z, rtol=1e-6, atol=1e-7)
    assert_allclose(again, log_det, rtol=1e-6, atol=1e-7)
    expected, _ = by_graph(chain, y, params, inverse=True)
    assert_allclose(back, expected, rtol=1e-12, atol=1e-12)


def test_layers_are_applied_in_order():
    chain = build_chain("loc-scale", 2)
    rho = np.log(np.expm1(3.0))
    params = ({"loc": np.array([[1.0, 2.0]])}, {"rho": np.full((1, 2), rho)})
    y, log_det = forward_and_log_det(chain, np.zeros((1, 2)), params)
    assert_allclose(y, [[3, 6]])
    assert_allclose(log_det, [2 * np.log(3)])
    z, log_det = inverse_and_log_det(chain, y, params)
    assert_allclose(z, [[0, 0]], atol=1e-15)
    assert_allclose(log_det, [2 * np.log(3)])


def test_points_and_parameters_are_left_alone(rng):
    chain = build_chain(ALL_FIVE, 2)
    params, z = far_params(chain, rng), rng.standard_normal((4, 2))
    copies = z.copy(), [{k: v.copy() for k, v in block.items()} for block in params]
    y, _ = forward_and_log_det(chain, z, params)
    y[:] = 0
    assert_array_equal(z, copies[0])
    for block, copy in zip(params, copies[1], strict=True):
        for name in block:
            assert_array_equal(block[name], copy[name])


@pytest.mark.parametrize("formula", FORMULAS)
def test_single_precision_stays_single(rng, formula):
    chain = build_chain(formula, 3)
    params = far_params(chain, rng)
    z = rng.standard_normal((5, 3))
    expected = forward_and_log_det(chain, z, params)
    single = z.astype("float32")
    found = forward_and_log_det(chain, single, params)  # parameters follow the points
    back = inverse_and_log_det(chain, found[0], params)
    assert {x.dtype for x in (*found, *back)} == {np.dtype("float32")}
    for x, y in zip(found, expected, strict=True):
        assert_allclose(x, y, rtol=2e-3, atol=2e-3)


def test_no_points(rng):
    chain = build_chain(ALL_FIVE, 3)
    for function in (forward_and_log_det, inverse_and_log_det):
        points, log_det = function(chain, np.zeros((0, 3)), far_params(chain, rng))
        assert (points.shape, log_det.shape) == ((0, 3), (0,))


def test_functions_are_shared_by_repeats_and_chains(rng):
    _stage_function.cache_clear()
    z = rng.standard_normal((3, 2))
    for formula in ("planar", "planar*64", "planar-loc-planar*3-loc"):
        chain = build_chain(formula, 2)
        forward_and_log_det(chain, z, far_params(chain, rng))
    assert _stage_function.cache_info().currsize == 2
    inverse_and_log_det(chain, z, far_params(chain, rng))
    assert _stage_function.cache_info().currsize == 4
    hits = _stage_function.cache_info().hits
    forward_and_log_det(chain, z, far_params(chain, rng))
    assert _stage_function.cache_info().misses == 4
    assert _stage_function.cache_info().hits > hits


def test_the_number_of_kept_functions_is_bounded(rng):
    _stage_function.cache_clear()
    limit = _stage_function.cache_info().maxsize
    assert limit is not None
    for dim in range(1, limit + 10):
        _stage_function(Loc(), dim, None, "float64", inverse=False)
    assert _stage_function.cache_info().currsize == limit
    _stage_function.cache_clear()


@dataclasses.dataclass(frozen=True)
class Stretch(Loc):
    """A layer with an option: the function of one value must not serve another."""

    word: ClassVar[str] = "stretch"
    by: float = 1.0

    def constrain(self, raw):
        return {"loc": self.by * raw["loc"]}


def test_layers_with_other_options_have_functions_of_their_own():
    for by in (1.0, 2.0, 1.0):
        chain = Chain(1, (Block(Stretch(by)),))
        y, _ = forward_and_log_det(chain, np.zeros((1, 1)), ({"loc": np.ones((1, 1))},))
        assert y == by


@dataclasses.dataclass(frozen=True)
class OneWay(Loc):
    word: ClassVar[str] = "oneway"
    has_inverse: ClassVar[bool] = False


def test_a_layer_without_inverse_is_named(rng, monkeypatch):
    monkeypatch.setitem(pmf.FLOWS, "oneway", OneWay)
    chain = build_chain("scale-oneway*2", 2)
    with pytest.raises(NotInvertibleError, match="oneway has none"):
        inverse_and_log_det(chain, np.zeros((1, 2)), far_params(chain, rng))
