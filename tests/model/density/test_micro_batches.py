"""Micro-batches: their size, and that nobody can tell from the result."""

import math

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from numpy.testing import assert_allclose
from pytensor.graph.traversal import toposort
from pytensor.scan.op import Scan

from models import ZOO
from pymc_flows.backends.modes import NUMPY
from pymc_flows.model import examine
from pymc_flows.model.dry_run import dry_run
from pymc_flows.model.examine import DrawPlan, plan_draws
from pymc_flows.model.logp import ModelDensity
from single_draws import assert_equal, points_near, value_and_grad


@pytest.fixture(scope="module")
def density():
    return ModelDensity(ZOO["eight_schools"]())


def plan_for(density, n_draws, draws_that_fit, monkeypatch):
    size = dry_run(density).bytes_per_draw(density.start())
    monkeypatch.setattr(examine, "MICRO_BATCH_BYTES", int((draws_that_fit + 0.5) * size))
    return plan_draws(density, n_draws, density.start(), "numba")


@pytest.mark.parametrize(
    ("n_draws", "draws_that_fit", "size"),
    [
        (64, 64, 64),
        (64, 63, 32),
        (64, 10, 10),  # 7 batches; 9 would need 8
        (61, 10, 9),  # a prime number of draws: 7 batches of 9, the last one short
        (61, 60, 31),
        (7, 1, 1),
        (7, 0, 1),  # a single draw that does not fit is tried all the same
    ],
)
def test_batches_are_as_few_as_fit_and_as_even_as_they_can_be(
    density, monkeypatch, n_draws, draws_that_fit, size
):
    assert plan_for(density, n_draws, draws_that_fit, monkeypatch) == DrawPlan(size)
    assert size <= max(draws_that_fit, 1)
    assert math.ceil(n_draws / size) == math.ceil(n_draws / max(draws_that_fit, 1))


def test_the_size_follows_from_the_model_alone(density, monkeypatch):
    plans = {plan_for(density, 61, 10, monkeypatch) for _ in range(2)}
    again = ModelDensity(ZOO["eight_schools"]())
    plans.add(plan_draws(again, 61, again.start(), "numba"))
    assert len(plans) == 1


def test_a_longer_data_set_gets_smaller_batches():
    with pm.Model() as model:
        data = pm.Data("data", np.zeros(1000))
        mu = pm.Normal("mu", 0, 1)
        pm.Normal("y", mu, 1, observed=data)
    density = ModelDensity(model)
    small = dry_run(density).bytes_per_draw(density.start())
    model.set_data("data", np.zeros(10_000))
    assert dry_run(density).bytes_per_draw(density.start()) == pytest.approx(10 * small, rel=0.05)


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 4, 6])
def test_any_size_gives_the_same_result(density, micro_batch):
    """Seven draws, a prime number: the last batch is short for each size but 1."""
    points = points_near(density, 7)
    found = value_and_grad(density, points, micro_batch)
    assert_equal(found, value_and_grad(density, points, 7), rtol=1e-13)


def test_draws_that_fill_the_last_batch_up_do_not_count():
    """Gradients with respect to a parameter of the model are sums over draws."""
    scale = pytensor.shared(1.5, name="scale")
    with pm.Model() as model:
        x = pm.Normal("x", 0, 1)
        pm.Normal("y", x, scale, observed=[1.0, 2.0])
    density = ModelDensity(model)
    points = points_near(density, 7)
    z = pt.matrix("z", shape=points.shape)
    weights = [pt.constant(0.5), 2.0]
    found = {}
    for micro_batch in (7, 3, None):
        _, grad, (extra,) = density.value_and_grad(
            z, weights=weights, micro_batch=micro_batch, extra=[scale]
        )
        found[micro_batch] = pytensor.function([z], [grad, extra], mode=NUMPY)(points)
    # d/ds Σ log N(y | x, s) = Σ (−1/s + (y − x)²/s³)
    residuals = np.array([1.0, 2.0]) - points
    expected = 2 * (-1 / 1.5 + residuals**2 / 1.5**3).sum()
    expected_grad = -0.5 * points + 2 * residuals.sum(axis=1, keepdims=True) / 1.5**2
    for grad, extra in found.values():
        assert_allclose(extra, expected, rtol=1e-12)
        assert_allclose(grad, expected_grad, rtol=1e-12)


def test_weights_may_be_symbolic():
    weight = pytensor.shared(3.0)
    density = ModelDensity(ZOO["without_transform"]())
    points = np.abs(points_near(density, 5)) + 0.2
    z = pt.matrix("z", shape=points.shape)
    results = []
    for weights in ([1.0, 3.0], [1.0, weight], [1.0, weight * pt.ones(()) * 1.0]):
        for micro_batch in (5, 2, None):
            _, grad, _ = density.value_and_grad(z, weights=weights, micro_batch=micro_batch)
            results.append(pytensor.function([z], grad, mode=NUMPY)(points))
    for result in results[1:]:
        assert_allclose(result, results[0], rtol=1e-12)


def test_each_batch_is_one_step_of_a_scan(density):
    z = pt.matrix("z", shape=(7, density.dim))
    _, grad, _ = density.value_and_grad(z, weights=[1.0, 1.0], micro_batch=3)
    (scan,) = [node for node in toposort([grad]) if isinstance(node.op, Scan)]
    assert scan.op.fgraph.inputs[0].type.shape == (3, density.dim)


def test_nothing_is_differentiated_through_the_scan(density):
    z = pt.matrix("z", shape=(7, density.dim))
    for micro_batch in (3, None):
        _, grad, _ = density.value_and_grad(z, weights=[1.0, 1.0], micro_batch=micro_batch)
        assert len([node for node in toposort([grad]) if isinstance(node.op, Scan)]) == 1
