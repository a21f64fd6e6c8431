"""Files of an approximation, loaded with a model of other priors or data."""

import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest
from pytensor.compile.ops import wrap_py

import pymc_flows as pmf
from pymc_flows.errors import StorageError
from pymc_flows.io import files as _files


def observed(mu=0.0, sigma=1.0, data=(0.5, 1.0, -1.5), extra=False):
    with pm.Model() as model:
        x = pm.Normal("x", mu, sigma)
        pm.Normal("y", x, 1, observed=pm.Data("data", data))
        if extra:
            pm.Potential("more", -0.1 * x**2)
    return model


OTHER_DENSITIES = {
    "a prior": ({"mu": 1e-3}, {"x"}),
    "its width": ({"sigma": 1.1}, {"x"}),
    "data": ({"data": [0.5, 1.0, -1.501]}, {"y"}),
    "more data": ({"data": np.ones(5)}, {"y"}),
    "both": ({"mu": 1.0, "data": [0.0]}, {"x", "y"}),
    "a potential": ({"extra": True}, {"more"}),
}


@pytest.fixture(scope="module")
def observed_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "observed.nc"
    pmf.NormalizingFlow("scale-loc", model=observed(), random_seed=1).save(path)
    return path


@pytest.mark.parametrize("case", OTHER_DENSITIES)
def test_other_priors_and_data_are_named(case, observed_file):
    changes, terms = OTHER_DENSITIES[case]
    with pytest.raises(StorageError, match="other data or priors") as error:
        pmf.load(observed_file, observed(**changes))
    lines = str(error.value).splitlines()[1:-1]
    assert {line.split("'")[1] for line in lines} == terms
    assert "check_density=False" in str(error.value)
    loaded = pmf.load(observed_file, observed(**changes), check_density=False)
    assert loaded.formula == pmf.Formula("scale-loc")


def test_the_same_model_in_other_words_is_the_same(observed_file):
    with pm.Model() as model:
        x = pm.Normal("x", 0, tau=1.0)
        pm.Normal("y", x - 1 + 1, np.ones(3), observed=np.array([0.5, 1.0, -1.5]) * (1 + 1e-12))
    pmf.load(observed_file, model)


def test_data_can_be_set_back(observed_file):
    model = observed()
    with model:
        pm.set_data({"data": np.zeros(7)})
        with pytest.raises(StorageError, match="'y': log density"):
            pmf.load(observed_file)
        pm.set_data({"data": [0.5, 1.0, -1.5]})
        pmf.load(observed_file)


def test_a_minibatch_is_not_compared_but_its_priors_are(tmp_path):
    def minibatch(data, mu=0.0):
        with pm.Model() as model:
            x = pm.Normal("x", mu, 1)
            batch = pm.Minibatch(data, batch_size=5)
            pm.Normal("y", x, 1, observed=batch, total_size=len(data))
        return model

    data = np.linspace(0, 1, 50)
    path = tmp_path / "a.nc"
    pmf.NormalizingFlow("scale-loc", model=minibatch(data)).save(path)
    pmf.load(path, minibatch(data))
    pmf.load(path, minibatch(data + 1))
    with pytest.raises(StorageError, match="'x': log density"):
        pmf.load(path, minibatch(data, mu=0.1))


def test_densities_that_are_not_finite_are_equal_to_themselves(tmp_path):
    def half(limit):
        with pm.Model() as model:
            x = pm.Normal("x", shape=2)
            pm.Potential("half", pt.switch(x[0] > limit, 0.0, -np.inf))
            pm.Potential("root", pt.sqrt(x[1] - 5))
        return model

    path = tmp_path / "a.nc"
    pmf.NormalizingFlow("scale-loc", model=half(0.25)).save(path)
    pmf.load(path, half(0.25))
    with pytest.raises(StorageError, match="'half': log density -inf in the file, 0 in the model"):
        pmf.load(path, half(-5.0))


def test_a_model_that_cannot_be_evaluated_is_not_compared_and_the_log_says_so(tmp_path, caplog):
    def broken(message):
        @wrap_py(itypes=[pt.dscalar], otypes=[pt.dscalar])
        def fail(x):
            raise RuntimeError(message)

        with pm.Model() as model:
            pm.Potential("fails", fail(pm.Normal("x")))
        return model

    path = tmp_path / "a.nc"
    pmf.NormalizingFlow("scale-loc", model=broken("then")).save(path)
    assert _files.read(path).record["log_density"] is None
    pmf.load(path, broken("now"))
    [said] = caplog.messages
    assert said.startswith("The log density of the model could not be evaluated now")
