"""Hyperparameters, field and groups of models whose structure is known."""

import re

import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest

import pymc_flows as pmf
from models import ZOO
from pymc_flows.errors import ArgumentError, ModelError
from pymc_flows.model.curvature import Curvature
from pymc_flows.model.logp import density_of
from pymc_flows.model.structure import structure

COUNTY = np.array([0, 0, 1, 2, 2, 2, 3, 4, 5, 6])
X = np.linspace(-1, 1, 10)


def slopes(**kwargs):
    coords = {"county": ["Aitkin", "Anoka", "Becker", "Benton", "Brown", "Cass", "Clay"]}
    with pm.Model(coords=coords) as model:
        mu = pm.Normal("mu", 0, 1, shape=2)
        tau = pm.HalfNormal("tau", 1, shape=2)
        sigma = pm.HalfNormal("sigma")
        a = pm.Normal("a", 0, 1, dims="county")
        b = pm.Normal("b", 0, 1, dims="county")
        line = mu[0] + tau[0] * a[COUNTY] + (mu[1] + tau[1] * b[COUNTY]) * X
        pm.Normal("y", line, sigma, observed=X)
    return structure(model, **kwargs)


def names(found, indices):
    return sorted({found.element_name(i).partition("[")[0] for i in indices})


def assert_independent(found):
    """No factor sees two groups, and what it sees agrees with its group."""
    inner = found.incidence[:, found.field].toarray()
    for row, group in zip(inner, found.factor_groups, strict=True):
        seen = set(found.groups[row]) - {-1}
        assert seen == ({group} if group >= 0 else set())


def test_random_intercepts_and_slopes():
    found = slopes()
    assert found.hyper_names == ("mu", "tau", "sigma")
    assert found.field_names == ("a", "b")
    assert found.n_groups == 7
    np.testing.assert_array_equal(found.group_sizes, 2)
    assert [found.group_name(i) for i in range(3)] == [
        "county=Aitkin",
        "county=Anoka",
        "county=Becker",
    ]
    assert found.element_name(found.field[0]) == "a[Aitkin]"
    assert found.n_factors == {"mu": 2, "tau": 2, "sigma": 1, "a": 7, "b": 7, "y": 10}
    np.testing.assert_array_equal(found.factor_groups[-10:], COUNTY)
    np.testing.assert_array_equal(found.factor_groups[:5], -1)
    assert not len(found.separator)
    assert not len(found.hubs)
    assert found.why_not is None
    assert_independent(found)


def test_names_overrule_the_guess():
    found = slopes(field=["mu"], hyper=["b"])
    assert found.hyper_names == ("tau", "sigma", "b")
    assert names(found, found.hubs) == names(found, found.separator) == ["mu"]
    assert found.n_groups == 7
    assert_independent(found)


def test_hessian_is_the_pattern_of_what_shares_a_factor():
    found = slopes()
    inner = found.hessian[found.field][:, found.field].toarray()
    np.testing.assert_array_equal(inner, np.tile(np.eye(7, dtype=bool), (2, 2)))
    assert found.hessian_density == found.hessian.nnz / found.dim**2


@pytest.mark.parametrize("centred", [True, False])
def test_crossed_factors(centred, rng):
    n, students, teachers = 400, 60, 8
    s, t = rng.integers(0, students, n), rng.integers(0, teachers, n)
    with pm.Model() as model:
        scale = pm.HalfNormal("scale", shape=2)
        first, second = (scale[0], scale[1]) if centred else (1, 1)
        u = pm.Normal("u", 0, first, shape=students)
        v = pm.Normal("v", 0, second, shape=teachers)
        effect = u[s] + v[t] if centred else scale[0] * u[s] + scale[1] * v[t]
        pm.Poisson("y", pt.exp(effect), observed=np.ones(n, dtype=int))
    found = structure(model)
    assert found.hyper_names == ("scale",)
    assert names(found, found.separator) == ["v"]
    assert found.n_groups == students
    assert_independent(found)


def test_nested_plates():
    school = np.repeat(np.arange(6), 3)
    with pm.Model(coords={"school": list("ABCDEF"), "class": range(18)}) as model:
        scale = pm.HalfNormal("scale", shape=2)
        a = pm.Normal("a", 0, scale[0], dims="school")
        c = pm.Normal("c", a[school], scale[1], dims="class")
        pm.Normal("y", c, 1, observed=np.arange(18.0), dims="class")
    found = structure(model)
    assert found.n_groups == 6
    np.testing.assert_array_equal(found.group_sizes, 4)
    assert not len(found.separator)
    assert found.group_name(0) == "a[A] and 3 more"
    assert_independent(found)


def test_a_prior_may_have_no_second_derivative():
    def logp(x, mu):
        return -((x - mu) ** 2).sum() - mu[0] ** 2 * x.prod() ** 2

    with pm.Model() as model:
        mu = pm.Normal("mu", shape=3)
        pm.CustomDist("x", mu, logp=logp, signature="(n)->(n)", shape=3)
    assert structure(model).field_names == ("mu", "x")


def test_functions_without_second_derivatives_leave_no_field():
    """PyTensor has the derivative of an incomplete gamma function by its shape as a series."""

    def model(shape, rate):
        with pm.Model() as model:
            scale = pm.HalfNormal("scale")
            a = pm.Normal("a", 0, scale, shape=3)
            lasted = pm.Gamma.dist(shape(scale, a), rate(scale, a))
            pm.Censored("y", lasted, lower=None, upper=2, observed=[0.5, 2.0, 2.0])
        return model

    of_field = model(lambda scale, a: pt.exp(a), lambda scale, a: scale)
    why = "PyTensor has no second derivative of Gammainc, in y"
    assert structure(of_field).why_not == why
    with pytest.raises(ModelError, match=f"no exact curvature: {why}"):
        Curvature(density_of(of_field)).pattern  # noqa: B018 - reads the graph
    of_hyper = model(lambda scale, a: scale, lambda scale, a: pt.exp(a))
    assert structure(of_hyper).why_not is None


def test_a_label_is_shared_by_all_elements_of_a_group():
    with pm.Model(coords={"school": ["A", "B"], "item": range(80)}) as model:
        scale = pm.HalfNormal("scale")
        a = pm.Normal("a", 0, scale, dims=("school", "item"))
        pm.Normal("y", a, 1, observed=np.zeros((2, 80)))
    names, indices = structure(model).names, 1 + np.arange(160)
    assert names.common(indices) == "a[A, 0] and 159 more"
    assert names.common(indices[80:]) == "school=B"
    assert names.common(indices[5::80]) == "item=5"
    with pytest.raises(IndexError, match="expected indices from 0 to 160"):
        names.element(161)


def test_fixed_effects_join_the_hyperparameters_while_they_are_few():
    def model(columns):
        design = np.random.default_rng(0).normal(size=(60, columns))
        with pm.Model() as model:
            b = pm.Normal("b", 0, 1, shape=columns)
            u = pm.Normal("u", 0, pm.HalfNormal("scale"), shape=30)
            pm.Poisson("y", pt.exp(design @ b + u[np.arange(60) % 30]), observed=np.ones(60, int))
        return structure(model)

    assert model(3).hyper_names == ("b", "scale")
    many = model(25)
    assert many.hyper_names == ("scale",)
    assert names(many, many.hubs) == names(many, many.separator) == ["b"]
    assert many.n_groups == 30


def test_an_unbounded_scale_is_a_hyperparameter():
    with pm.Model() as model:
        v = pm.Normal("v", 0, 3)
        m = pm.Normal("m", 0, 3, shape=3)
        pm.Normal("x", m[np.arange(9) % 3], pt.exp(v / 2), shape=9)
    found = structure(model)
    assert found.hyper_names == ("v",)
    assert found.field_names == ("m", "x")


def test_a_linear_transform_makes_no_hyperparameter():
    found = structure(ZOO["zero_sum"]())
    assert found.hyper_names == ("sigma",)
    assert found.field_names == ("effect", "both")


def test_bounded_effects_of_units_are_a_field():
    with pm.Model() as model:
        a = pm.Gamma("a", 2, 1)
        rate = pm.Gamma("rate", a, 1, shape=60)
        pm.Poisson("y", rate, observed=np.ones(60, int))
    found = structure(model)
    assert found.hyper_names == ("a",)
    assert found.n_groups == 60
    assert found.why_not is None


def test_scales_of_units_are_too_many():
    with pm.Model() as model:
        tau = pm.HalfCauchy("tau", 1)
        lam = pm.HalfCauchy("lam", 1, shape=60)
        beta = pm.Normal("beta", 0, 1, shape=60)
        pm.Normal("y", tau * lam * beta, 1, observed=np.ones(60))
    assert structure(model).why_not == (
        "lam has 60 bounded elements that scale those of beta: no small set of hyperparameters"
    )


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("scalars", "1 latents besides the hyperparameters: no field"),
        ("counts_and_categories", "no hyperparameter: nothing scales other latents"),
    ],
)
def test_reasons_against(name, reason):
    assert structure(ZOO[name]()).why_not == reason


def test_a_series_is_one_group_with_a_band():
    with pm.Model() as model:
        h = pm.GaussianRandomWalk(
            "h", sigma=pm.HalfNormal("s"), init_dist=pm.Normal.dist(0, 1), shape=40
        )
        pm.Normal("y", 0, pt.exp(h), observed=np.ones(40))
    found = structure(model)
    assert found.n_groups == 1
    inner = found.hessian[found.field][:, found.field]
    assert inner.nnz == 3 * 40 - 2


def test_a_sum_at_the_top_of_a_term_is_taken_apart():
    ring = np.eye(6, k=1) + np.eye(6, k=-1) + np.eye(6, k=5) + np.eye(6, k=-5)
    with pm.Model() as model:
        phi = pm.CAR("phi", mu=np.zeros(6), W=ring, alpha=0.5, tau=1.0)
        pm.Potential("soft", -0.5 * (phi**2).sum() / 3 + phi[0])
    found = structure(model)
    expected = (np.eye(6) + ring) @ (np.eye(6) + ring) * (np.eye(6) + ring) > 0
    np.testing.assert_array_equal(found.hessian.toarray()[expected], True)
    assert found.n_factors["soft"] == 7


def test_a_loop_is_dense_and_said():
    found = structure(ZOO["garch"]())
    assert found.unknown == {"Scan": 1}
    assert "count as dense     Scan (1)" in repr(found)


def test_text_and_html():
    found = slopes()
    assert repr(found) == (
        "Structure: 29 factors of 19 latents\n"
        "  factors            mu 2, tau 2, sigma 1, a 7, b 7, y 10\n"
        "  hyperparameters    5: mu, tau, sigma\n"
        "  field              14: a, b\n"
        "  groups             7 of 2, for example county=Aitkin\n"
        f"  Hessian            {found.hessian_density:.2%} of its entries\n"
        "  field given hyper  applies"
    )
    assert "<td" in found._repr_html_()
    assert "county=Aitkin" in found._repr_html_()


def test_the_model_on_the_stack():
    with ZOO["eight_schools"]():
        assert pmf.structure().n_groups == 8


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"hyper": ["nu"]}, "hyper has names that are no free variable of the model: 'nu'"),
        ({"field": "mu"}, "field must be a list of names, got the string 'mu'"),
        ({"field": ["mu"], "hyper": ["mu"]}, "mu: given as hyper and as field"),
    ],
)
def test_wrong_names(kwargs, message):
    with pytest.raises(ArgumentError, match=re.escape(message)):
        slopes(**kwargs)
