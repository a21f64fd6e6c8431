"""A model whose data are exchanged."""

import cloudpickle
import numpy as np
import pymc as pm
import pytensor
import pytest

from pymc_flows.errors import ArgumentError, ModelError
from pymc_flows.many.template import Template
from pymc_flows.model.log_density import LogDensity
from pymc_flows.model.logp import density_of

X, Y = np.linspace(-1, 1, 6), np.arange(6.0)


def regression(data, *, noise=1.0, constant=False):
    x, y = data
    with pm.Model(coords={"row": range(6)}) as model:
        x = np.asarray(x) if constant else pm.Data("x", x, dims="row")
        slope = pm.Normal("slope", 0, 2)
        pm.Normal("y", slope * x, noise, observed=y, dims="row")
    return model


def log_density(model, slope=0.7):
    return LogDensity(density_of(model)).value(np.array([[slope]]))[0]


@pytest.mark.parametrize("from_builder", [True, False])
def test_the_density_is_that_of_a_model_made_for_the_data(from_builder):
    first, second = (X, Y), (X[::-1] + 0.3, Y * 2)
    names = [{"x": x, "y": y} for x, y in (first, second)]
    sets = (first, second) if from_builder else names
    template = Template(regression if from_builder else regression(first), sets[0])
    expected = [log_density(regression(data)) for data in (first, second)]
    assert expected[0] != expected[1]
    for _ in range(2):
        for data, value in zip(sets, expected, strict=True):
            with template.with_data(data) as model:
                assert log_density(model) == pytest.approx(value, rel=1e-12)
            assert log_density(template.own(data)) == pytest.approx(value, rel=1e-12)


def test_the_model_and_its_density_stay_the_same_objects():
    template = Template(regression, (X, Y))
    with template.with_data((X, Y)) as one:
        density = density_of(one)
    with template.with_data((X, -Y)) as other:
        assert other is one
        assert density_of(other) is density


def test_the_model_that_was_given_is_left_as_it_is():
    model = regression((X, Y))
    before = log_density(model)
    with Template(model, {"y": Y}).with_data({"y": -Y, "x": 3 * X}):
        assert log_density(model) == before
    np.testing.assert_array_equal(model["x"].get_value(), X)


def test_it_travels_without_what_a_process_makes_for_itself():
    template = Template(regression((X, Y)), {"y": Y})
    with template.with_data({"y": 2 * Y}) as model:
        expected = log_density(model)
    with cloudpickle.loads(cloudpickle.dumps(template)).with_data({"y": 2 * Y}) as model:
        assert log_density(model) == expected


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"z": X}, "the model has no data 'z'\nIt has: x, y"),
        ({"y": Y[:3]}, r"observed values of 'y' have shape \(3,\), expected \(6,\)"),
        (Y, "a data set must be a dict of values by name"),
        ({"y": np.ma.array(Y, mask=Y > 3)}, "values of 'y' are partly masked"),
    ],
)
def test_data_that_do_not_fit_are_refused(data, message):
    with pytest.raises(ArgumentError, match=message):
        Template(regression((X, Y)), {}).own(data)


def test_fractions_do_not_become_integers():
    def count(data):
        with pm.Model() as model:
            size = pm.Data("size", np.array([3, 4]))
            pm.Binomial("y", size, pm.Beta("p", 1, 1), observed=np.array([1, 2]))
        return model

    template = Template(count(None), {})
    own = template.own({"y": [2.0, 3.0], "size": [5.0, 6.0]})
    np.testing.assert_array_equal(own["size"].get_value(), [5, 6])
    for data in ({"y": [0.5, 1.0]}, {"size": [np.nan, 4.0]}):
        with pytest.raises(ArgumentError, match="must be of type int"):
            template.own(data)


def test_observed_values_may_be_shared_variables_without_a_name():
    def shared(data):
        with pm.Model() as model:
            pm.Normal("y", pm.Normal("mu"), observed=pytensor.shared(np.asarray(data)))
        return model

    with Template(shared, Y).with_data(2 * Y) as model:
        np.testing.assert_array_equal(model.rvs_to_values[model["y"]].get_value(), 2 * Y)


def test_models_that_differ_in_more_than_data_are_refused():
    """Silently fitting the first model's constants to all data sets would be the worst of all."""
    template = Template(lambda data: regression(data, constant=True), (X, Y))
    with template.with_data((X, 2 * Y)):
        pass
    with pytest.raises(ArgumentError, match="differ in more than their data"):
        with template.with_data((2 * X, Y)):
            pass
    noisy = Template(lambda data: regression((X, Y), noise=data), 1.0)
    with pytest.raises(ArgumentError, match="differ in more than their data"):
        with noisy.with_data(2.0):
            pass


def test_a_builder_must_build():
    with pytest.raises(ArgumentError, match=r"the builder must return a pymc.Model, got 3"):
        Template(lambda data: 3, None).own(None)


def test_what_is_observed_by_way_of_a_computation_is_refused():
    def minibatch(data):
        with pm.Model() as model:
            mu = pm.Normal("mu")
            pm.Normal("y", mu, observed=pm.Minibatch(data, batch_size=2), total_size=6)
        return model

    with pytest.raises(ModelError, match="observed values of 'y' are computed"):
        Template(minibatch, Y).own(Y)
