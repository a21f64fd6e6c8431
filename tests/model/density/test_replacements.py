"""Replacements in a log density: of what a model is built from, wherever it stands in the model."""

from functools import cache

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from numpy.testing import assert_allclose
from pytensor.graph.traversal import ancestors

from pymc_flows.backends.modes import NUMPY
from pymc_flows.errors import ArgumentError, ModelError
from pymc_flows.model.dry_run import dry_run
from pymc_flows.model.examine import check_start, why_not_finite
from pymc_flows.model.logp import ModelDensity
from single_draws import assert_equal, points_near, reference

X = np.linspace(-1, 2, 7)
Y = np.cos(X)


class Parts:
    """A regression and what it is built from; `replace` by name."""

    def __init__(self, scale=1.5, x=None, y=None, double=lambda x: 2 * x):
        self.scale = pytensor.shared(np.array(scale), "scale")
        batch = pm.Minibatch(np.linspace(5, 9, 40), np.linspace(-9, -5, 40), batch_size=7)
        self.x, self.y = (
            old if new is None else pt.constant(new) for old, new in zip(batch, (x, y), strict=True)
        )
        with pm.Model() as self.model:
            self.data = pm.Data("data", np.arange(3.0))
            self.twice = double(self.scale)
            b = pm.Normal("b", 0, self.twice, shape=2)
            sigma = pm.HalfNormal("sigma", self.scale)
            upper = pm.Uniform("upper", 0, self.twice)
            self.mean = b[0] + b[1] * self.x
            pm.Normal("y", self.mean, sigma, observed=self.y, total_size=40)
            pm.Normal("z", upper, 1, observed=self.data)
            pm.Potential("p", -(self.twice**2) * b[0] ** 2)


CASES = {
    "a shared variable": (
        lambda p: {p.scale: pt.constant(np.array(0.7)), p.x: pt.constant(X), p.y: pt.constant(Y)},
        lambda: Parts(scale=0.7, x=X, y=Y),
    ),
    "the data of the model": (
        lambda p: {
            p.data: pt.constant(np.array([4.0, 5.0])),
            p.x: pt.constant(X),
            p.y: pt.constant(Y),
        },
        lambda: with_data(Parts(x=X, y=Y), [4.0, 5.0]),
    ),
    "what is computed from a shared variable": (
        lambda p: {p.twice: p.twice + p.scale, p.x: pt.constant(X), p.y: pt.constant(Y)},
        lambda: Parts(x=X, y=Y, double=lambda x: 3 * x),
    ),
    "what is computed from a random variable": (
        lambda p: {p.mean: p.model["b"][0] + p.model["b"][1] * X, p.y: pt.constant(Y)},
        lambda: Parts(x=X, y=Y),
    ),
}


def with_data(parts, values):
    parts.model.set_data("data", np.array(values))
    return parts


def evaluated(density, points, replacements, how):
    """Log density (n,) and its gradient (n, dim)."""
    z = pt.matrix("z", shape=points.shape)
    micro_batch = {"single": 1, "batched": 4, "micro-batches": 2, "looped": None}[how]
    values, grad, _ = density.value_and_grad(
        z, weights=[1.0, 1.0], micro_batch=micro_batch, replacements=replacements
    )
    return pytensor.function([z], [sum(values), grad], mode=NUMPY)(points)


@cache
def written(case):
    """Points, and the values and gradients there of the model written that way."""
    points = points_near(ModelDensity(Parts().model), 4)
    return points, reference(CASES[case][1]().model, points)


@pytest.mark.parametrize("how", ["single", "batched", "micro-batches", "looped"])
@pytest.mark.parametrize("case", CASES)
def test_a_replaced_model_is_the_model_written_that_way(case, how):
    replace, _ = CASES[case]
    parts, n = Parts(), 1 if how == "single" else 4
    points, expected = written(case)
    found = evaluated(ModelDensity(parts.model), points[:n], replace(parts), how)
    assert_equal(found, [x[:n] for x in expected])


def test_a_looped_value_without_gradient_is_replaced_too():
    parts = Parts()
    density = ModelDensity(parts.model)
    points = points_near(density, 4)
    z = pt.matrix("z", shape=points.shape)
    given = {parts.x: pt.constant(X), parts.y: pt.constant(Y)}
    prior, data = pytensor.function([z], density.looped(z, given), mode=NUMPY)(points)
    expected, _ = reference(Parts(x=X, y=Y).model, points)
    assert_allclose(prior + data, expected, rtol=1e-10)


def test_what_only_the_function_of_a_distribution_refers_to():
    width = pytensor.shared(np.array(2.0), "width")
    with pm.Model() as model:
        pm.CustomDist("x", logp=lambda value: -(value**2) * width)
    density = ModelDensity(model)
    z = pt.vector("z", shape=(1,))
    for given, expected in [(None, -18.0), ({width: pt.constant(np.array(5.0))}, -45.0)]:
        prior, _ = pytensor.function([z], density.single(z, given), mode=NUMPY)(np.array([3.0]))
        assert prior == pytest.approx(expected)


def test_graphs_are_made_once_and_the_own_ones_are_kept():
    parts = Parts()
    density = ModelDensity(parts.model)
    own = density.terms
    given = {parts.scale: pt.constant(np.array(0.7))}
    other = density.replaced(given)
    assert density.replaced(dict(given)) is other
    assert dry_run(density, given) is dry_run(other)
    assert dry_run(density) is not dry_run(other)
    given[parts.x] = pt.constant(X)  # the caller's dict is the caller's
    assert density.replaced(given) is not other
    assert density.replaced(None) is density.replaced({}) is density
    assert density.terms is own
    assert parts.scale in ancestors(density.terms)
    assert parts.scale not in ancestors(other.terms)


def test_terms_that_are_not_finite_are_those_of_the_replaced_model():
    parts = Parts(x=X, y=Y)
    density = ModelDensity(parts.model)
    start = density.start()
    given = {parts.twice: pt.constant(np.array(-1.0))}
    check_start(density, start)
    with pytest.raises(ModelError, match=r"not finite at the start\n  b: log density -inf"):
        check_start(density, start, given)
    points = start[None]
    assert "all terms are finite" in why_not_finite(density, points)
    assert "b: not finite at 1 of 1" in why_not_finite(density.replaced(given), points)


def test_what_cannot_be_replaced():
    parts = Parts(x=X, y=Y)
    density = ModelDensity(parts.model)
    number = pt.constant(np.array(1.0))
    other = pytensor.shared(np.array(1.0), "other")
    for given, message in [
        ({other: number}, "has other, but the log density does not depend on it\nGive a variable"),
        ({parts.x: pt.constant(Y)}, r"has the constant .*\nBuild the model with pm\.Data"),
        ({parts.model["sigma"]: number}, "has the random variable sigma, which cannot be replaced"),
        ({parts.scale: 2.0}, "from variable to variable, got float 2.0\nMake a constant"),
        ({"scale": number}, "from variable to variable, got str 'scale'"),
        ([parts.scale], "must be a dict from variable to variable"),
        ({parts.mean: number}, "has a variable of another type"),
        ({parts.scale: pt.constant(Y)}, r"another type for scale\nexpected Scalar.*, got Vector"),
    ]:
        with pytest.raises(ArgumentError, match=message):
            density.replaced(given).terms  # noqa: B018
