"""Shift and scale."""

import numpy as np
import pytest

from flow_cases import evaluate, fixed
from pymc_flows.flows import Loc, Scale
from pymc_flows.flows.numerics import floor


def test_loc_by_hand():
    params = Loc().constrain({"loc": fixed([1, -2])})
    z, log_det = evaluate(*Loc().forward_and_log_det(fixed([[0, 0], [3, 4]]), params))
    assert z.tolist() == [[1, -2], [4, 2]]
    assert log_det.tolist() == [0, 0]
    z, _ = evaluate(*Loc().inverse_and_log_det(fixed([1, -2]), params))
    assert z.tolist() == [0, 0]


def test_scale_by_hand():
    params = Scale().constrain({"rho": fixed([np.log(np.expm1(2)), 0])})
    z, log_det = evaluate(*Scale().forward_and_log_det(fixed([[3, 1], [0, 2]]), params))
    np.testing.assert_allclose(z, [[6, np.log(2)], [0, 2 * np.log(2)]], rtol=1e-15)
    np.testing.assert_allclose(log_det, [np.log(2) + np.log(np.log(2))] * 2, rtol=1e-14)
    z, log_det = evaluate(*Scale().inverse_and_log_det(fixed([6, np.log(2)]), params))
    np.testing.assert_allclose(z, [3, 1], rtol=1e-15)
    assert log_det == pytest.approx(np.log(2) + np.log(np.log(2)), rel=1e-14)


@pytest.mark.parametrize(("dtype", "delta"), [("float64", 1e-15), ("float32", 1e-6)])
def test_scale_stops_at_the_floor(dtype, delta):
    assert floor(dtype) == np.dtype(dtype).type(delta)
    rho = fixed([-1e6, -50, 1e6], dtype=dtype)
    (sigma,) = evaluate(Scale().constrain({"rho": rho})["sigma"])
    np.testing.assert_array_equal(sigma, np.array([delta, delta, 1e6], dtype))


def test_other_types_are_refused():
    with pytest.raises(TypeError, match="float32 or float64, got int64"):
        floor("int64")
