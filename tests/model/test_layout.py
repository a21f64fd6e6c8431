"""The flat vector, and start points in it."""

import gc
import weakref

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from pymc.distributions import transforms as tr

from models import ZOO
from pymc_flows.backends.modes import NUMPY
from pymc_flows.errors import ModelError
from pymc_flows.model.layout import Slot, initial_point
from pymc_flows.model.logp import ModelDensity


def message(call, *args):
    with pytest.raises(ModelError) as caught:
        call(*args)
    return str(caught.value)


@pytest.fixture(scope="module")
def schools():
    return ModelDensity(ZOO["eight_schools"]())


# ------------------------------------------------------------------------------------------- layout


def test_variables_lie_in_the_models_order():
    density = ModelDensity(ZOO["arrays_and_dims"]())
    assert density.slots == (
        Slot("mu", slice(0, 2), (2,), "float64"),
        Slot("sigma_log__", slice(2, 5), (3,), "float64"),
        Slot("x", slice(5, 11), (3, 2), "float64"),
        Slot("one", slice(11, 12), (1,), "float64"),
    )
    assert density.dim == 12


def test_a_simplex_takes_one_number_less():
    density = ModelDensity(ZOO["simplex"]())
    assert [slot.shape for slot in density.slots] == [(2,), (2, 3)]


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_unpacking_any_batch_undoes_packing(batch):
    density = ModelDensity(ZOO["arrays_and_dims"]())
    flat = np.arange(density.dim * np.prod(batch, dtype=int), dtype=float)
    flat = flat.reshape((*batch, density.dim))
    z = pt.tensor("z", shape=(None,) * len(batch) + (density.dim,))
    values = density.unpack(z)
    assert list(values) == list(density.values)
    arrays = pytensor.function([z], list(values.values()), mode=NUMPY)(flat)
    assert [x.shape for x in arrays] == [(*batch, *slot.shape) for slot in density.slots]
    for array, slot in zip(arrays, density.slots, strict=True):
        assert_array_equal(array.reshape((*batch, -1)), flat[..., slot.slice])
    if not batch:
        point = {s.name: x for s, x in zip(density.slots, arrays, strict=True)}
        assert_array_equal(density.pack(point), flat)


def test_unpacking_keeps_static_shapes(schools):
    values = schools.unpack(pt.matrix("z", shape=(64, schools.dim)))
    assert [v.type.shape for v in values.values()] == [(64,), (64,), (64, 8)]


def test_variables_of_size_0_are_allowed_beside_others():
    with pm.Model() as model:
        pm.Normal("none", 0, 1, shape=0)
        pm.Normal("x", 1, 1)
    density = ModelDensity(model)
    assert [slot.shape for slot in density.slots] == [(0,), ()]
    assert_array_equal(density.start(), [1])


# ----------------------------------------------------------------------------------- refused models


def test_a_model_without_variables_is_refused():
    assert message(ModelDensity, pm.Model()) == (
        "the model has no free random variable, no random variables at all: there is nothing to "
        "approximate\n"
        "Build the model first, then create the approximation in its context or pass model=."
    )


def test_a_model_with_observed_variables_only_is_refused():
    with pm.Model() as model:
        pm.Normal("y", 0, 1, observed=1.0)
        pm.Poisson("n", 2, observed=[1])
    assert "only observed ones (y, n)" in message(ModelDensity, model)


@pytest.mark.parametrize(
    ("make", "dtype"),
    [(lambda: pm.Poisson("n", 3), "int64"), (lambda: pm.Bernoulli("n", 0.5, shape=2), "int64")],
)
def test_discrete_variables_are_refused(make, dtype):
    with pm.Model() as model:
        pm.Normal("x", 0, 1)
        make()
    assert message(ModelDensity, model) == (
        f"free variable 'n' is discrete ({dtype})\n"
        "A flow needs continuous variables: marginalise it out (pymc_extras.marginalize does that "
        "for finite ones) or sample it with MCMC."
    )


def test_a_model_of_size_0_is_refused():
    with pm.Model() as model:
        pm.Normal("a", 0, 1, shape=0)
        pm.HalfNormal("b", 1, shape=(2, 0))
    assert message(ModelDensity, model) == (
        "all free variables of the model have size 0: a (0,), b_log__ (2, 0)\n"
        "Give the model data or coordinates before the approximation is made."
    )


# -------------------------------------------------------------------------------------- start point


def test_the_default_start_is_the_initial_point(schools):
    point = schools.model.initial_point()
    expected = [point["mu"], point["tau_log__"], *point["raw"]]
    assert_allclose(schools.start(), expected, rtol=1e-15)
    assert schools.start().dtype == np.float64


def test_an_initial_point_is_compiled_once_and_follows_the_model(monkeypatch):
    with pm.Model() as model:
        level = pm.Data("level", 1.0)
        pm.Normal("x", level, 1)
        y = pm.Normal("y")
    assert initial_point(model) == {"x": 1, "y": 0}
    with monkeypatch.context() as patch:
        patch.setattr("pymc_flows.model.layout.make_initial_point_fn", None)
        with model:
            pm.set_data({"level": 2.0})
        assert initial_point(model) == {"x": 2, "y": 0}
    model.set_initval(y, 3.0)
    assert initial_point(model) == {"x": 2, "y": 3}
    with model:
        pm.HalfNormal("z")
    assert list(initial_point(model)) == ["x", "y", "z_log__"]
    known = weakref.ref(model)
    del model, level, y
    gc.collect()
    assert known() is None


def test_starts_are_laid_over_the_initial_point(schools):
    default = schools.start()
    found = schools.start({"tau": 2.0, "raw": np.arange(8)})
    assert_allclose(found, [default[0], np.log(2), *range(8)], rtol=1e-15)


def test_transformed_names_mean_unconstrained_values(schools):
    assert_allclose(schools.start({"tau_log__": -1.5})[1], -1.5, rtol=1e-15)


def test_scalars_are_broadcast(schools):
    assert_array_equal(schools.start({"raw": 2})[2:], np.full(8, 2.0))


def test_bounds_may_depend_on_other_variables():
    density = ModelDensity(ZOO["intervals"]())
    a, b = density.start({"b_interval__": 0.3})[:2]
    assert (a, b) == (density.start()[0], 0.3)
    # a = 1 and b = 1 of (0, 3 − 1): the middle
    assert_allclose(density.start({"a": 1.0, "b": 1.0})[1], 0, atol=1e-12)


def test_initial_values_of_others_follow_a_start():
    with pm.Model() as model:
        mu = pm.Normal("mu", 0, 1)
        pm.Normal("x", mu, 1)
    assert_array_equal(ModelDensity(model).start({"mu": 3.0}), [3, 3])


@pytest.mark.parametrize("start", [{"theta": 1.0}, {"y": 1.0}, {"sigma": 1.0}, {3: 1.0}])
def test_unknown_names_are_refused(schools, start):
    (name,) = start
    assert message(schools.start, start) == (
        f"start has a value for {name!r}, which is not a free variable of the model\n"
        "Free variables: mu, raw, tau, tau_log__."
    )


def test_two_values_for_one_variable_are_refused(schools):
    assert message(schools.start, {"tau": 1.0, "tau_log__": 0.0}) == (
        "start has two values for one variable: 'tau' and 'tau_log__'"
    )


@pytest.mark.parametrize(
    ("name", "value", "expected", "got"),
    [
        ("raw", np.zeros(7), (8,), (7,)),
        ("raw", np.zeros((2, 8)), (8,), (2, 8)),
        ("mu", [1.0, 2.0], (), (2,)),
        ("tau", [1.0, 2.0], (), (2,)),
        ("tau_log__", [1.0, 2.0], (), (2,)),
    ],
)
def test_wrong_shapes_are_refused(schools, name, value, expected, got):
    assert message(schools.start, {name: value}) == (
        f"start value of {name!r} has the wrong shape\nexpected {expected}, got {got}"
    )


def test_the_shape_of_a_simplex_is_that_of_its_values():
    density = ModelDensity(ZOO["simplex"]())
    density.start({"p": [0.2, 0.3, 0.5]})
    assert "expected (3,), got (2,)" in message(density.start, {"p": [0.5, 0.5]})
    assert "expected (2,), got (3,)" in message(density.start, {"p_simplex__": [1, 2, 3]})


@pytest.mark.parametrize("value", ["posterior", [[1], [2, 3]], object(), 1j])
def test_values_must_be_numbers(schools, value):
    assert message(schools.start, {"mu": value}).startswith("start value of 'mu' is not numeric")


@pytest.mark.parametrize(("name", "value"), [("tau", -1.0), ("mu", np.nan), ("raw", np.inf)])
def test_values_that_are_not_finite_are_refused(schools, name, value):
    text = message(schools.start, {name: value})
    assert f"start value of '{name}" in text
    assert "not finite in the unconstrained space" in text


@pytest.mark.parametrize(
    ("name", "variable", "value"),
    [
        ("simplex", "p", [0.5, 0.6, 0.7]),
        ("zero_sum", "effect", [1.0, 2.0, 3.0, 4.0]),
        ("circular", "mu", 4.0),
    ],
)
def test_values_outside_of_the_support_are_refused(name, variable, value):
    density = ModelDensity(ZOO[name]())
    text = message(density.start, {variable: value})
    assert text.startswith(f"start value of {variable!r} lies outside the support")


def test_disorder_is_outside_of_the_support():
    with pm.Model() as model:
        pm.Normal("x", [0.0, 1.0], 1, transform=tr.ordered, initval=[0.0, 1.0])
    density = ModelDensity(model)
    assert_allclose(density.start({"x": [1.0, 3.0]}), [1, np.log(2)], rtol=1e-12)
    assert "not finite" in message(density.start, {"x": [3.0, 1.0]})


# --------------------------------------------------------------------------------- single precision


@pytest.mark.parametrize("name", ["eight_schools", "simplex", "ordered", "custom_dist"])
def test_single_precision(name):
    with pytensor.config.change_flags(floatX="float64"):
        wide = ModelDensity(ZOO[name]())
        z = pt.vector("z", shape=(wide.dim,))
        values = wide.single(z)
        outputs = [*values, pytensor.grad(values[0] + values[1], z)]
        expected = pytensor.function([z], outputs, mode=NUMPY)(wide.start())
    with pytensor.config.change_flags(floatX="float32"):
        density = ModelDensity(ZOO[name]())
        start = density.start()
        assert start.dtype == np.float32
        assert {slot.dtype for slot in density.slots} == {"float32"}
        z = pt.matrix("z", shape=(3, density.dim))
        for micro_batch in (3, 2, None):
            (prior, data), grad, _ = density.value_and_grad(
                z, weights=[1.0, 1.0], micro_batch=micro_batch
            )
            assert grad.dtype == "float32"
            found = pytensor.function([z], [prior, data, grad], mode=NUMPY)(np.tile(start, (3, 1)))
            for one, two in zip(found, expected, strict=True):
                assert_allclose(one, np.broadcast_to(two, one.shape), rtol=2e-4, atol=2e-5)


def test_a_variable_that_a_potential_has_renamed_is_named():
    with pm.Model() as model:
        pm.Potential("p", pm.Normal("x"))
    with pytest.raises(ModelError, match=r"another name .*: x\npm.Potential\(name, x"):
        ModelDensity(model)
