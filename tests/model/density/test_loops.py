"""How draws go through a log density that does not vectorise, and who decides it."""

import logging

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from numpy.testing import assert_allclose
from pytensor.graph.basic import Apply
from pytensor.graph.op import Op

from models import ZOO
from pymc_flows.backends import jax as _jax
from pymc_flows.backends.modes import NUMPY, training_mode
from pymc_flows.errors import BackendError, ModelError
from pymc_flows.flows import build_chain
from pymc_flows.model import dry_run as _dry_run
from pymc_flows.model.backend import choose_backend
from pymc_flows.model.dry_run import dry_run
from pymc_flows.model.examine import DrawPlan, check_start, plan_draws
from pymc_flows.model.logp import ModelDensity
from single_draws import assert_equal, points_near, reference, value_and_grad


class BlackBoxGradient(Op):
    """−x, for one vector only."""

    __props__ = ()

    def make_node(self, x):
        x = pt.as_tensor_variable(x)
        return Apply(self, [x], [x.type()])

    def perform(self, node, inputs, outputs):
        (x,) = inputs
        assert x.ndim == 1
        outputs[0][0] = -x


class BlackBox(Op):
    """−x²/2, summed over one vector."""

    __props__ = ()

    def make_node(self, x):
        return Apply(self, [pt.as_tensor_variable(x)], [pt.scalar(dtype=x.dtype)])

    def perform(self, node, inputs, outputs):
        (x,) = inputs
        assert x.ndim == 1
        outputs[0][0] = np.asarray(-0.5 * (x**2).sum())

    def pullback(self, inputs, outputs, cotangents):
        return [cotangents[0] * BlackBoxGradient()(inputs[0])]


class WithoutGradient(BlackBox):
    def pullback(self, inputs, outputs, cotangents):
        raise NotImplementedError("no gradient of a simulator")


class WrongInBatches(Op):
    """The sum of a vector; of a matrix, too, where one sum per row is asked for."""

    __props__ = ()

    def make_node(self, x):
        x = pt.as_tensor_variable(x)
        return Apply(self, [x], [pt.tensor(dtype=x.dtype, shape=x.type.shape[:-1])])

    def perform(self, node, inputs, outputs):
        (x,) = inputs
        outputs[0][0] = np.full(x.shape[:-1], x.sum())

    def pullback(self, inputs, outputs, cotangents):
        return [cotangents[0][..., None] * pt.ones_like(inputs[0])]


class MixesGradients(WrongInBatches):
    """Half the square of a vector's sum, whose gradient is that of another draw in batches."""

    def perform(self, node, inputs, outputs):
        outputs[0][0] = np.asarray(0.5 * inputs[0].sum(axis=-1) ** 2)

    def pullback(self, inputs, outputs, cotangents):
        gradient = cotangents[0] * WrongInBatches()(inputs[0])
        return [gradient[..., None] * pt.ones_like(inputs[0])]


class BreaksInBatches(WrongInBatches):
    def perform(self, node, inputs, outputs):
        if inputs[0].ndim != 1:
            raise ValueError("vectors only")
        super().perform(node, inputs, outputs)


@pytest.fixture(autouse=True)
def _vectorise_as_they_are(monkeypatch):
    from pytensor.graph.replace import _vectorize_node

    def same(op, node, x):
        return op.make_node(x)

    for op in (WrongInBatches, MixesGradients, BreaksInBatches):
        if _vectorize_node.dispatch(op) is not same:
            _vectorize_node.register(op, same)


def potential_of(op):
    with pm.Model() as model:
        x = pm.Normal("x", 0, 1, shape=3)
        pm.Potential("box", op(x))
    return model


def spatial():
    """A CAR prior, whose log density PyTensor can vectorise once it knows all shapes."""
    neighbours = np.array([[0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0.0]])
    with pm.Model() as model:
        alpha = pm.Beta("alpha", 2, 2)
        tau = pm.Gamma("tau", 2, 1)
        phi = pm.CAR("phi", mu=np.zeros(4), W=neighbours, alpha=alpha, tau=tau)
        pm.Poisson("y", pt.exp(phi), observed=[1, 2, 0, 3])
    return model


def plan(model, backend="numba", n_draws=5):
    density = ModelDensity(model)
    return plan_draws(density, n_draws, density.start(), backend)


@pytest.mark.parametrize("backend", ["numba", "jax"])
@pytest.mark.parametrize("name", ["garch", "hidden_markov"])
def test_a_model_with_a_scan_is_looped_over(name, backend):
    found = plan(ZOO[name](), backend)
    assert found.micro_batch is None
    assert found.reason == "the log density contains a Scan"


@pytest.mark.parametrize("backend", ["numba", "jax"])
@pytest.mark.parametrize("name", ["eight_schools", "ordered", "mixture_of_kinds", "with_data"])
def test_other_models_are_vectorised(name, backend):
    assert plan(ZOO[name](), backend) == DrawPlan(5)


def test_a_log_density_of_known_shapes_is_vectorised_or_looped_over():
    model = spatial()
    density = ModelDensity(model)
    found = plan_draws(density, 5, density.start(), "numba")
    assert (found.micro_batch, found.reason) == (5, "")
    points = points_near(density, 4)
    expected = reference(model, points, NUMPY)  # its graph cannot be computed as it is written
    for micro_batch in (None, 4):
        assert_equal(value_and_grad(density, points, micro_batch), expected)


def test_ops_that_break_in_batches_are_named():
    assert plan(potential_of(BreaksInBatches())).reason == (
        "vectorised over draws, BreaksInBatches fails (ValueError: vectors only)"
    )


def test_ops_that_mix_draws_are_found_out():
    found = plan(potential_of(WrongInBatches()))
    assert found.micro_batch is None
    assert "differs from that of single draws" in found.reason


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e6])
def test_draws_that_are_mixed_in_a_small_gradient_are_found_out(size):
    """Beside a coordinate whose gradient is a billion times as large."""
    with pm.Model() as model:
        x = pm.Normal("x", 0, 1, shape=3)
        big = pm.Normal("big", 0, 1)
        pm.Potential("box", -size * MixesGradients()(x) - size * 1e9 * (big - 1) ** 2)
    found = plan(model)
    assert "differs from that of single draws" in found.reason


@pytest.mark.parametrize("found", [1.0, np.inf, np.nan])
def test_an_infinite_value_is_a_difference(found):
    values = np.array([-np.inf, 2.0, 3.0])
    assert _dry_run._agree(values, values)
    assert not _dry_run._agree(np.array([found, 2.0, 3.0]), values)
    assert not _dry_run._agree(values, np.array([found, 2.0, 3.0]))


def test_rounding_of_terms_that_cancel_is_no_difference():
    with pm.Model() as model:
        x = pm.Flat("x", shape=2)
        pm.Potential("p", -1e6 * ((x[0] + x[1]) ** 2 - 2 * x[0] * x[1] - x[0] ** 2) - x[0] ** 2)
    assert plan(model) == DrawPlan(5)


def test_a_dry_run_uses_a_number_of_draws_that_is_no_size_of_the_model():
    with pm.Model() as model:
        x = pm.Normal("x", 0, 1, shape=(3, 4))
        pm.Normal("y", x[0], 1, observed=pm.Data("data", np.zeros((5, 4))))
    sizes = dry_run(ModelDensity(model))._draws.type.shape
    assert sizes == (6, 12)


def test_it_is_said_once(caplog):
    density = ModelDensity(ZOO["garch"]())
    with caplog.at_level(logging.WARNING, "pymc_flows"):
        for n_draws in (5, 5, 7):
            plan_draws(density, n_draws, density.start(), "numba")
    assert caplog.messages == [
        "Draws are evaluated one after the other: the log density contains a Scan."
    ]


def test_one_draw_needs_no_plan():
    assert plan(ZOO["garch"](), n_draws=1) == DrawPlan(None)


# -------------------------------------------------------------------------------------- black boxes


def test_black_boxes_run_on_numba():
    model = potential_of(BlackBox())
    density = ModelDensity(model)
    assert plan_draws(density, 4, density.start(), "numba") == DrawPlan(4)
    points = points_near(density, 4)
    with pytest.warns(UserWarning, match="Numba will use object mode"):
        found = value_and_grad(density, points, 4, training_mode("numba"))
    log_density = -(points**2).sum(axis=1) - 1.5 * np.log(2 * np.pi)
    assert_equal(found, (log_density, -2 * points))


def test_black_boxes_are_refused_on_jax():
    with pytest.raises(BackendError) as caught:
        plan(potential_of(BlackBox()), "jax")
    assert str(caught.value) == (
        "jax cannot run this model: it has no conversion for BlackBox, BlackBoxGradient\n"
        "Use backend='numba'."
    )


def test_a_single_draw_is_refused_as_well():
    with pytest.raises(BackendError, match="no conversion for BlackBox"):
        plan(potential_of(BlackBox()), "jax", n_draws=1)


@pytest.mark.jax
def test_numba_is_chosen_for_what_jax_cannot_run(caplog):
    density = ModelDensity(potential_of(BlackBox()))
    chain = build_chain("loc", density.dim)
    with caplog.at_level(logging.INFO, "pymc_flows"):
        assert choose_backend(None, chain, density, 5) == "numba"
    assert "JAX cannot run the model: it has no conversion for BlackBox" in caplog.text


def test_jax_is_chosen_where_it_runs_the_model_and_is_installed(monkeypatch):
    density = ModelDensity(ZOO["garch"]())
    chain = build_chain("loc", density.dim)
    assert choose_backend(None, chain, density, 5) == "jax"
    assert choose_backend("numba", chain, density, 5) == "numba"
    monkeypatch.setattr("pymc_flows.model.backend.has_jax", lambda: False)
    assert choose_backend(None, chain, density, 5) == "numba"


def test_shapes_that_jax_cannot_trace_are_refused():
    with pm.Model() as model:
        length = pm.Data("length", np.zeros(4)).shape[0]
        walk = pm.GaussianRandomWalk("walk", steps=9, init_dist=pm.Normal.dist())
        pm.Normal("y", walk[:length], 1, observed=np.zeros(4))
    with pytest.raises(BackendError, match="jax cannot run this model: Subtensor fails"):
        plan(model, "jax")
    assert plan(model, "numba") == DrawPlan(5)


def test_what_only_fails_vectorised_on_jax_is_looped_over_there():
    with pm.Model() as model:
        x = pm.Normal("x", 0, 1, shape=3)
        pm.Potential("p", -(pt.pad(x, (1, 0)) ** 2).sum())
    assert plan(model, "numba") == DrawPlan(5)
    found = plan(model, "jax")
    assert found.micro_batch is None
    assert found.reason.startswith("vectorised over draws on JAX, Pad fails")


@pytest.mark.jax
@pytest.mark.parametrize("name", ["ordered", "mixture_of_kinds"])
def test_joins_of_draws_and_data_become_joins(name):
    """PyTensor's batch of joins has a gradient that JAX cannot run."""
    density = ModelDensity(ZOO[name]())
    z = pt.matrix("z", shape=(5, density.dim))
    batch = density.batched(z)
    gradient = pytensor.grad(batch[0].sum() + batch[1].sum(), z)
    _jax.trace(z, [*batch, gradient])


@pytest.mark.parametrize("name", ["ordered", "scalars"])
def test_batches_stay_connected_to_what_points_are_computed_from(name):
    density = ModelDensity(ZOO[name]())
    points = points_near(density, 5)
    base = pt.matrix("base", shape=points.shape)
    gradients = []
    for z in (base, 2 * base):
        prior, data = density.batched(z)
        gradients.append(pytensor.grad(prior.sum() + data.sum(), base))
    fn = pytensor.function([base], gradients[0], mode=NUMPY)
    double = pytensor.function([base], gradients[1], mode=NUMPY)
    assert_allclose(double(points / 2), 2 * fn(points), rtol=1e-12)


def test_plain_graphs_need_no_tracing(monkeypatch):
    monkeypatch.setattr(_jax, "trace", lambda *_: pytest.fail("traced"))
    for name in ("eight_schools", "normal_mixture", "simplex"):
        assert plan(ZOO[name](), "jax") == DrawPlan(5)


def test_masks_are_not_plain():
    x = pt.dvector("x", shape=(4,))
    mask = pytensor.shared(np.array([True, False, True, True]), shape=(4,))
    assert _jax.is_plain([x[np.array([0, 2])].sum()])
    assert not _jax.is_plain([x[mask].sum()])


# ---------------------------------------------------------------------------------------- gradients


def test_a_log_density_without_gradient_is_refused():
    density = ModelDensity(potential_of(WithoutGradient()))
    with pytest.raises(ModelError) as caught:
        check_start(density, density.start())
    assert str(caught.value).startswith(
        "the log density of the model has no gradient: no gradient of a simulator\n"
    )
    with pytest.raises(ModelError, match="no gradient"):
        plan_draws(density, 5, density.start(), "numba")


# --------------------------------------------------------------------------------------- dry runs


def test_a_dry_run_is_made_once(monkeypatch):
    made = []
    original = _dry_run.DryRun.__init__
    monkeypatch.setattr(
        _dry_run.DryRun, "__init__", lambda self, *args: (made.append(1), original(self, *args))[0]
    )
    density = ModelDensity(ZOO["eight_schools"]())
    start = density.start()
    check_start(density, start)
    plan_draws(density, 5, start, "numba")
    plan_draws(density, 64, start, "jax")
    assert len(made) == 1


def test_bytes_per_draw_are_counted():
    """x², and a gradient of as many numbers in three steps; views of x cost nothing."""

    def size(n):
        with pm.Model() as model:
            x = pm.Flat("x", shape=n)
            pm.Potential("p", -0.5 * (x**2).sum())
        density = ModelDensity(model)
        return dry_run(density).bytes_per_draw(density.start())

    assert size(2000) - size(1000) == 4 * 8000


def test_loops_are_differentiable(rng):
    """`looped` is what the symbolic objective uses."""
    density = ModelDensity(ZOO["garch"]())
    points = points_near(density, 3)
    z = pt.matrix("z", shape=points.shape)
    prior, data = density.looped(z)
    gradient = pytensor.grad(prior.sum() + data.sum(), z)
    found = pytensor.function([z], [prior + data, gradient], mode=NUMPY)(points)
    expected = value_and_grad(density, points, None)
    assert_allclose(found[0], expected[0], rtol=1e-12)
    assert_allclose(found[1], expected[1], rtol=1e-9)
