"""One vector in place of the parameters: the same fit."""

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest

import pymc_flows as pmf
from pymc_flows.backends.modes import NUMPY
from pymc_flows.errors import ArgumentError
from pymc_flows.flows import build_chain
from pymc_flows.training.loop.packing import Packing, join, split_by_block
from pymc_flows.training.optimizers import ELEMENTWISE, rated

SHAPES = {"a": (2,), "b": (2, 3), "c": (1, 1)}


@pytest.fixture
def params(rng):
    return {k: pytensor.shared(rng.normal(size=s), k, shape=s) for k, s in SHAPES.items()}


def test_a_flow_without_parameters_cannot_be_fitted():
    with pm.Model():
        pm.Normal("x", shape=2)
        inference = pmf.NFVI("perm")
    with pytest.raises(ArgumentError, match="nothing to fit"):
        inference.fit(5, progressbar=False)


def test_gather_and_scatter_are_inverse(params, rng):
    packing = Packing(params)
    packing.gather()
    values = packing.theta.get_value()
    np.testing.assert_array_equal(
        values, np.concatenate([p.get_value().ravel() for p in params.values()])
    )
    packing.theta.set_value(2 * values)
    before = {k: p.get_value() for k, p in params.items()}
    packing.scatter()
    for name, param in params.items():
        np.testing.assert_array_equal(param.get_value(), 2 * before[name])
        assert param.get_value(borrow=True).base is None  # not a view that theta's changes reach


def test_split_keeps_leading_axes(params, rng):
    values = rng.normal(size=(5, 9))
    parts = Packing(params).split(values)
    assert {k: v.shape for k, v in parts.items()} == {k: (5, *s) for k, s in SHAPES.items()}
    np.testing.assert_array_equal(parts["b"][3].ravel(), values[3, 2:8])


def test_graphs_read_the_parameters_from_theta(params):
    packing = Packing(params)
    packing.gather()
    outputs = packing.rewrite({"x": params["b"].sum() + params["c"][0, 0]})
    expected = params["b"].get_value().sum() + params["c"].get_value()[0, 0]
    for param in params.values():
        param.set_value(np.zeros(param.type.shape))
    np.testing.assert_allclose(outputs["x"].eval(mode=NUMPY), expected)


@pytest.mark.parametrize("loop", ["unroll", "scan", "kernel"])
def test_a_chain_reads_its_blocks_from_one_vector(loop, rng):
    chain = build_chain("scale-planar*3-loc-radial-hh*2", 3)
    values = chain.initial_params(jitter=1.0, rng=rng, dtype="float64")
    z = pt.constant(rng.normal(size=(4, 3)))
    theta = join([pt.constant(v) for block in values for _, v in sorted(block.items())])
    apart = chain.forward_and_log_det(z, values, loop="unroll")
    together = chain.forward_and_log_det(z, split_by_block(chain, theta, loop), loop=loop)
    for a, b in zip(
        *(pytensor.function([], x, mode=NUMPY)() for x in (apart, together)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("optimizer", ELEMENTWISE, ids=lambda f: f.__name__)
def test_every_optimizer_of_pymc_updates_entries_one_by_one(optimizer, params):
    """What packing relies on."""
    assert rated(optimizer, 1).is_elementwise
    packing = Packing(params)
    packing.gather()

    def loss(values):
        return sum((pt.sin(v) * (i + 1)).sum() for i, v in enumerate(values))

    apart = list(params.values())
    together = [packing.theta]
    pieces = list(packing.rewrite(params).values())
    for of, parts in ((apart, apart), (together, pieces)):
        updates = optimizer(pytensor.grad(loss(parts), of), of)
        step = pytensor.function([], [], updates=updates, mode=NUMPY)
        for _ in range(3):
            step()
    for name, value in packing.split(packing.theta.get_value()).items():
        np.testing.assert_allclose(params[name].get_value(), value, rtol=1e-12)


def test_an_optimizer_of_the_users_own_gets_the_parameters_and_fits_the_same():
    seen = []

    def own(grads, params):
        seen.extend(params)
        return pm.adam(grads, params, learning_rate=0.05)

    results = []
    for optimizer in (own, pm.adam(learning_rate=0.05)):
        with pm.Model():
            pm.Normal("x", 3, 0.5, shape=2)
            inference = pmf.NFVI("scale-planar-loc", random_seed=1)
        tracker = pmf.callbacks.Tracker()
        inference.fit(
            30,
            obj_n_mc=4,
            obj_optimizer=optimizer,
            callbacks=[tracker],
            backend="jax",
            progressbar=False,
            random_seed=2,
        )
        results.append((inference.hist, tracker.dataset))
    assert [p.name for p in seen] == ["rho", "b", "u", "w", "loc"]
    (hist, data), (other_hist, other_data) = results
    np.testing.assert_allclose(hist, other_hist, rtol=1e-9)
    assert set(data) == set(other_data)
    for name in data:
        np.testing.assert_allclose(data[name], other_data[name], rtol=1e-7, atol=1e-9)
