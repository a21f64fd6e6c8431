"""Approximations, inferences, formulas and chains through pickle, cloudpickle and copy."""

import copy
import pickle
import subprocess
import sys
import textwrap

import cloudpickle
import numpy as np
import pymc as pm
import pytest
from numpy.testing import assert_array_equal

import pymc_flows as pmf
from pymc_flows.backends.modes import NUMPY
from pymc_flows.flows import build_chain

ALL_FIVE = "scale-radial*2-hh*3-planar*2-loc"


def make_model():
    with pm.Model(coords={"k": ["u", "v"]}) as model:
        a = pm.HalfNormal("a")
        data = pm.Data("data", [1.0, 2.0], dims="k")
        x = pm.Normal("x", 1, 2, dims="k")
        pm.Deterministic("m", a * x, dims="k")
        pm.Normal("y", x, a, observed=data, dims="k")
    return model


def through_cloudpickle(thing):
    return cloudpickle.loads(cloudpickle.dumps(thing))


both_ways = pytest.mark.parametrize("duplicate", [through_cloudpickle, copy.deepcopy])


@pytest.fixture
def approx(rng):
    """An approximation that has a past: other parameters, losses, draws."""
    approx = pmf.NormalizingFlow(ALL_FIVE, model=make_model(), random_seed=1, start={"a": 2.0})
    for value in approx.params:
        value.set_value(rng.standard_normal(value.type.shape))
    approx.hist = np.array([3.0, 2.0])
    approx.scale_cost_to_minibatch = False
    approx.sample(2)
    return approx


@both_ways
def test_a_copy_draws_the_same(approx, duplicate):
    other = duplicate(approx)
    assert type(other) is pmf.NormalizingFlow
    assert other.sample(4, random_seed=1).posterior.equals(
        approx.sample(4, random_seed=1).posterior
    )
    assert_array_equal(other.sample_and_log_prob(4)[0], approx.sample_and_log_prob(4)[0])
    points = approx.sample_and_log_prob(4, random_seed=2)[0]
    assert_array_equal(other.log_prob(points), approx.log_prob(points))
    assert_array_equal(other.hist, [3, 2])
    assert not other.scale_cost_to_minibatch
    assert repr(other) == repr(approx)
    assert_array_equal(other.center_point(), approx.center_point())
    assert other.rng.randint(2**30) == approx.rng.randint(2**30)


@both_ways
def test_a_copy_and_its_model_belong_together(approx, duplicate):
    other = duplicate(approx)
    assert other.model is not approx.model
    node = other.sample_node(other.model["m"], deterministic=True)
    expected = approx.sample_node(approx.model["m"], deterministic=True)
    assert_array_equal(node.eval(mode=NUMPY), expected.eval(mode=NUMPY))
    assert set(other.groups[0].replacements) == set(other.model.value_vars)
    with other.model:
        pm.set_data({"data": [5.0, 6.0]})
    assert_array_equal(other.sample(1).observed_data.y, [5, 6])
    assert_array_equal(approx.sample(1).observed_data.y, [1, 2])


@both_ways
def test_a_copy_has_parameters_of_its_own(approx, duplicate):
    before = [p.get_value() for p in approx.params]
    other = duplicate(approx)
    for mine, theirs, value in zip(approx.params, other.params, before, strict=True):
        assert mine is not theirs
        assert_array_equal(theirs.get_value(), value)
        theirs.set_value(value + 1)
        assert_array_equal(mine.get_value(), value)


def test_a_copy_of_a_copy(approx):
    other = through_cloudpickle(copy.deepcopy(through_cloudpickle(approx)))
    assert other.sample(2, random_seed=1).posterior.equals(
        approx.sample(2, random_seed=1).posterior
    )


def test_containers_keep_one_copy(approx):
    model, one, other = through_cloudpickle((approx.model, approx, [approx]))
    assert one is other[0]
    assert one.model is model
    one, other = copy.deepcopy([approx, approx])
    assert one is other


def test_plain_pickle_names_cloudpickle(approx):
    for thing in (approx, [approx], pmf.NFVI("loc", model=approx.model)):
        with pytest.raises(pickle.PicklingError, match=r"cloudpickle\.dumps\(approx\)"):
            pickle.dumps(thing)


def test_another_process_draws_the_same(approx, tmp_path):
    path = tmp_path / "approx.pkl"
    path.write_bytes(cloudpickle.dumps(approx))
    code = f"""
        import cloudpickle, numpy as np
        with open({str(path)!r}, "rb") as file:
            approx = cloudpickle.load(file)
        posterior = approx.sample(3, random_seed=1).posterior
        np.savez({str(tmp_path / "draws.npz")!r}, m=posterior.m, x=posterior.x, k=posterior.k)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=120)
    posterior = approx.sample(3, random_seed=1).posterior
    with np.load(tmp_path / "draws.npz") as draws:
        for name in ("m", "x", "k"):
            assert_array_equal(draws[name], posterior[name])


@both_ways
def test_an_inference_before_a_fit(duplicate):
    inference = pmf.NFVI("planar*2", model=make_model(), random_seed=1)
    other = duplicate(inference)
    assert other.approx is other.objective.approx
    assert other.hist.shape == (0,)
    drawn = [x.approx.sample(3, random_seed=1).posterior for x in (inference, other)]
    assert drawn[0].equals(drawn[1])
    with pytest.raises(TypeError, match="fit"):
        other.refine(1)


@pytest.fixture(scope="module")
def fitted():
    inference = pmf.NFVI("scale-loc", model=make_model(), random_seed=1)
    inference.fit(5, backend="jax", progressbar=False, obj_n_mc=2)
    return cloudpickle.dumps(inference)


@both_ways
def test_an_inference_after_a_fit_can_be_refined(fitted, duplicate):
    """Losses, optimizer state and noise go along; the loop is compiled again when it is needed."""
    inference = pickle.loads(fitted)
    other = duplicate(inference)
    for x in (inference, other):
        x.refine(4, progressbar=False)
    assert inference.hist.shape == (9,)
    assert_array_equal(inference.hist, other.hist)
    for p, q in zip(inference.approx.params, other.approx.params, strict=True):
        assert p is not q
        assert_array_equal(p.get_value(), q.get_value())
    assert_array_equal(other.approx.hist, other.hist)


@pytest.mark.parametrize("make", [pickle.dumps, cloudpickle.dumps])
@pytest.mark.parametrize("thing", [pmf.Formula("(planar*2-loc)*3"), build_chain(ALL_FIVE, 3)])
def test_formulas_and_chains_go_through_plain_pickle(make, thing):
    other = pickle.loads(make(thing))
    assert other == thing
    assert hash(other) == hash(thing)
    assert repr(other) == repr(thing)
    assert copy.deepcopy(thing) == thing
