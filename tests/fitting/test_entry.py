"""`pymc_flows.fit`: which flow its arguments stand for, and how good its defaults are."""

import math

import numpy as np
import pymc as pm
import pytest
from pymc.util import _get_seeds_per_chain

import pymc_flows as pmf
from pymc_flows.backends.modes import NUMPY
from pymc_flows.errors import ArgumentError, BackendError, FormulaError
from pymc_flows.flows import build_chain
from pymc_flows.flows.frame import Frame
from pymc_flows.model.examine import warn_if_affine

JAX = {"backend": "jax", "progressbar": False}
FRAME = Frame(np.array([3.0]), np.array([0.5]))
Y = np.array([0.3, 1.2, -0.4, 2.0, 1.1, 0.7, 0.2, 1.6, -0.1, 0.9])


@pytest.fixture(scope="module")
def model():
    with pm.Model() as model:
        x = pm.Normal("x", 0, 1)
        pm.Normal("y", x, 1, observed=Y)
    return model


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "scale-loc"),
        ({"formula": "PLANAR - loc"}, "planar-loc"),
        ({"formula": pmf.Formula("radial*2")}, "radial*2"),
        ({"method": "nfvi"}, "scale-loc"),
        ({"method": "NFVI=planar*2"}, "planar*2"),
        ({"method": " nfvi = planar * 2 "}, "planar*2"),
    ],
)
def test_the_formula_of_the_flow(model, given, expected):
    approx = pmf.fit(0, model=model, **given, **JAX)
    assert str(approx.formula) == expected


@pytest.mark.parametrize(
    "given", [{"formula": ""}, {"formula": "panar"}, {"method": "nfvi="}, {"method": "nfvi=hh*0"}]
)
def test_a_formula_that_is_none(model, given):
    with pytest.raises(FormulaError):
        pmf.fit(0, model=model, **given, **JAX)


def test_everything_reaches_the_inference(model):
    approx = pmf.fit(
        12,
        formula="scale-loc",
        model=model,
        random_seed=7,
        start=FRAME,
        inf_kwargs={"jitter": 0.0},
        obj_n_mc=5,
        **JAX,
    )
    _, seed = _get_seeds_per_chain(7, 2)  # the first is for the search
    inference = pmf.NFVI("scale-loc", model=model, random_seed=seed, start=FRAME, jitter=0.0)
    inference.fit(12, obj_n_mc=5, **JAX)
    np.testing.assert_array_equal(approx.hist, inference.hist)
    for mine, theirs in zip(approx.params, inference.approx.params, strict=True):
        np.testing.assert_array_equal(mine.get_value(), theirs.get_value())
    with model:
        assert pmf.fit(1, **JAX).model is model


@pytest.mark.parametrize(("formula", "mixes"), [("scale-loc", False), ("planar", True)])
def test_the_search_mixes_coordinates_only_if_the_flow_does(formula, mixes):
    with pm.Model() as model:
        pm.MvNormal("x", [5, -3], cov=[[4, 1.9], [1.9, 1]])
    approx = pmf.fit(0, formula=formula, model=model, random_seed=1, **JAX)
    scale = approx.q.frame.scale
    assert scale.ndim == 1 + mixes
    np.testing.assert_allclose(approx.center_point(), [5, -3], atol=0.05)


@pytest.mark.parametrize(
    "given",
    [{"callbacks": [print]}, {"checkpoint": "fit.nc"}, {"more_replacements": {"a variable": 1}}],
)
def test_callbacks_checkpoints_and_replacements_need_one_formula(given, model):
    [name] = given
    with pytest.raises(ArgumentError, match=f"{name}= needs one formula"):
        pmf.fit(3, model=model, **given, **JAX)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"gradient": "steepest"}, "gradient must be one of"),
        ({"anneal": 2}, "anneal must be"),
        ({"total_grad_norm_constraint": -1.0}, "total_grad_norm_constraint must be positive"),
    ],
)
def test_wrong_arguments_are_refused_even_if_nothing_would_be_trained(given, message, model):
    with pytest.raises(ArgumentError, match=message):
        pmf.fit(3, model=model, **given)


def test_an_inference_is_fitted_as_it_is(model):
    inference = pmf.NFVI("scale-loc", model=model)
    assert pmf.fit(3, method=inference, obj_n_mc=2, **JAX) is inference.approx
    assert len(inference.hist) == 3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", None),
        ("start", {"x": 1.0}),
        ("random_seed", 1),
        ("inf_kwargs", {"jitter": 1.0}),
        ("cores", 2),
        ("quality", "best"),
        ("hyper", ["x"]),
    ],
)
def test_arguments_that_come_too_late_for_an_inference(model, name, value):
    inference = pmf.NFVI("scale-loc", model=model)
    value = model if name == "model" else value
    with pytest.raises(ArgumentError, match=f"already made: {name} has no effect"):
        pmf.fit(3, method=inference, **{name: value}, **JAX)
    assert len(inference.hist) == 0


@pytest.mark.parametrize(
    "method",
    ["advi", "fullrank_advi", "nfvi*2", "nfvi_planar", "", 3, pmf.NFVI, pmf.NormalizingFlow],
)
def test_other_methods_are_sent_to_pymc(model, method):
    with pytest.raises(ArgumentError, match=r"method must be 'nfvi'.*\n.*use pymc\.fit"):
        pmf.fit(3, method=method, model=model, **JAX)


def test_a_formula_and_a_method(model):
    with pytest.raises(ArgumentError, match="formula= or method=, not both"):
        pmf.fit(3, formula="loc", method="nfvi", model=model, **JAX)


@pytest.mark.parametrize(
    ("formula", "dim", "layers"),
    [
        ("nvp*4-scale-loc", 1, "nvp"),
        ("maf*2-nvp-iaf-loc", 1, "iaf, maf, nvp"),
        ("nvp*4-iaf", 2, ""),
        ("spline*2-scale-loc", 1, ""),
        ("nsf*2-hh-scale-loc", 1, ""),
    ],
)
def test_couplings_of_a_single_coordinate_are_warned_of(formula, dim, layers, caplog):
    warn_if_affine(build_chain(formula, dim))
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == bool(layers)
    for text in said:
        assert f"each layer {layers} is in 1 dimension an affine map" in text
        assert "spline*2-scale-loc" in text


def test_each_fit_warns_of_them(model, caplog):
    pmf.fit(0, formula="nvp(depth=1)-loc", model=model, start=FRAME, **JAX)
    pmf.fit_draws({"x": np.linspace(-1, 1, 20)}, "nvp(depth=1)-loc", model, n=0, **JAX)
    assert [record.getMessage()[:9] for record in caplog.records] == ["The model"] * 2


def test_an_unknown_argument(model):
    with pytest.raises(TypeError, match="unexpected keyword argument 'steps'"):
        pmf.fit(3, model=model, steps=5, **JAX)
    with pytest.raises(TypeError, match="unexpected keyword argument 'jiter'"):
        pmf.fit(3, model=model, inf_kwargs={"jiter": 1}, **JAX)


def test_the_defaults_find_a_conjugate_posterior(model):
    """The posterior of the mean is normal: mean Σy/11, standard deviation 1/√11."""
    ratios = []
    for seed in range(3):
        approx = pmf.fit(model=model, random_seed=seed, **JAX)
        ratios.append(float(approx.std.eval(mode=NUMPY)[0]) * math.sqrt(11))
        assert abs(approx.mean.eval(mode=NUMPY)[0] - Y.sum() / 11) < 0.03 / math.sqrt(11)
    assert abs(np.mean(ratios) - 1) < 0.01
    assert np.abs(np.subtract(ratios, 1)).max() < 0.03


@pytest.mark.parametrize("n", ["scale-loc", pmf.Formula("planar*2")])
def test_a_formula_in_place_of_the_number_of_steps(model, n):
    with pytest.raises(ArgumentError, match=r"n is the number of steps.*\nWrite formula="):
        pmf.fit(n, model=model)


def test_simple_mistakes_are_told_before_the_search(model, monkeypatch):
    monkeypatch.setattr("pymc_flows.fitting.restarts.single.seek_frame", None)
    monkeypatch.setattr("pymc_flows.fitting.auto.seek_frame", None)
    with pytest.raises(ArgumentError, match="n must be an integer of at least 0, got -5"):
        pmf.fit(-5, model=model)
    with pytest.raises(BackendError, match="unknown backend 'torch'"):
        pmf.fit(5, model=model, backend="torch")


def test_callbacks_that_are_no_list(model):
    with pytest.raises(ArgumentError, match=r"callbacks must be a list.*\nWrite callbacks=\["):
        pmf.fit(3, formula="loc", model=model, callbacks=pmf.callbacks.Tracker(), **JAX)


def test_a_model_in_place_of_the_number_of_steps(model):
    with pytest.raises(ArgumentError, match=r"got a model\nWrite model="):
        pmf.fit(model)


@pytest.mark.parametrize(
    "call",
    [
        pmf.fit,
        pmf.find_frame,
        lambda: pmf.fit(formula="loc"),
        lambda: pmf.NFVI("loc"),
        lambda: pmf.NormalizingFlow("loc"),
        lambda: pmf.fit_draws(np.zeros((20, 1)), "loc"),
    ],
)
def test_without_a_model(call):
    with pytest.raises(TypeError, match=r"No model on context stack.\nPass model="):
        call()


@pytest.mark.parametrize("formula", [None, "loc"])
def test_a_model_that_is_none(formula):
    with pytest.raises(ArgumentError, match=r"must be a pymc.Model, got str\nPass model="):
        pmf.fit(formula=formula, model="one")


@pytest.mark.parametrize("formula", [None, "loc"])
@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("randomseed", "did you mean random_seed="),
        ("seed", r"did you mean random_seed=\?"),
        ("learning_rate", r"pm\.adam\(learning_rate="),
        ("learning_rat", r"pm\.adam\(learning_rate="),
        ("callback", "did you mean callbacks="),
        ("xyzzy", "see the documentation"),
    ],
)
def test_an_unknown_argument_gets_a_hint(model, formula, name, hint):
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}': .*{hint}"):
        pmf.fit(3, formula=formula, model=model, **{name: 1})


def test_a_quality_is_known_and_of_a_search():
    with pytest.raises(ArgumentError, match="'good' or 'best'"):
        pmf.fit(quality="perfect")
    with pytest.raises(ArgumentError, match="says when formula='auto' ends"):
        pmf.fit(formula="loc", quality="best")
