"""Flows with parameters: draws, densities and moments without a model."""

import numpy as np
import pytensor
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from pymc_flows.backends.modes import NUMPY
from pymc_flows.flows import build_chain, state
from pymc_flows.flows.frame import Frame
from pymc_flows.flows.state import FlowState
from pymc_flows.formula import Formula


def bent(formula, dim, rng, frame=None):
    formula = Formula(formula)
    chain = build_chain(formula, dim)
    values = chain.initial_params(jitter=0.5, rng=rng, dtype="float64")
    blocks = tuple(
        {name: pytensor.shared(v, name, shape=v.shape) for name, v in block.items()}
        for block in values
    )
    return FlowState(formula, chain, blocks, frame or Frame(np.zeros(dim)))


@pytest.fixture
def frame():
    return Frame(np.array([1.0, -2, 3]), np.array([[2.0, 0, 0], [1, 3, 0], [-1, 0.5, 1]]))


@pytest.mark.parametrize("formula", ["scale-hh*3-loc", "planar*2-scale"])
def test_arrays_and_graphs_agree(formula, frame, rng):
    q, z0 = bent(formula, 3, rng, frame), rng.standard_normal((5, 3))
    points = q.forward(z0)
    back, log_q = q.inverse(points)
    assert_allclose(back, z0, atol=1e-10)
    for fixed in (False, True):
        z, log_det = (x.eval(mode=NUMPY) for x in q.graph(pytensor.shared(z0), fixed=fixed))
        assert_allclose(z, points, rtol=1e-12)
        assert_allclose(-0.5 * (z0**2 + np.log(2 * np.pi)).sum(axis=1) - log_det, log_q, rtol=1e-9)
    assert_allclose(q.log_prob_graph(pytensor.shared(points)).eval(mode=NUMPY), log_q, rtol=1e-9)
    assert_allclose(q.center(), q.forward(np.zeros((1, 3)))[0])
    words = [word for word, _ in q.passage(z0)]
    *_, (_, last) = q.passage(z0)
    assert words[0] == "base"
    assert_allclose(last, points)


def test_draws_have_their_own_log_densities(frame, rng):
    q = bent("planar*2-scale-loc", 3, rng, frame)
    points, log_q = q.draw(50, rng)
    assert_allclose(q.log_prob(points), log_q, rtol=1e-8)


@pytest.mark.parametrize("columns", [1, 2, 3])
def test_standard_deviations_by_parts_are_those_of_the_covariance(monkeypatch, frame, rng, columns):
    q = bent("scale-hh*2-loc", 3, rng, frame)
    expected = np.sqrt(np.diag(q.cov().eval(mode=NUMPY)))
    assert_allclose(q.std().eval(mode=NUMPY), expected, rtol=1e-12)
    monkeypatch.setattr(state, "COLUMNS", columns)
    assert_allclose(q.std().eval(mode=NUMPY), expected, rtol=1e-12)


def test_a_state_is_its_arrays(frame, rng):
    q, other = (bent("scale-planar*2-loc", 3, rng, frame) for _ in range(2))
    arrays = q.arrays()
    assert [name for name in arrays if name.startswith("param_0")] == ["param_0_scale_rho"]
    other.load(lambda name, shape, dtype: arrays[name].reshape(shape).astype(dtype))
    z0 = rng.standard_normal((4, 3))
    assert_array_equal(other.forward(z0), q.forward(z0))
