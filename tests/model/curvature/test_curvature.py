"""Sparse curvature against automatic Hessians, and how it behaves."""

import logging
import re

import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest
import scipy.sparse as sp

from as_written import AS_WRITTEN
from hessians import automatic_hessian, differenced_hessian, start_near
from models import ZOO
from pymc_flows.errors import ArgumentError
from pymc_flows.model.curvature import Curvature, assembly, batched, curvature_of
from pymc_flows.model.curvature.batched import Batched
from pymc_flows.model.curvature.coloured import ColouredHessian, colours
from pymc_flows.model.curvature.plan import Plan
from pymc_flows.model.log_density import LogDensity
from pymc_flows.model.logp import ModelDensity, density_of
from pymc_flows.model.structure import structure, structure_of

RING = np.eye(6, k=1) + np.eye(6, k=-1) + np.eye(6, k=5) + np.eye(6, k=-5)
# Terms of the zoo with factors of matrices that vary, and with loops.
DIFFERENCED = {
    "garch": ("y",),
    "gp_latent": ("y",),
    "gp_marginal": ("y",),
    "hidden_markov": ("y",),
    "lkj_cholesky": ("y",),
    "lkj_correlation": ("y",),
    "mv_normal": ("y",),
}


def assert_exact(model, tolerance=1e-9, scale=0.1, hessian=automatic_hessian):
    density = ModelDensity(model)
    z = start_near(density, scale=scale)
    curvature = Curvature(density)
    expected = -hessian(density, z)
    assert np.isfinite(expected).all()
    together = curvature.pattern.astype(float)
    together.data = curvature.entries(np.stack([z + 0.01, z]))[1]
    for found in (curvature(z), together):
        error = np.abs(found.toarray() - expected).max()
        assert error <= tolerance * max(1, np.abs(expected).max())
    return curvature


@pytest.mark.parametrize("name", ZOO)
def test_zoo(name, monkeypatch):
    # Of many points together only the graph is new, and its rewrites take long.
    monkeypatch.setattr(batched, "NUMPY", AS_WRITTEN)
    differenced = DIFFERENCED.get(name, ())
    # PyTensor's own second derivative overflows there, as its int8 constants do.
    hessian = differenced_hessian if name == "small_integers" else automatic_hessian
    tolerance = 1e-7 if differenced or hessian is differenced_hessian else 1e-9
    curvature = assert_exact(ZOO[name](), tolerance, hessian=hessian)
    assert curvature.differenced == differenced


def hsgp():
    x = np.linspace(-1, 1, 20)[:, None]
    with pm.Model() as model:
        scale = pm.InverseGamma("scale", 3, 1)
        gp = pm.gp.HSGP(m=[4], c=2.0, cov_func=pm.gp.cov.ExpQuad(1, ls=scale))
        f = gp.prior("f", X=x)
        pm.Normal("y", f, 0.3, observed=np.sin(3 * x[:, 0]))
    return model


def autoregression_in_space():
    with pm.Model() as model:
        alpha = pm.Uniform("alpha", 0, 1)
        tau = pm.Gamma("tau", 2, 1)
        phi = pm.CAR("phi", mu=np.zeros(6), W=RING, alpha=alpha, tau=tau)
        pm.Poisson("y", pt.exp(phi), observed=np.arange(6))
    return model


def intrinsic_autoregression():
    with pm.Model() as model:
        phi = pm.ICAR("phi", W=RING, sigma=pm.HalfNormal("sigma"))
        pm.Poisson("y", pt.exp(phi), observed=np.arange(6))
    return model


def nothing_observed_of_some():
    with pm.Model() as model:
        a = pm.Normal("a", 0, 1, shape=0)
        b = pm.Normal("b", 0, 1)
        pm.Normal("y", b + a.sum(), 1, observed=[0.5])
    return model


def hurdle():
    with pm.Model() as model:
        b = pm.Normal("b", 0, 1, shape=2)
        pm.HurdlePoisson("y", psi=pm.math.sigmoid(b[0]), mu=pt.exp(b[1]), observed=[0, 2, 1, 0])
    return model


def factors_of_a_matrix():
    with pm.Model() as model:
        u = pm.Normal("u", 0, 1, shape=(3, 2))
        v = pm.Normal("v", 0, 1, shape=(2, 4))
        pm.Normal("y", u @ v, 1, observed=np.arange(12.0).reshape(3, 4))
    return model


@pytest.mark.parametrize(
    "build",
    [
        hsgp,
        autoregression_in_space,
        intrinsic_autoregression,
        nothing_observed_of_some,
        hurdle,
        factors_of_a_matrix,
    ],
)
def test_more_models(build):
    assert assert_exact(build()).differenced == ()


def walk(n=8):
    with pm.Model() as model:
        sigma = pm.HalfNormal("sigma")
        h = pm.GaussianRandomWalk("h", sigma=sigma, init_dist=pm.Normal.dist(0, 1), shape=n)
        pm.StudentT("y", nu=5, mu=0, lam=pt.exp(-h), observed=np.sin(np.arange(n)))
    return model


def test_field_alone_is_a_block_of_all_and_follows_the_hyperparameters():
    density = ModelDensity(walk())
    both, field = Curvature(density), Curvature(density, structure(density.model).field)
    for scale in (0.1, 1.0):
        z = start_near(density, scale=scale)
        np.testing.assert_allclose(field(z).toarray(), both(z)[1:, 1:].toarray(), rtol=1e-12)


def test_a_latent_process_given_its_scales_is_exact(caplog):
    model = ZOO["gp_latent"]()
    density = ModelDensity(model)
    curvature = Curvature(density, structure(model).field)
    for scale in (0.1, 0.5):
        z = start_near(density, scale=scale)
        expected = -automatic_hessian(density, z)[1:, 1:]
        np.testing.assert_allclose(curvature(z).toarray(), expected, rtol=1e-8, atol=1e-8)
    assert curvature.differenced == ()


def test_pattern_of_a_random_walk_is_a_band_and_stays():
    density = ModelDensity(walk(50))
    curvature = Curvature(density, np.arange(1, 51))
    first, second = (curvature(start_near(density, seed)) for seed in (1, 2))
    assert curvature.pattern.nnz == 3 * 50 - 2
    for matrix in (second, curvature.pattern):
        np.testing.assert_array_equal(matrix.indices, first.indices)
        np.testing.assert_array_equal(matrix.indptr, first.indptr)
    assert curvature.n_evaluations == 2
    assert curvature.n_gradients == 0


def test_many_rows_of_one_cell_count_as_often_as_they_are():
    cell, x = np.repeat([0, 1, 1, 2], 25), np.tile([0.0, 1.0], 50)
    with pm.Model() as model:
        a = pm.Normal("a", 0, 1, shape=3)
        b = pm.ZeroSumNormal("b", shape=3)
        pm.Bernoulli("y", logit_p=a[cell] + b[cell] * x, observed=np.arange(100) % 3 == 0)
    assert_exact(model)


@pytest.mark.parametrize("columns", [3, 8])
def test_a_regression_has_dense_products(columns):
    x = np.random.default_rng(0).normal(size=(40, columns))
    with pm.Model() as model:
        b = pm.Normal("b", 0, 1, shape=columns)
        scale = pm.HalfNormal("scale")
        pm.Normal("y", (x @ b) * b[0], scale, observed=x[:, 0])
    assert_exact(model)


def test_value_and_gradient_come_along():
    density = ModelDensity(walk())
    z = start_near(density)
    value, gradient, matrix = Curvature(density, [3, 1]).value_grad_curvature(z)
    expected, full = LogDensity(density).value_and_grad(z[None])
    np.testing.assert_allclose(value, expected[0])
    np.testing.assert_allclose(gradient, full[0, [3, 1]])
    both = Curvature(density)(z).toarray()
    np.testing.assert_allclose(matrix.toarray(), both[np.ix_([3, 1], [3, 1])])


def test_points_are_evaluated_together(monkeypatch):
    density = ModelDensity(walk())
    curvature = Curvature(density)
    points = start_near(density) + 0.1 * np.random.default_rng(1).standard_normal((6, density.dim))
    expected = [curvature(z).data for z in points]
    calls = []
    evaluate = Plan.evaluate

    def counted(self, z, *, with_grad):
        calls.append(z)
        return evaluate(self, z, with_grad=with_grad)

    monkeypatch.setattr(Plan, "evaluate", counted)
    np.testing.assert_allclose(curvature.entries(points), expected, rtol=1e-9, atol=1e-9)
    assert len(calls) == 1  # the first point, which the others are checked with
    curvature.entries(points)
    assert len(calls) == 1  # once
    assert len(curvature.entries(points[:0])) == 0


def test_points_that_cannot_be_evaluated_together_are_tried_once(monkeypatch):
    density = ModelDensity(walk())
    curvature = Curvature(density)
    points = start_near(density) + np.array([[0.0], [0.1], [0.2]])
    made = []

    def refused(self, point, arrays):
        made.append(self)
        return False

    monkeypatch.setattr(Batched, "agrees", refused)
    for _ in range(2):
        for found, z in zip(curvature.entries(points), points, strict=True):
            np.testing.assert_array_equal(found, curvature(z).data)
    assert len(made) == 1


def test_nothing_is_raised_where_the_density_is_not_finite():
    density = ModelDensity(ZOO["without_transform"]())
    curvature = Curvature(density)
    assert np.isnan(curvature([-0.5]).toarray()).all()
    assert np.isfinite(curvature([0.5]).toarray()).all()


def test_new_data_are_seen():
    model = ZOO["with_data"]()
    density = ModelDensity(model)
    curvature = Curvature(density)
    z = start_near(density)
    before = curvature(z).toarray()
    with model:
        pm.set_data({"x": np.arange(4.0), "y": np.ones(4)})
    np.testing.assert_allclose(curvature(z).toarray(), -automatic_hessian(density, z))
    assert not np.allclose(before, curvature(z).toarray())


def test_what_is_kept_follows_exchanged_data():
    group = np.array([0, 0, 1, 1, 2])
    with pm.Model() as model:
        index = pm.Data("index", group)
        x = pm.Normal("x", 0, pm.HalfNormal("tau", 1), shape=3)
        pm.Poisson("y", pt.exp(x[index] * pm.Data("slope", 1.0)), observed=pm.Data("count", group))
    density = density_of(model)
    points = density.start() + np.array([[0.0], [0.1], [0.2]])
    first = structure(model)
    kept = curvature_of(density, first.field)
    assert curvature_of(density, first.field) is kept
    plans = []
    for name, value in (("count", 2 * group), ("slope", 2.0), ("index", group[::-1] * 2 % 3)):
        kept.entries(points)
        plans.append(kept._plan)
        with model:
            pm.set_data({name: value})
        found, fresh = structure(model), ModelDensity(model)
        assert (found.factors is first.factors) == (name != "index")
        np.testing.assert_array_equal(
            found.incidence.toarray(), structure_of(fresh).incidence.toarray()
        )
        expected = Curvature(fresh, first.field).entries(points)
        np.testing.assert_allclose(kept.entries(points), expected, rtol=1e-12)
    assert plans[0] is plans[1]  # counts are no part of a plan


@pytest.mark.parametrize("make", [walk, hurdle, factors_of_a_matrix])
def test_few_products_are_added_up_as_many_are(make, monkeypatch):
    density = ModelDensity(make())
    points = start_near(density) + np.array([[0.0], [0.1]])
    found = {}
    for few in (0, 10**9):
        monkeypatch.setattr(assembly, "FEW", few)
        found[few] = Curvature(density).entries(points)
    np.testing.assert_allclose(found[0], found[10**9], rtol=1e-9, atol=1e-9)


def sums(n, *, fixed=True, n_totals=1):
    """A field of n elements, its sum, means of its parts and some of its elements."""
    size = n // (n_totals + 1)
    with pm.Model() as model:
        x = pm.Normal("x", 0, 1, shape=n)
        scale = pm.HalfNormal("scale", 1)
        parts = np.zeros((n_totals, n))
        for i, row in enumerate(parts):
            row[i * size // 2 : i * size // 2 + size] = 1 + i
        seen = pt.concatenate([pt.dot(parts, x), x[:3]])
        pm.StudentT("seen", nu=4, mu=seen, sigma=scale, observed=np.arange(n_totals + 3.0))
        pm.Potential("sum", -0.5 * pt.square((x if fixed else pt.exp(x)).sum() / n))
    return model


def correlated(n=160):
    with pm.Model() as model:
        x = pm.MvNormal("x", np.zeros(n), cov=np.eye(n) + 0.5)
        pm.Potential("sum", -pt.square(x.sum()))
    return model


def test_products_of_long_rows_are_kept_apart():
    density = ModelDensity(sums(160, n_totals=2))
    field = structure(density.model).field
    curvature = Curvature(density, field)
    assert curvature.pattern.nnz == 160
    assert curvature.rows.shape == (3, 160)
    points = np.stack([start_near(density, seed) for seed in (1, 2)])
    for z, entries in zip(points, curvature.entries(points), strict=True):
        expected = -automatic_hessian(density, z)[np.ix_(field, field)]
        matrix = curvature.pattern.astype(float)
        matrix.data, weights = entries[:160], entries[160:]
        found = matrix.toarray() + (curvature.rows.T * weights) @ curvature.rows
        other = curvature(z)
        for full in (found, other.toarray(), np.stack([other @ unit for unit in np.eye(160)])):
            np.testing.assert_allclose(full, expected, atol=1e-12)
        np.testing.assert_allclose(other.diagonal(), np.diagonal(expected), atol=1e-12)


@pytest.mark.parametrize(
    "model",
    [
        lambda: sums(149),  # small
        lambda: sums(160, fixed=False, n_totals=0),  # a row that varies
        lambda: sums(160, n_totals=16),  # too many
        correlated,  # no sparser without
    ],
)
def test_other_rows_are_not(model):
    curvature = Curvature(ModelDensity(model()))
    assert len(curvature.rows) == 0
    assert curvature.pattern.shape == (curvature.n_field, curvature.n_field)


def test_minibatches_are_differenced_and_nothing_is_hidden():
    with pm.Model() as model:
        x, y = pm.Minibatch(np.arange(20.0), np.ones(20), batch_size=4)
        b = pm.Normal("b", 0, 1)
        pm.Normal("y", b * x, 1, observed=y, total_size=20)
    assert Curvature(ModelDensity(model)).n_field == 1


def test_differences_are_said_once(caplog):
    density = ModelDensity(ZOO["garch"]())
    curvature = Curvature(density)
    with caplog.at_level(logging.INFO):
        for seed in (1, 2):
            curvature(start_near(density, seed))
    assert caplog.text.count("by differences, 8 gradients each time: no exact one for Scan") == 1
    assert curvature.n_gradients == 16


@pytest.mark.parametrize("field", [[0, 0], [-1], [9], [], [0.5], 3])
def test_a_field_must_be_flat_indices(field):
    density = ModelDensity(walk())
    message = "field must be different flat indices from 0 to 8"
    with pytest.raises(ArgumentError, match=re.escape(message)):
        Curvature(density, field)


def test_a_point_must_have_all_latents():
    with pytest.raises(ArgumentError, match=r"expected z of shape \(9,\), got \(8,\)"):
        Curvature(ModelDensity(walk()))(np.zeros(8))


def test_colours_of_a_band_are_as_many_as_it_is_wide():
    band = sp.diags_array([np.ones(29), np.ones(30), np.ones(29)], offsets=[-1, 0, 1]).tocsr()
    found = colours(band)
    assert found.max() == 2
    for colour in range(3):
        assert (band[:, found == colour].sum(axis=1) <= 1).all()


def test_coloured_differences_of_a_quadratic_are_its_matrix(rng):
    band = sp.diags_array([np.ones(9), np.ones(10), np.ones(9)], offsets=[-1, 0, 1]).tocsr()
    matrix = band.toarray() * rng.normal(size=(10, 10))
    matrix = matrix + matrix.T
    hessian = ColouredHessian(band)
    found = hessian(lambda x: matrix @ x, rng.normal(size=10))
    np.testing.assert_allclose(found, matrix[hessian.row, hessian.column], atol=1e-8)
    assert hessian.n_colours == 3
