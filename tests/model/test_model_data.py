"""Data of a model: minibatches, `pm.Data`, constants."""

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from numpy.testing import assert_allclose
from pymc.pytensorf import collect_default_updates
from pytensor.graph.basic import Constant
from pytensor.graph.traversal import graph_inputs, toposort
from pytensor.tensor.variable import TensorConstant
from scipy import stats

from models import ZOO
from pymc_flows.backends.graphs import MAX_CONSTANT_SIZE, lift_constants
from pymc_flows.backends.modes import NUMPY, training_mode
from pymc_flows.errors import ModelError
from pymc_flows.model.batching import frontier
from pymc_flows.model.logp import ModelDensity
from single_draws import assert_equal, by_variable, points_near, reference, value_and_grad

N = 3000


def large_constants(fn):
    return [
        var
        for var in fn.maker.fgraph.variables
        if isinstance(var, TensorConstant) and var.data.size >= N
    ]


# -------------------------------------------------------------------------------------- minibatches


def regression_on_minibatches(x, y):
    with pm.Model() as model:
        some_x, some_y = pm.Minibatch(x, y, batch_size=10)
        b = pm.Normal("b", 0, 1, shape=2)
        pm.Normal("y", some_x @ b, 1, observed=some_y, total_size=len(y))
    return ModelDensity(model)


def step(density, micro_batch, mode=NUMPY):
    """A function of points that draws a new minibatch at each call."""
    z = pt.matrix("z", shape=(6, density.dim))
    (prior, data), grad, _ = density.value_and_grad(z, weights=[1.0, 1.0], micro_batch=micro_batch)
    outputs = [prior, data, grad]
    updates = collect_default_updates(outputs, inputs=[z])
    assert len(updates) == 1
    return pytensor.function([z], outputs, updates=updates, mode=mode)


@pytest.mark.filterwarnings("ignore:The RandomType SharedVariables:UserWarning")
@pytest.mark.parametrize("backend", [None, "jax"])
@pytest.mark.parametrize("micro_batch", [6, 4, None])
def test_all_draws_of_a_step_see_the_same_minibatch(micro_batch, backend):
    rng = np.random.default_rng(0)
    density = regression_on_minibatches(rng.normal(size=(500, 2)), rng.normal(size=500))
    fn = step(density, micro_batch, NUMPY if backend is None else training_mode(backend))
    points = np.tile([0.3, -0.7], (6, 1))
    _, first, first_grad = map(np.asarray, fn(points))
    _, second, _ = map(np.asarray, fn(points))
    assert_allclose(first, first[0], rtol=1e-12)
    assert_allclose(first_grad, np.tile(first_grad[0], (6, 1)), rtol=1e-9)
    assert abs(first[0] - second[0]) > 1e-3


@pytest.mark.parametrize("micro_batch", [6, 4, None])
def test_a_minibatch_counts_for_all_data(micro_batch):
    """With equal rows it does not matter which ones are drawn."""
    x, y = np.array([0.5, -2.0]), 1.5
    fn = step(regression_on_minibatches(np.tile(x, (500, 1)), np.full(500, y)), micro_batch)
    points = np.random.default_rng(0).normal(size=(6, 2))
    prior, data, grad = fn(points)
    residuals = y - points @ x
    assert_allclose(prior, stats.norm.logpdf(points).sum(axis=1), rtol=1e-12)
    assert_allclose(data, 500 * stats.norm.logpdf(residuals), rtol=1e-12)
    assert_allclose(grad, -points + 500 * residuals[:, None] * x, rtol=1e-10)


# ----------------------------------------------------------------------------------------- set_data


@pytest.mark.parametrize("micro_batch", [5, 2, None])
def test_new_data_need_no_new_function(micro_batch):
    density = ModelDensity(ZOO["with_data"]())
    model = density.model
    points = points_near(density, 5)
    z = pt.matrix("z", shape=points.shape)
    (prior, data), grad, _ = density.value_and_grad(z, weights=[1.0, 1.0], micro_batch=micro_batch)
    fn = pytensor.function([z], [prior + data, grad], mode=NUMPY)
    assert_equal(fn(points), reference(model, points))
    for n in (7, 12):
        model.set_data("x", np.linspace(-2, 2, n))
        model.set_data("y", np.linspace(-1, 1, n) ** 2)
        assert_equal(fn(points), reference(model, points))


def growing():
    with pm.Model() as model:
        data = pm.Data("data", np.zeros(4))
        pm.Normal("fixed", 0, 1)
        effect = pm.Normal("effect", 0, 1, shape=data.shape)
        pm.Normal("y", effect, 1, observed=data)
    return model


def test_a_free_variable_may_not_change_its_shape():
    model = growing()
    density = ModelDensity(model)
    density.check_shapes()
    model.set_data("data", np.ones(4))
    density.check_shapes()
    model.set_data("data", np.zeros(6))
    with pytest.raises(ModelError) as caught:
        density.check_shapes()
    assert str(caught.value) == (
        "the shape of free variable 'effect' changed since the approximation was made\n"
        "expected (4,), got (6,)\n"
        "Data may change their length, free variables may not: make a new approximation."
    )


def test_fixed_shapes_are_not_checked_again(monkeypatch):
    density = ModelDensity(ZOO["scalars"]())
    monkeypatch.setattr("pymc_flows.model.logp.initial_point", lambda _: pytest.fail("checked"))
    density.check_shapes()


# ---------------------------------------------------------------------------------------- constants


def regression(x, y, group):
    with pm.Model() as model:
        a = pm.Normal("a", 0, 1, shape=4)
        b = pm.Normal("b", 0, 1, shape=2)
        pm.Normal("y", a[group] + (2 * x + 1) @ b, 1, observed=y)
        pm.Poisson("n", pt.exp(a[0] + b[0] * x[:, 0]), observed=np.arange(len(y)) % 5)
    return model


@pytest.fixture(scope="module")
def large():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(N, 2)), rng.normal(size=N)
    return ModelDensity(regression(x, y, np.arange(N) % 4))


@pytest.mark.parametrize("micro_batch", [4, 2, None])
def test_large_data_are_inputs(large, micro_batch):
    z = pt.matrix("z", shape=(4, large.dim))
    values, grad, _ = large.value_and_grad(z, weights=[1.0, 1.0], micro_batch=micro_batch)
    fn = pytensor.function([z], [*values, grad], mode=NUMPY)
    assert large_constants(fn) == []
    points = points_near(large, 4)
    prior, data, gradient = fn(points)
    assert_equal((prior + data, gradient), reference(large.model, points))


def test_without_lifting_they_would_be_constants(large):
    z = pt.vector("z", shape=(large.dim,))
    from pytensor.graph.replace import graph_replace

    terms = [term.sum() for term in large.named_terms.values()]
    outputs = graph_replace(terms, large.unpack(z), strict=False)
    assert len(large_constants(pytensor.function([z], outputs, mode=NUMPY))) > 2


def test_what_data_alone_determine_is_computed_once(large):
    """2x + 1 of the large x is one array in the graph, and the terms of y! are gone."""
    assert [v for v in graph_inputs(large.terms) if v.type.shape == (N, 2)]
    ops = [str(node.op) for node in toposort(large.terms)]
    assert not any("Gammaln" in op for op in ops)


def test_equal_data_are_held_once():
    data = np.random.default_rng(0).normal(size=N)
    x = pt.dscalar("x")
    outputs = lift_constants([(x * pt.constant(data)).sum(), (x - pt.constant(data.copy())).sum()])
    assert (
        len([v for v in graph_inputs(outputs) if v is not x and not isinstance(v, Constant)]) == 1
    )


def test_small_constants_stay():
    x = pt.dscalar("x")
    (output,) = lift_constants([(x * pt.constant(np.ones(MAX_CONSTANT_SIZE))).sum()])
    assert all(v is x or isinstance(v, Constant) for v in graph_inputs([output]))


@pytest.mark.parametrize("backend", [None, "jax"])
def test_large_masks_and_lookups_still_compile(backend):
    """The length of x[mask] is a shape: JAX must know the mask."""
    mask = np.arange(N) % 3 == 0
    with pm.Model() as model:
        x = pm.Normal("x", 0, 1, shape=N)
        pm.Normal("y", x[mask], 1, observed=np.ones(mask.sum()))
        pm.Potential("p", -pt.where(mask, x, 0.5 * x).sum())
    density = ModelDensity(model)
    points = points_near(density, 3)
    mode = NUMPY if backend is None else training_mode(backend)
    assert_equal(value_and_grad(density, points, 3, mode), reference(model, points))


def test_large_data_of_a_scan_are_inputs_too():
    data = np.random.default_rng(0).normal(size=N)
    with pm.Model() as model:
        x = pm.Normal("x", 0, 1)
        total = pytensor.scan(
            lambda y, previous, x: previous - (y - x) ** 2,
            sequences=[pt.constant(data)],
            outputs_info=[pt.zeros(())],
            non_sequences=[x],
            return_updates=False,
        )
        pm.Potential("p", total[-1])
    density = ModelDensity(model)
    z = pt.vector("z", shape=(1,))
    fn = pytensor.function([z], density.single(z), mode=NUMPY)
    assert large_constants(fn) == []
    assert fn(np.array([0.5]))[1] == pytest.approx(-((data - 0.5) ** 2).sum())


def test_small_integers_do_not_overflow():
    """3 · 10² does not fit into the int8 in which PyTensor keeps the 3 and the 10."""
    density = ModelDensity(ZOO["small_integers"]())
    point = np.array([0.7, 1.3])
    z = pt.vector("z", shape=(2,))
    prior, _ = pytensor.function([z], density.single(z), mode=NUMPY)(point)
    expected = np.log(2) + stats.t.logpdf(np.exp(0.7), 3, scale=10) + 0.7
    expected += stats.t.logpdf(1.3, 3, loc=8, scale=10)
    assert prior == pytest.approx(expected, rel=1e-7)  # PyMC takes logarithms of int8 in float32
    at = by_variable(density, point)
    assert prior == pytest.approx(float(density.model.compile_logp(mode=NUMPY)(at)), rel=1e-12)


def test_small_integers_do_not_overflow_where_large_data_fold():
    y = np.random.default_rng(0).normal(size=N)
    with pm.Model() as model:
        w = pm.Beta("w", 1, 1)
        parts = [pm.StudentT.dist(3, mu=mu, sigma=10) for mu in (8, 0)]
        pm.Mixture("y", pt.stack([w, 1 - w]), parts, observed=y)
    density = ModelDensity(model)
    z = pt.vector("z", shape=(1,))
    _, data = pytensor.function([z], density.single(z), mode=NUMPY)(np.array([0.4]))
    weight = 1 / (1 + np.exp(-0.4))
    mixture = weight * stats.t.pdf(y, 3, 8, 10) + (1 - weight) * stats.t.pdf(y, 3, 0, 10)
    assert data == pytest.approx(np.log(mixture).sum(), rel=1e-7)


# -------------------------------------------------------------------------------------- fixed parts


def test_the_frontier_is_what_draws_do_not_change():
    x, a, b = pt.dvector("x"), pt.dvector("a"), pt.lscalar("b")
    fixed = pt.exp(a)
    outputs = [(fixed * x[: b + 1]).sum(), (fixed + 1).sum()]
    found = frontier(outputs, [x])
    assert fixed in found
    # The slice itself is no tensor; what it is computed from is.
    assert {type(v.type) for v in found} == {pt.TensorType}
    assert {str(v.owner.op) for v in found} == {"Exp", "Add"}
