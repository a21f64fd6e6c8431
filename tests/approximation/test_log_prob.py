"""Log density of an approximation: at its own draws, and at any point."""

import dataclasses
from typing import ClassVar

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

import pymc_flows as pmf
from pymc_flows.backends.modes import NUMPY
from pymc_flows.errors import ArgumentError, FlowShapeError, NotInvertibleError
from pymc_flows.flows import Loc

ALL_FIVE = "scale-radial*2-hh*3-planar*2-loc"
FORMULAS = ["loc", "scale", "hh", "hh*5", "planar", "planar*6", "radial", "radial*6", ALL_FIVE]


def normals(dim):
    with pm.Model() as model:
        pm.Normal("x", shape=dim)
    return model


@pytest.fixture(scope="module")
def models():
    return {dim: normals(dim) for dim in (1, 2, 5)}


def bent(formula, model, rng, scale=1.0, **kwargs):
    """An approximation far from its start."""
    approx = pmf.NormalizingFlow(formula, model=model, **kwargs)
    for value in approx.params:
        value.set_value((scale * rng.standard_normal(value.type.shape)).astype(value.dtype))
    return approx


def normal_of(approx):
    rho, loc = (value.get_value()[0] for value in approx.params)
    return stats.norm(loc, np.log1p(np.exp(rho)))


def test_scale_loc_is_the_normal_density(models, rng):
    approx = bent("scale-loc", models[5], rng)
    points = 3 * rng.standard_normal((50, 5))
    expected = normal_of(approx).logpdf(points).sum(axis=1)
    assert_allclose(approx.log_prob(points), expected, rtol=1e-12)
    draws, log_q = approx.sample_and_log_prob(50, random_seed=1)
    assert_allclose(log_q, normal_of(approx).logpdf(draws).sum(axis=1), rtol=1e-12)


def test_the_symbolic_log_q_of_scale_loc_is_the_normal_density(models, rng):
    approx = bent("scale-loc", models[5], rng)
    draws, log_q, mean, scaled = approx.set_size_and_deterministic(
        [approx.symbolic_random, approx.symbolic_logq, approx.logq, approx.logq_norm], 7, 0
    )
    fn = pytensor.function([], [draws, log_q, mean, scaled], mode=NUMPY)
    draws, log_q, mean, scaled = fn()
    assert draws.shape == (7, 5)
    assert_allclose(log_q, normal_of(approx).logpdf(draws).sum(axis=1), rtol=1e-12)
    assert_allclose([mean, scaled], log_q.mean(), rtol=1e-12)


def test_an_affine_chain_is_a_multivariate_normal(models, rng):
    approx = bent("scale-hh*4-loc", models[5], rng)
    mean, cov = approx.mean.eval(mode=NUMPY), approx.cov.eval(mode=NUMPY)
    points = 3 * rng.standard_normal((50, 5))
    expected = stats.multivariate_normal(mean, cov).logpdf(points)
    assert_allclose(approx.log_prob(points), expected, rtol=1e-10)


@pytest.mark.parametrize("formula", FORMULAS)
def test_the_density_integrates_to_one_on_the_line(models, rng, formula):
    approx = bent(formula, models[1], rng, start={"x": [0.5]})
    # Several layers can make a peak that is narrow: draws put points of the grid there.
    draws, _ = approx.sample_and_log_prob(40_000, random_seed=1)
    grid = np.union1d(np.linspace(-40, 40, 40_001), draws)
    density = np.exp(approx.log_prob(grid[:, None]))
    assert np.trapezoid(density, grid) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("formula", FORMULAS)
def test_the_density_integrates_to_one_in_the_plane(models, rng, formula):
    approx = bent(formula, models[2], rng, scale=0.7, start={"x": [0.5, -1.0]})
    draws, _ = approx.sample_and_log_prob(2_000, random_seed=1)
    low, high = draws.min(axis=0) - 3, draws.max(axis=0) + 3
    x, y = (np.linspace(a, b, 400) for a, b in zip(low, high, strict=True))
    points = np.stack(np.meshgrid(x, y, indexing="ij"), axis=-1)
    density = np.exp(approx.log_prob(points))
    assert density.shape == (400, 400)
    assert np.trapezoid(np.trapezoid(density, y), x) == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("dim", [1, 2, 5])
@pytest.mark.parametrize("formula", FORMULAS)
def test_it_is_the_log_q_of_its_own_draws(models, rng, formula, dim):
    approx = bent(formula, models[dim], rng, start={"x": rng.standard_normal(dim)})
    draws, log_q = approx.sample_and_log_prob(200, random_seed=2)
    assert log_q.shape == (200,)
    assert_allclose(approx.log_prob(draws), log_q, rtol=1e-8, atol=1e-8)


def test_shapes(models, rng):
    approx = bent(ALL_FIVE, models[2], rng)
    points = rng.standard_normal((3, 4, 2))
    log_q = approx.log_prob(points)
    assert log_q.shape == (3, 4)
    assert_array_equal(approx.log_prob(points[0]), log_q[0])
    assert approx.log_prob(points[0, 0]).shape == ()
    assert approx.log_prob(points[0, 0]) == log_q[0, 0]
    assert approx.log_prob(points[:0, 0]).shape == (0,)
    assert_allclose(approx.log_prob([1, 2]), approx.log_prob(np.array([1.0, 2.0])))


@pytest.mark.parametrize("formula", ["scale-loc", ALL_FIVE, "planar*6"])
def test_a_symbolic_point_gives_a_symbolic_density(models, rng, formula):
    approx = bent(formula, models[2], rng, scale=0.5, start={"x": [1.0, 2.0]})
    points = rng.standard_normal((6, 2))
    for shape in [(None, None), (None, 2), (6, 2)]:
        symbolic = pt.tensor("points", shape=shape, dtype="float64")
        log_q = approx.log_prob(symbolic)
        value = log_q.eval({symbolic: points}, mode=NUMPY)
        assert_allclose(value, approx.log_prob(points), rtol=1e-10)
    one = pt.vector("point")
    assert_allclose(
        approx.log_prob(one).eval({one: points[0]}, mode=NUMPY), approx.log_prob(points[0])
    )


def test_the_symbolic_density_follows_points_and_parameters(models, rng):
    approx = bent("scale-loc", models[2], rng)
    point = pt.vector("point", shape=(2,))
    log_q = approx.log_prob(point)
    by_point, by_loc = pytensor.grad(log_q, [point, approx.params[1]])
    fn = pytensor.function([point], [log_q, by_point, by_loc], mode=NUMPY)
    for _ in range(2):
        x = rng.standard_normal(2)
        normal = normal_of(approx)
        slope = -(x - normal.mean()) / normal.var()
        value, by_point, by_loc = fn(x)
        assert_allclose(value, normal.logpdf(x).sum(), rtol=1e-12)
        assert_allclose([by_point, -by_loc[0]], [slope, slope], rtol=1e-12)
        approx.params[1].set_value(rng.standard_normal((1, 2)))


@pytest.mark.parametrize(
    "points",
    [
        3.0,
        np.zeros(3),
        np.zeros((2, 1)),
        pt.scalar("s"),
        pt.vector("v", shape=(3,)),
        pt.matrix("m", shape=(None, 1)),
        pt.zeros((4, 3)),
    ],
    ids=str,
)
def test_points_of_another_dimension_are_refused(models, points):
    approx = pmf.NormalizingFlow("scale-loc", model=models[2])
    with pytest.raises(FlowShapeError, match=r"points must have shape \(n, 2\)"):
        approx.log_prob(points)


@dataclasses.dataclass(frozen=True)
class OneWay(Loc):
    word: ClassVar[str] = "oneway"
    has_inverse: ClassVar[bool] = False


def test_a_chain_without_inverse_has_the_log_q_of_its_own_draws_only(models, monkeypatch):
    monkeypatch.setitem(pmf.FLOWS, "oneway", OneWay)
    approx = pmf.NormalizingFlow("scale-oneway", model=models[2])
    assert np.isfinite(approx.sample_and_log_prob(3)[1]).all()
    for points in (np.zeros((3, 2)), pt.matrix("points")):
        with pytest.raises(NotInvertibleError, match="oneway"):
            approx.log_prob(points)


@pytest.mark.parametrize("n", [0, -1, 2.5, "3", None, True, np.array([2, 3])])
def test_a_number_of_draws_that_is_none_is_refused(models, n):
    approx = pmf.NormalizingFlow("loc", model=models[1])
    with pytest.raises(ArgumentError, match="number of draws must be an integer of at least 1"):
        approx.sample_and_log_prob(n)


def test_an_integer_of_numpy_is_a_number_of_draws(models):
    approx = pmf.NormalizingFlow("loc", model=models[2])
    points, log_q = approx.sample_and_log_prob(np.int32(3))
    assert (points.shape, log_q.shape) == ((3, 2), (3,))


@pytest.mark.parametrize("formula", ["scale-loc", ALL_FIVE])
def test_single_precision(formula):
    rng = np.random.default_rng(4)
    with pytensor.config.change_flags(floatX="float32"):
        approx = bent(formula, normals(2), rng, scale=0.5, start={"x": [1.0, 2.0]})
        assert {p.dtype for p in approx.params} == {"float32"}
        draws, log_q = approx.sample_and_log_prob(100, random_seed=1)
        again = approx.log_prob(draws)
        mean = approx.mean.eval(mode=NUMPY)
        data = approx.sample(5, random_seed=1).posterior.x
    assert {x.dtype for x in (draws, log_q, again, mean, data)} == {np.dtype("float32")}
    assert_allclose(again, log_q, rtol=1e-3, atol=1e-3)
    double = pmf.NormalizingFlow(formula, model=normals(2), start={"x": [1.0, 2.0]})
    for p, q in zip(approx.params, double.params, strict=True):
        q.set_value(p.get_value().astype("float64"))
    assert_allclose(log_q, double.log_prob(draws.astype("float64")), rtol=1e-3, atol=1e-3)
