"""Sums over rows tile by tile: equal to the log density as it is, and only where they can be."""

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from pymc.distributions.transforms import ordered

from pymc_flows.backends.functions import function_of
from pymc_flows.backends.modes import NUMPY, PLAIN, training_mode
from pymc_flows.model.examine import DrawPlan, plan_draws
from pymc_flows.model.logp import ModelDensity
from pymc_flows.model.tiles import find
from pymc_flows.model.tiles.slices import TakeTile, TileBounds, bounds
from single_draws import points_near

N, P, GROUPS, K, DRAWS = 103, 3, 7, 3, 4
WEIGHTS = [0.5, 2.0]
_rng = np.random.default_rng(0)
X = _rng.normal(size=(N, P))
GROUP = _rng.integers(GROUPS, size=N)
CLASS = _rng.integers(K, size=N)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Some ten tiles of the rows here, the last of them with rows of the one before."""
    monkeypatch.setattr(find, "TILE_BYTES", 10 * 8 * DRAWS)


def scale(name):
    return pm.HalfNormal(name, 1.0)


def cutpoints():
    start = np.arange(K - 1.0)
    return pm.Normal("cut", 0, 1, shape=K - 1, transform=ordered, initval=start)


LIKELIHOODS = {
    "bernoulli": lambda eta: pm.Bernoulli("y", logit_p=eta, observed=CLASS > 0),
    "binomial": lambda eta: pm.Binomial("y", n=5, logit_p=eta, observed=CLASS),
    "poisson": lambda eta: pm.Poisson("y", mu=pt.exp(eta), observed=CLASS),
    "normal": lambda eta: pm.Normal("y", eta, scale("s"), observed=X[:, 0]),
    "negative binomial": lambda eta: pm.NegativeBinomial(
        "y", mu=pt.exp(eta), alpha=scale("alpha"), observed=CLASS
    ),
    "student": lambda eta: pm.StudentT("y", nu=scale("nu"), mu=eta, sigma=0.5, observed=X[:, 0]),
    "ordered": lambda eta: pm.OrderedLogistic(
        "y", eta=eta, cutpoints=cutpoints(), observed=CLASS, compute_p=False
    ),
    "categorical": lambda eta: pm.Categorical("y", logit_p=eta, observed=CLASS),
}


def predictor(effects, likelihood):
    """Linear, or an effect for the group of each row; of a category a column each."""
    more = (K,) if likelihood == "categorical" else ()
    if effects == "linear":
        return pt.dot(X, pm.Normal("b", 0, 1, shape=(P, *more)))
    return pm.Normal("b", 0, 1, shape=(GROUPS, *more))[GROUP]


def compare(density, n_sums, *, mode=PLAIN, rtol=1e-11):
    """Values and gradient in tiles, found to be those of the whole."""
    points = points_near(density, DRAWS)
    z = pt.matrix("z", shape=points.shape)
    sums = density.rows_in_tiles(DRAWS)
    at = 2 * z  # computed from an input, as points of a flow are
    assert len(sums) == n_sums
    assert all(x.tile.n % x.tile.length for x in sums)
    whole, tiled = (
        density.value_and_grad(at, weights=WEIGHTS, micro_batch=DRAWS, tiled=tiled)[:2]
        for tiled in (False, True)
    )
    expected = function_of([z], [*whole[0], whole[1]], mode=PLAIN)(points / 2)
    found = function_of([z], [*tiled[0], tiled[1]], mode=mode)(points / 2)
    for x, y in zip(found, expected, strict=True):
        assert_allclose(x, y, rtol=rtol, atol=1e-11)
    assert np.isfinite(expected[2]).all()


@pytest.mark.parametrize("effects", ["linear", "gathered"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_value_and_gradient_are_those_of_the_whole(likelihood, effects):
    with pm.Model() as model:
        LIKELIHOODS[likelihood](predictor(effects, likelihood))
    compare(ModelDensity(model), 1)


def everything():
    """Two observed variables of different rows that share a scale, a potential, and pm.Data."""
    half = N // 2
    with pm.Model() as model:
        data = pm.Data("X", X)
        b = pm.Normal("b", 0, 1, shape=P)
        s = scale("s")
        eta = pm.Deterministic("eta", data @ b)
        pm.Normal("y", eta, s, observed=X[:, 0])
        pm.Poisson("c", mu=s * pt.exp(b[GROUP[:half] % P]), observed=CLASS[:half])
        pm.Potential("p", pt.log1p(eta**2) * s)
    return model


def test_a_sum_may_be_inside_of_another():
    """What each row is divided by is summed in tiles, and the rest for all rows at once."""
    with pm.Model() as model:
        mu = pt.exp(linear()) / pt.exp(linear("c")).sum()
        pm.Normal("y", mu, 1.0, observed=X[:, 0])
    compare(ModelDensity(model), 1)


def test_several_sums_on_jax():
    compare(ModelDensity(everything()), 3, mode=training_mode("jax"))


def test_data_may_get_fewer_rows_than_a_tile(monkeypatch):
    """Without JAX, for which the number of rows is part of what is compiled."""
    monkeypatch.setattr(find, "has_jax", lambda: False)
    with pm.Model() as model:
        data, y = pm.Data("X", X), pm.Data("obs", X[:, 0])
        pm.Normal("y", data @ pm.Normal("b", 0, 1, shape=P), 1.0, observed=y)
    density = ModelDensity(model)
    z = pt.matrix("z", shape=(DRAWS, P))
    points = points_near(density, DRAWS)
    call = [
        function_of([z], [*values, grad], mode=NUMPY)
        for values, grad, _ in (
            density.value_and_grad(z, weights=WEIGHTS, micro_batch=DRAWS, tiled=tiled)
            for tiled in (False, True)
        )
    ]
    for n in (N, 5, 1, 200):
        pm.set_data({"X": np.resize(X, (n, P)), "obs": np.resize(X[:, 0], n)}, model)
        for x, y in zip(*(f(points) for f in call), strict=True):
            assert_allclose(x, y, rtol=1e-11)


def test_a_draw_outside_of_the_support_is_one():
    """A check of all rows that fails in one tile; the other draws are as they were."""
    with pm.Model() as model:
        pm.Poisson("y", mu=X[:, 0] + 4 + pm.Normal("b", 0, 1), observed=CLASS)
    density = ModelDensity(model)
    z = pt.matrix("z", shape=(DRAWS, 1))
    (_, data), _, _ = density.value_and_grad(z, weights=WEIGHTS, micro_batch=DRAWS, tiled=True)
    at = np.array([[0.0], [-3.0], [-9.0], [1.0]])
    assert_array_equal(np.isfinite(function_of([z], data, mode=NUMPY)(at)), [1, 0, 0, 1])


def linear(name="b"):
    return pt.dot(X, pm.Normal(name, 0, 1, shape=P))


def latent_of_each_row():
    return pm.Normal("b", 0, 1, shape=N)


NOT_IN_TILES = {
    "a latent of each row": latent_of_each_row,
    "a gathered latent of each row": lambda: latent_of_each_row()[np.arange(N)[::-1]],
    "a process": lambda: pt.dot(np.tri(N), latent_of_each_row()),
    "a cumulated sum": lambda: pt.cumsum(linear()),
}


@pytest.mark.parametrize("mu", NOT_IN_TILES)
def test_what_is_not_in_tiles(mu):
    with pm.Model() as model:
        pm.Normal("y", NOT_IN_TILES[mu](), 1.0, observed=X[:, 0])
    assert not ModelDensity(model).rows_in_tiles(DRAWS)


def test_few_rows_are_not_worth_it(monkeypatch):
    density = ModelDensity(everything())
    start = density.start()
    assert plan_draws(density, DRAWS, start, "numba") == DrawPlan(DRAWS)
    tiled = plan_draws(density, DRAWS, start, "numba", may_tile=True)
    assert (tiled.micro_batch, tiled.tiled) == (DRAWS, True)
    monkeypatch.setattr(find, "TILE_BYTES", 512 * 2**10)
    assert plan_draws(density, DRAWS, start, "numba", may_tile=True) == DrawPlan(DRAWS)


@pytest.mark.parametrize(("n", "length"), [(103, 10), (100, 10), (10, 10), (3, 10), (11, 10)])
def test_each_row_counts_once(n, length):
    x = pt.matrix("x")
    begin = pt.lscalar("begin")
    rows = np.arange(2.0 * n).reshape((2, n))
    take = pytensor.function([x, begin], TakeTile(length, 1)(x, begin), mode=NUMPY)
    tiles = pytensor.function([x], TileBounds(length, 1)(x), mode=NUMPY)(rows)
    assert_array_equal(tiles, bounds(n, length))
    parts = [take(rows, begin)[:, first:stop] for begin, first, stop in tiles]
    assert_array_equal(np.concatenate(parts, axis=1), rows)


def test_tiles_are_the_same_on_numba():
    x, begin = pt.matrix("x"), pt.lscalar("begin")
    outputs = [TileBounds(10, 0)(x), TakeTile(10, 0)(x, begin), TakeTile(7, 1)(x, begin)]
    found, expected = (
        pytensor.function([x, begin], outputs, mode=mode)
        for mode in (training_mode("numba"), NUMPY)
    )
    for shape, first in (((23, 11), 3), ((3, 4), 0)):
        array = np.arange(float(np.prod(shape))).reshape(shape)
        for one, other in zip(found(array, first), expected(array, first), strict=True):
            assert_array_equal(one, other)
