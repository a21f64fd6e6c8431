"""NormalizingFlow as PyMC's graphs see it: nodes over the posterior, and the terms of the ELBO."""

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from pytensor.graph.replace import graph_replace
from pytensor.graph.traversal import toposort
from pytensor.scan.op import Scan
from pytensor.tensor.blockwise import Blockwise

import pymc_flows as pmf
from pymc_flows.backends.modes import NUMPY

Y = np.array([0.5, -1.0, 2.0])


@pytest.fixture(scope="module")
def model():
    with pm.Model(coords={"k": ["u", "v", "w"]}) as model:
        a = pm.HalfNormal("a")
        x = pm.Normal("x", 1, 2, dims="k")
        pm.Dirichlet("p", np.ones(3), dims="k")
        pm.Deterministic("m", (a * x).sum())
        pm.Normal("y", x, a, observed=Y, dims="k")
    return model


@pytest.fixture
def approx(model):
    return pmf.NormalizingFlow("planar*2-scale-loc", model=model, jitter=0.3, random_seed=1)


def evaluate(node):
    return pytensor.function([], node, mode=NUMPY)()


def loops(nodes):
    """Loops in the graph, as Ops of their own and inside of others."""
    ops = [node.op for node in toposort(nodes if isinstance(nodes, list) else [nodes])]
    inner = [op.core_op for op in ops if isinstance(op, Blockwise)]
    return sum(isinstance(op, Scan) for op in ops), sum(isinstance(op, Scan) for op in inner)


def at_noise(approx, sampled, noise):
    """Values of sampled nodes for given base noise (draws, dim)."""
    nodes = sampled if isinstance(sampled, list) else [sampled]
    nodes = graph_replace(nodes, {approx.groups[0].symbolic_initial: pt.constant(noise)})
    return evaluate(nodes)


def points_of(approx, noise):
    """Unconstrained points by variable, one dict per draw, computed without PyMC's graphs."""
    z = approx.forward(noise)
    return [{"a_log__": r[0], "x": r[1:4], "p_simplex__": r[4:]} for r in z]


# --------------------------------------------------------------------------------------- values


def test_a_node_is_evaluated_at_every_draw(model, approx, rng):
    noise = rng.standard_normal((5, approx.ddim))
    nodes = [model["m"], model["p"] * 2, model["x"][1], model["a"]]
    values_of_nodes = model.replace_rvs_by_values(nodes)
    sampled = approx.symbolic_sample_over_posterior(values_of_nodes)
    single = model.compile_fn(values_of_nodes, inputs=model.value_vars, mode=NUMPY)
    expected = [single(point) for point in points_of(approx, noise)]
    for value, per_draw in zip(
        at_noise(approx, sampled, noise), zip(*expected, strict=True), strict=True
    ):
        assert_allclose(value, np.stack(per_draw), rtol=1e-12)


def test_the_terms_of_the_elbo_are_those_of_the_model(model, approx, rng):
    noise = rng.standard_normal((5, approx.ddim))
    terms = [approx.sized_symbolic_varlogp, approx.sized_symbolic_datalogp]
    assert loops(terms) == (0, 0)
    varlogp, datalogp = at_noise(approx, terms, noise)
    points = points_of(approx, noise)
    logp = model.compile_fn([model.varlogp, model.datalogp], inputs=model.value_vars, mode=NUMPY)
    expected = np.array([logp(point) for point in points])
    assert_allclose(np.transpose([varlogp, datalogp]), expected, rtol=1e-12)
    means = at_noise(
        approx, [approx.varlogp, approx.datalogp, approx.logp, approx.logp_norm], noise
    )
    assert_allclose(means[:2], expected.mean(axis=0), rtol=1e-12)
    assert_allclose(means[2:], expected.sum(axis=1).mean(), rtol=1e-12)
    one = at_noise(approx, [approx.single_symbolic_varlogp, approx.single_symbolic_datalogp], noise)
    assert_allclose(one, expected[0], rtol=1e-12)


def test_log_q_belongs_to_the_draws(approx, rng):
    noise = rng.standard_normal((5, approx.ddim))
    nodes = [approx.symbolic_random, approx.symbolic_logq, approx.logq]
    draws, log_q, mean = at_noise(approx, nodes, noise)
    assert_allclose(log_q, approx.log_prob(draws), rtol=1e-9)
    assert_allclose(mean, log_q.mean(), rtol=1e-12)


def test_an_invalid_draw_does_not_spoil_the_others():
    with pm.Model() as model:
        scale = pm.Normal("scale", 1, 1)
        bad = pm.logp(pm.Normal.dist(0, scale), 0.5)
    approx = pmf.NormalizingFlow("loc", model=model, jitter=0)
    node = model.replace_rvs_by_values([bad])
    noise = np.array([[0.0], [-3.0], [1.0]])
    (value,) = at_noise(approx, approx.symbolic_sample_over_posterior(node), noise)
    sd = np.array([1.0, 2.0])
    expected = -0.5 * (0.5 / sd) ** 2 - np.log(sd) - 0.5 * np.log(2 * np.pi)
    assert_allclose(value, [expected[0], -np.inf, expected[1]], rtol=1e-12)


def test_rslice_is_the_variable_at_all_draws(approx, rng):
    noise = rng.standard_normal((5, approx.ddim))
    points = points_of(approx, noise)
    for name in ("a_log__", "x", "p_simplex__"):
        (value,) = at_noise(approx, approx.rslice(name), noise)
        assert_allclose(value, np.stack([p[name] for p in points]), rtol=1e-12)
    with pytest.raises(KeyError, match="nope"):
        approx.rslice("nope")


# --------------------------------------------------------------------------- sample_node as in PyMC


def test_without_a_size_a_node_has_its_own_shape(model, approx):
    assert evaluate(approx.sample_node(model["x"])).shape == (3,)
    m, p = evaluate(approx.sample_node([model["m"], model["p"]]))
    assert (m.shape, p.shape) == ((), (3,))
    assert p.sum() == pytest.approx(1)


def test_with_a_size_there_is_a_leading_draw_axis_and_no_loop(model, approx):
    sampled = approx.sample_node([model["m"], model["p"]], size=7)
    assert loops(sampled) == (0, 0)
    m, p = evaluate(sampled)
    assert (m.shape, p.shape) == ((7,), (7, 3))
    assert len(set(m)) == 7
    assert_allclose(p.sum(axis=1), 1)


def test_the_size_may_be_symbolic(model, approx):
    n = pt.lscalar("n")
    fn = pytensor.function([n], approx.sample_node(model["x"], size=n), mode=NUMPY)
    assert fn(4).shape == (4, 3)
    assert fn(9).shape == (9, 3)


@pytest.mark.parametrize("size", [None, 4])
def test_deterministic_draws_come_from_the_zero_of_the_base(model, approx, size):
    value = evaluate(approx.sample_node(model["x"], size=size, deterministic=True))
    expected = approx.center_point()[1:4]
    assert_allclose(value, np.broadcast_to(expected, value.shape), rtol=1e-12)
    assert value.shape == ((3,) if size is None else (4, 3))


def test_the_deterministic_flag_may_be_symbolic(model, approx):
    flag = pt.bscalar("flag")
    node = approx.sample_node(model["x"], size=2, deterministic=flag)
    fn = pytensor.function([flag], node, mode=NUMPY)
    assert_allclose(fn(1), np.tile(approx.center_point()[1:4], (2, 1)), rtol=1e-12)
    assert not np.isclose(*fn(0)).any()


@pytest.mark.parametrize("size", [None, 4])
def test_replacements_change_the_input_of_a_node(model, approx, size):
    x = pytensor.shared(np.ones(3), shape=(None,))
    doubled = x * 2.0
    node = model["a"] * doubled
    kwargs = {"size": size, "deterministic": True}
    a = evaluate(approx.sample_node(model["a"], **kwargs))
    for replacements, expected in [
        (None, 2 * np.ones(3)),
        ({x: pt.zeros(5) + 3}, 6 * np.ones(5)),
        ({doubled: pt.constant(np.arange(4.0))}, np.arange(4.0)),
    ]:
        value = evaluate(approx.sample_node(node, more_replacements=replacements, **kwargs))
        assert_allclose(value, a[..., None] * expected)


def test_parameters_are_read_at_each_evaluation(model, approx):
    fn = pytensor.function([], approx.sample_node(model["x"], deterministic=True), mode=NUMPY)
    before = fn()
    loc = approx.params[-1]
    loc.set_value(loc.get_value() + 1)
    assert_allclose(fn(), before + 1)


def test_a_node_that_no_draw_changes_is_repeated(approx):
    data = pytensor.shared(np.arange(3.0))
    for node, expected in [(pt.constant(2.0), 2.0), (data * 2, [0, 2, 4])]:
        value = evaluate(approx.sample_node(node, size=4))
        assert_array_equal(value, np.tile(expected, (4, *np.ones(np.ndim(expected), int))))


def test_noise_in_a_node_differs_from_draw_to_draw(model, approx):
    own = pm.Normal.dist(0, 1, shape=(2,))
    around = pm.Normal.dist(model["x"], 1e-9)
    sampled = approx.sample_node([own, own.sum(), around, model["x"]], size=200)
    assert loops(sampled) == (0, 0)
    own, total, around, x = pm.draw(sampled, random_seed=1, mode=NUMPY)
    assert own.shape == (200, 2)
    assert_allclose(total, own.sum(axis=1))
    assert own.std(axis=0) == pytest.approx([1, 1], rel=0.25)
    assert_allclose(around, x, atol=1e-7)


def test_a_node_with_a_loop_is_evaluated_draw_by_draw(model, approx, rng):
    steps = pytensor.scan(
        lambda previous, x: 0.5 * previous + x[0],
        outputs_info=[model["a"]],
        non_sequences=[model["x"]],
        n_steps=4,
        return_updates=False,
    )
    assert loops(approx.sample_node(steps, size=3)) == (1, 0)  # and the loop inside of that
    noise = rng.standard_normal((3, approx.ddim))
    value_nodes = model.replace_rvs_by_values([steps])
    with pytensor.config.change_flags(mode="FAST_COMPILE"):
        (value,) = at_noise(approx, approx.symbolic_sample_over_posterior(value_nodes), noise)
    for row, point in zip(value, points_of(approx, noise), strict=True):
        state = np.exp(point["a_log__"])
        for found in row:
            state = 0.5 * state + point["x"][0]
            assert found == pytest.approx(state)


class OneAtATime(pytensor.graph.op.Op):
    """Doubles a vector; refuses to be vectorised."""

    __props__ = ()

    def make_node(self, x):
        return pytensor.graph.basic.Apply(self, [x], [x.type()])

    def perform(self, node, inputs, outputs):
        outputs[0][0] = 2 * inputs[0]

    @property
    def gufunc_signature(self):
        raise NotImplementedError("cannot be vectorised")


def test_a_node_that_cannot_be_vectorised_is_evaluated_draw_by_draw(model, approx, rng):
    node = OneAtATime()(model["x"])
    noise = rng.standard_normal((3, approx.ddim))
    sampled = approx.symbolic_sample_over_posterior(model.replace_rvs_by_values([node]))
    assert loops(sampled) == (1, 0)
    (value,) = at_noise(approx, sampled, noise)
    assert_allclose(value, [2 * p["x"] for p in points_of(approx, noise)])


# ------------------------------------------------------------------------------------ minibatches


def test_the_cost_is_scaled_to_the_minibatch_on_request():
    data = np.arange(40.0)
    with pm.Model() as model:
        x = pm.Normal("x")
        batch = pm.Minibatch(data, batch_size=10)
        pm.Normal("y", x, 1, observed=batch, total_size=40)
    approx = pmf.NormalizingFlow("scale-loc", model=model)
    nodes = [approx.symbolic_normalizing_constant, approx.logq, approx.logq_norm]
    nodes += [approx.varlogp, approx.varlogp_norm, approx.datalogp, approx.datalogp_norm]
    fn = pytensor.function([], approx.set_size_and_deterministic(nodes, 3, 0), mode=NUMPY)
    for scaled, constant in [(True, 4), (False, 1), (True, 4)]:
        approx.scale_cost_to_minibatch = scaled
        assert approx.scale_cost_to_minibatch is scaled
        found, *values = fn()
        assert found == constant
        assert_allclose(np.divide(values[::2], values[1::2]), constant)


def test_a_minibatch_can_be_replaced_in_the_terms_of_the_elbo():
    data = np.arange(40.0)
    with pm.Model() as model:
        x = pm.Normal("x")
        batch = pm.Minibatch(data, batch_size=10)
        pm.Normal("y", x, 1, observed=batch, total_size=40)
    approx = pmf.NormalizingFlow("loc", model=model, jitter=0)
    given = pt.constant(np.full(10, 3.0))
    node = approx.set_size_and_deterministic(approx.datalogp, 5, 1, {batch: given})
    expected = 40 * (-0.5 * 9 - 0.5 * np.log(2 * np.pi))
    assert evaluate(node) == pytest.approx(expected)


def test_sample_approx(model, approx):
    posterior = pm.sample_approx(approx, draws=4).posterior
    assert {"a", "a_log__", "x", "p", "p_simplex__", "m"} == set(posterior.data_vars)
    assert posterior.sizes["draw"] == 4
    assert "a_log__" not in pm.sample_approx(approx, 4, include_transformed=False).posterior
