"""Simpler forms of log densities have the same values and gradients."""

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.graph.replace import vectorize_graph
from pytensor.graph.traversal import toposort

from pymc_flows.backends.modes import NUMPY
from pymc_flows.backends.simplify import simplify
from pymc_flows.model.logp import ModelDensity


def ops(outputs):
    return [str(node.op) for node in toposort(outputs)]


def bernoulli(n, *, by_p=False):
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(n, 3)), np.arange(n) % 2
    with pm.Model() as model:
        b = pm.Normal("b", shape=3)
        eta = pm.math.dot(x, b)
        if by_p:
            pm.Bernoulli("y", p=pm.math.sigmoid(eta), observed=y)
        else:
            pm.Bernoulli("y", logit_p=eta, observed=y)
    return model, x, y


@pytest.mark.parametrize("n", [7, 3_000])
@pytest.mark.parametrize("by_p", [False, True])
def test_a_logistic_regression(n, by_p):
    model, x, y = bernoulli(n, by_p=by_p)
    density = ModelDensity(model)
    found = ops(density.terms[1:])
    assert found.count("Softplus") == 1
    assert {"Sigmoid", "Log", "All{axes=None}", "Or", "Ge", "Le"}.isdisjoint(found)
    points = np.array([[0.3, -1.0, 2.0], [50.0, 20.0, -80.0]])
    z = pt.matrix(shape=(2, 3))
    (_, data), grad, _ = density.value_and_grad(z, weights=[0.0, 1.0], micro_batch=2)
    value, gradient = pytensor.function([z], [data, grad], mode=NUMPY)(points)
    eta = points @ x.T
    np.testing.assert_allclose(value, -np.logaddexp(0, np.where(y, -eta, eta)).sum(1), rtol=1e-12)
    p = np.exp(-np.logaddexp(0, -eta))
    np.testing.assert_allclose(gradient, (y - p) @ x, rtol=1e-9, atol=1e-9)


def test_values_that_are_no_bernoulli_draws_keep_their_infinity():
    with pm.Model() as model:
        b = pm.Normal("b")
        pm.Bernoulli("y", logit_p=b, observed=np.array([0, 1, 2]))
    z = pt.vector(shape=(1,))
    _, data = ModelDensity(model).single(z)
    assert pytensor.function([z], data, mode=NUMPY)([0.5]) == -np.inf


def test_a_choice_of_the_data_is_made():
    x = pt.vector("x", shape=(3,))
    y = pt.constant(np.array([1, 5, 2]))
    [out] = simplify([pt.switch(pt.gt(y, 0) & pt.lt(y, 9), x * 2, x / 0)])
    assert ops([out]) == ops([x * 2])
    kept = pt.switch(pt.gt(y, 1), x * 2, x / 3)
    assert ops(simplify([kept])) == ops([kept])


@pytest.mark.parametrize("condition", ["shared", "random", "argument"])
def test_a_choice_that_may_change_stays(condition):
    y = {
        "shared": pytensor.shared(np.ones(3), shape=(3,)),
        "random": pt.random.uniform(
            size=(3,), rng=pt.random.shared_rng(np.random.default_rng(1)), return_next_rng=True
        )[1],
        "argument": pt.vector(shape=(3,)),
    }[condition]
    x = pt.vector("x", shape=(3,))
    out = pt.switch(y > 0, x, -x)
    assert ops(simplify([out])) == ops([out])


@pytest.mark.parametrize(
    "check", [lambda p: pt.ge(p, 0.1), lambda p: pt.le(p, 2), lambda p: pt.ge(1, p)]
)
def test_other_bounds_of_a_sigmoid_are_still_checked(check):
    out = pt.all(check(pt.sigmoid(pt.vector("x"))))
    assert ops(simplify([out])) == ops([out])


def test_probabilities_that_are_no_sigmoid_are_still_checked():
    with pm.Model() as model:
        b = pm.Normal("b")
        pm.Bernoulli("y", p=b, observed=np.array([0, 1]))
    z = pt.vector(shape=(1,))
    _, data = ModelDensity(model).single(z)
    evaluate = pytensor.function([z], data, mode=NUMPY)
    np.testing.assert_allclose(evaluate([0.3]), np.log(0.3 * 0.7))
    assert evaluate([1.5]) == -np.inf


@pytest.mark.parametrize("reduced", [pt.sum, pt.prod, pt.max, pt.all])
def test_a_scalar_is_reduced_to_itself(reduced):
    """NumPy allows the first axis and the last, which are none; PyTensor cannot vectorise them."""
    x = pt.scalar("x", dtype="bool" if reduced is pt.all else "int8")
    out = reduced(x, axis=-1)
    [found] = simplify([out])
    assert found.type == out.type
    rows = x.type.clone(shape=(2,))()
    evaluate = pytensor.function([rows], vectorize_graph(found, {x: rows}), mode=NUMPY)
    np.testing.assert_array_equal(evaluate(np.array([0, 1], x.dtype)), [0, 1])
