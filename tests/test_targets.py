"""Targets against independent references: SciPy quadrature, finite differences, hand values."""

import itertools
import pickle

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.compile.mode import Mode
from pytensor.graph.replace import vectorize_graph
from scipy import integrate, stats

from pymc_flows import targets
from pymc_flows.errors import FlowShapeError

CHEAP = Mode(linker="py", optimizer=None)
GAUSSIAN = targets.gaussian([1.0, -2.0, 0.5], [[2.0, 0.6, 0.0], [0.6, 1.0, -0.3], [0.0, -0.3, 0.5]])
SHAPES = (targets.eight_gaussians, targets.banana, targets.ring)
ALL = (*targets.POTENTIALS, GAUSSIAN, *SHAPES)
KNOWN_LOG_Z = {"pot1": 1.8775016, "pot2": 2.9983801, "pot3": 3.5579959, "pot4": 3.6269887}

each_target = pytest.mark.parametrize("target", ALL, ids=lambda target: target.name)
each_shape = pytest.mark.parametrize("target", SHAPES, ids=lambda target: target.name)
each_potential = pytest.mark.parametrize(
    "target", targets.POTENTIALS, ids=lambda target: target.name
)


def published_density(name, x, y):
    """exp(-U) as printed in Table 1 of the paper, with the tail; the naive, unstable form."""
    w1 = np.sin(2 * np.pi * x / 4)
    w2 = 3 * np.exp(-0.5 * ((x - 1) / 0.6) ** 2)
    w3 = 3 / (1 + np.exp(-(x - 1) / 0.3))
    tail = np.exp(-0.1 * np.abs(x))
    match name:
        case "pot1":
            ring = np.exp(-0.5 * ((np.sqrt(x**2 + y**2) - 2) / 0.4) ** 2)
            modes = np.exp(-0.5 * ((x - 2) / 0.6) ** 2) + np.exp(-0.5 * ((x + 2) / 0.6) ** 2)
            return ring * modes
        case "pot2":
            return np.exp(-0.5 * ((y - w1) / 0.4) ** 2) * tail
        case "pot3":
            first = np.exp(-0.5 * ((y - w1) / 0.35) ** 2)
            second = np.exp(-0.5 * ((y - w1 + w2) / 0.35) ** 2)
            return (first + second) * tail
        case "pot4":
            first = np.exp(-0.5 * ((y - w1) / 0.4) ** 2)
            second = np.exp(-0.5 * ((y - w1 + w3) / 0.35) ** 2)
            return (first + second) * tail
        case _:
            raise AssertionError(name)


def integral(name, function):
    """The integral of function(x, y) times the published density, to about 1e-11 relative."""
    y = np.linspace(-9, 9, 2001)  # the integrand is 0 at the ends: trapezia converge fast

    def inner(x):
        return integrate.trapezoid(function(x, y) * published_density(name, x, y), y)

    edges = np.linspace(0, 6, 4)
    if name != "pot1":
        edges = np.concatenate([edges, np.geomspace(6, 400, 20)[1:]])
    edges = np.concatenate([-edges[:0:-1], edges])  # with an edge at the kink of |x|
    # Far to the left the naive w3 is 3 / (1 + inf), which is right.
    with np.errstate(over="ignore"):
        return sum(
            integrate.fixed_quad(np.vectorize(inner), *panel, n=100)[0]
            for panel in itertools.pairwise(edges)
        )


@pytest.fixture(scope="module")
def compiled():
    """(value, gradient) of each target as a function of a matrix of points."""

    def build(target):
        z = pt.matrix("z", shape=(None, target.dim))
        value = target.log_density(z)
        return pytensor.function([z], [value, pytensor.grad(value.sum(), z)], mode=CHEAP)

    return {target.name: build(target) for target in ALL}


# ---------------------------------------------------------------------- density


@each_potential
def test_density_is_the_published_one(target):
    x, y = np.meshgrid(np.linspace(-4, 4, 41), np.linspace(-4, 4, 43))
    np.testing.assert_allclose(
        np.exp(target.log_density(np.stack([x, y], axis=-1))),
        published_density(target.name, x, y),
        rtol=1e-10,
    )


@pytest.mark.parametrize(
    ("name", "point", "expected"),
    [
        ("pot1", (0, 2), np.log(2) - 0.5 * (2 / 0.6) ** 2),
        ("pot1", (0, 0), np.log(2) - 12.5 - 0.5 * (2 / 0.6) ** 2),
        ("pot2", (1, 1), -0.1),
        ("pot2", (-2, 0.4), -0.7),
        ("pot3", (1, -2), -0.1 + np.log1p(np.exp(-0.5 * (3 / 0.35) ** 2))),
        ("pot4", (1, -0.5), -0.1 + np.log(np.exp(-0.5 * (1.5 / 0.4) ** 2) + 1)),
        ("eight_gaussians", (0, 0), np.log(8) - 50),
        ("eight_gaussians", (-1000, 0), -2 * 995**2),
        ("banana", (2, 2), -0.5),
        ("banana", (-2, 1), -2.5),
        ("ring", (0, 0), -50),
        ("ring", (-2.4, 1.8), 0),
    ],
)
def test_density_by_hand(name, point, expected):
    assert getattr(targets, name).log_density(point) == pytest.approx(expected, abs=1e-12)


def test_gaussian_is_scipys():
    z = np.random.default_rng(1).normal(size=(5, 4, 3))
    reference = stats.multivariate_normal(GAUSSIAN.mean, GAUSSIAN.cov).logpdf(z)
    np.testing.assert_allclose(GAUSSIAN.log_density(z) - GAUSSIAN.log_z, reference, atol=1e-12)


@each_target
def test_numpy_and_pytensor_agree(target, compiled):
    z = np.random.default_rng(2).normal(scale=4, size=(300, target.dim))
    far = 1e6 * z[:50]
    for points in (z, far, np.zeros((1, target.dim))):
        value, _ = compiled[target.name](points)
        np.testing.assert_allclose(value, target.log_density(points), rtol=1e-12, atol=1e-12)


@each_target
def test_gradient_is_the_finite_difference(target, compiled):
    z = np.random.default_rng(3).normal(scale=2, size=(200, target.dim))
    _, gradient = compiled[target.name](z)
    for axis, step in enumerate(1e-5 * np.eye(target.dim)):
        difference = (target.log_density(z + step) - target.log_density(z - step)) / 2e-5
        np.testing.assert_allclose(gradient[:, axis], difference, rtol=1e-6, atol=1e-6)


@each_target
def test_finite_at_the_origin_and_far_away(target, compiled):
    angle = np.linspace(0, 2 * np.pi, 17)
    circle = np.pad(
        np.stack([np.cos(angle), np.sin(angle)], axis=-1), ((0, 0), (0, target.dim - 2))
    )
    axes = np.concatenate([np.eye(target.dim), -np.eye(target.dim)])  # exact ties of the modes
    points = np.concatenate([np.zeros((1, target.dim)), axes, 1e-200 * axes, 1e6 * circle])
    value, gradient = compiled[target.name](points)
    assert np.isfinite(value).all()
    assert np.isfinite(gradient).all()
    with np.errstate(all="raise", under="ignore"):
        assert np.isfinite(target.log_density(points)).all()


def test_gradient_far_away_by_hand(compiled):
    _, gradient = compiled["pot1"](np.array([[1e6, 0.0], [0.0, 1e6], [0.0, 0.0]]))
    slope = -(1e6 - 2) / 0.4**2
    expected = [[slope - (1e6 - 2) / 0.6**2, 0], [0, slope], [0, 0]]
    np.testing.assert_allclose(gradient, expected, rtol=1e-12, atol=1e-12)
    # At x = 4000 the wave is 0 and climbs with slope pi / 2.
    _, gradient = compiled["pot2"](np.array([[4000.0, 1000.0]]))
    np.testing.assert_allclose(gradient, [[1000 / 0.16 * np.pi / 2 - 0.1, -1000 / 0.16]], rtol=1e-9)


@each_target
def test_float32_stays_float32(target):
    assert target.log_density(np.zeros((3, target.dim), "float32")).dtype == "float32"
    with pytensor.config.change_flags(floatX="float32"):
        z = pt.matrix("z", dtype="float32")
        value = target.log_density(z)
        assert value.dtype == "float32"
        assert pytensor.grad(value.sum(), z).dtype == "float32"


def test_module_can_be_chosen():
    value = targets.pot2.log_density(np.array([1.0, 1.0]), xp=pt)
    assert isinstance(value, pt.TensorVariable)
    assert value.eval(mode=CHEAP) == pytest.approx(-0.1, abs=1e-12)


def test_the_funnel_is_scipys():
    target = targets.Funnel("narrow", dim=4, scale=1.5)
    z = np.random.default_rng(16).normal(scale=2, size=(50, 4))
    others = stats.norm(scale=np.exp(z[:, :1] / 2)).logpdf(z[:, 1:]).sum(-1)
    reference = stats.norm(scale=1.5).logpdf(z[:, 0]) + others
    np.testing.assert_allclose(target.log_density(z) - target.log_z, reference, atol=1e-10)
    graph = target.log_density(pt.constant(z))
    np.testing.assert_allclose(graph.eval(mode=CHEAP), target.log_density(z), rtol=1e-12)


def test_draws_of_the_funnel():
    z = targets.funnel.sample(20_000, random_seed=17)
    assert z.shape == (20_000, 10)
    assert stats.kstest(z[:, 0] / 3, "norm").pvalue > 1e-3
    others = (z[:, 1:] / np.exp(z[:, :1] / 2)).T
    assert min(stats.kstest(column, "norm").pvalue for column in others) > 1e-3
    assert stats.spearmanr(z[:, 0], np.abs(others).sum(0)).pvalue > 1e-3


@pytest.mark.parametrize("z", [np.zeros(3), np.zeros((2, 1)), 0.0, pt.vector("z", shape=(3,))])
def test_wrong_shape(z):
    with pytest.raises(FlowShapeError, match=r"expected points of shape \(\.\.\., 2\).*'pot1'"):
        targets.pot1.log_density(z)


# ---------------------------------------------------------------------- log Z


@each_potential
def test_log_z_by_quadrature(target):
    by_scipy = np.log(integral(target.name, lambda x, y: np.ones_like(y)))
    assert target.log_z == pytest.approx(by_scipy, abs=1e-9)
    assert target.log_z == pytest.approx(KNOWN_LOG_Z[target.name], abs=1e-7)


@each_shape
def test_log_z_by_a_grid(target):
    # Trapezia of what is 0 at the ends; all three are wide on the scale of the steps.
    x, y = np.linspace(-12, 12, 401), np.linspace(-12, 90, 1701)
    density = np.exp(target.log_density(np.stack(np.meshgrid(x, y, indexing="ij"), axis=-1)))
    by_grid = np.log(integrate.trapezoid(integrate.trapezoid(density, y), x))
    assert target.log_z == pytest.approx(by_grid, abs=1e-8)


def test_gaussian_log_z():
    assert GAUSSIAN.log_z == pytest.approx(
        0.5 * np.linalg.slogdet(2 * np.pi * np.array(GAUSSIAN.cov))[1], abs=1e-13
    )


# ---------------------------------------------------------------------- draws


@each_potential
def test_moments_of_draws(target):
    z = target.sample(40_000, random_seed=4)
    normaliser = integral(target.name, lambda x, y: np.ones_like(y))
    for function in (
        lambda x, y: y,
        lambda x, y: x * y,
        lambda x, y: y**2,
        lambda x, y: np.abs(x) + 0 * y,
        lambda x, y: np.sin(np.pi * x / 2) * y,
    ):
        values = function(*z.T)
        exact = integral(target.name, function) / normaliser
        assert abs(values.mean() - exact) < 4 * values.std() / np.sqrt(len(values))


@each_potential
@pytest.mark.parametrize("axis", [0, 1])
def test_marginals_of_draws(target, axis):
    z = target.sample(20_000, random_seed=5)[:, axis]
    reach = 6 if target.name == "pot1" else 150
    grids = np.linspace(-reach, reach, 6001), np.linspace(-9, 9, 401)
    with np.errstate(over="ignore"):
        density = published_density(target.name, *np.meshgrid(*grids, indexing="ij"))
    cdf = integrate.cumulative_simpson(density.sum(1 - axis), x=grids[axis], initial=0)
    result = stats.kstest(z, lambda x: np.interp(x, grids[axis], cdf / cdf[-1]))
    assert result.pvalue > 1e-3


def test_gaussian_draws():
    z = GAUSSIAN.sample(20_000, random_seed=6)
    deviation = (z - GAUSSIAN.mean) @ np.linalg.inv(np.linalg.cholesky(GAUSSIAN.cov)).T
    for column in deviation.T:
        assert stats.kstest(column, "norm").pvalue > 1e-3
    np.testing.assert_allclose(np.corrcoef(deviation.T), np.eye(3), atol=4 / np.sqrt(20_000))


def test_draws_of_eight_gaussians():
    target = targets.eight_gaussians
    z = target.sample(20_000, random_seed=13)
    mode = target.nearest(z)
    assert stats.chisquare(np.bincount(mode, minlength=8)).pvalue > 1e-3
    angle = 2 * np.pi * mode / 8
    for column in (z - 5 * np.stack([np.cos(angle), np.sin(angle)], axis=-1)).T / 0.5:
        assert stats.kstest(column, "norm").pvalue > 1e-3


def test_draws_of_the_banana():
    z0, z1 = targets.banana.sample(20_000, random_seed=14).T
    along, across = z0 / 2, (z1 - z0**2 / 2) / 0.5
    assert stats.kstest(along, "norm").pvalue > 1e-3
    assert stats.kstest(across, "norm").pvalue > 1e-3
    assert stats.spearmanr(along, across).pvalue > 1e-3


@pytest.mark.parametrize(
    "target", [targets.ring, targets.Ring("wide", 1.0, 2.0), targets.Ring("disc", 0.0, 1.0)]
)
def test_draws_of_rings(target):
    z = target.sample(20_000, random_seed=15)
    radius = np.linspace(0, target.radius + 10 * target.width, 20_001)
    density = radius * np.exp(-0.5 * ((radius - target.radius) / target.width) ** 2)
    cdf = integrate.cumulative_simpson(density, x=radius, initial=0)
    found = np.linalg.norm(z, axis=-1)
    assert stats.kstest(found, lambda r: np.interp(r, radius, cdf / cdf[-1])).pvalue > 1e-3
    angle = np.arctan2(z[:, 1], z[:, 0])
    assert stats.kstest(angle, stats.uniform(-np.pi, 2 * np.pi).cdf).pvalue > 1e-3


@each_target
def test_same_seed_same_draws(target):
    first = target.sample(7, random_seed=8)
    assert first.shape == (7, target.dim)
    np.testing.assert_array_equal(first, target.sample(7, random_seed=8))
    np.testing.assert_array_equal(first, target.sample(7, random_seed=np.random.default_rng(8)))
    assert not np.array_equal(first, target.sample(7, random_seed=9))
    assert target.sample(0, random_seed=8).shape == (0, target.dim)


# ---------------------------------------------------------------------- model


@each_target
def test_model(target):
    model = target.model()
    [value] = model.value_vars
    assert [variable.name for variable in model.free_RVs] == [target.name]
    np.testing.assert_array_equal(model.initial_point()[target.name], np.zeros(target.dim))

    z = target.sample(5, random_seed=10)
    draws = pt.matrix("draws", shape=(None, target.dim))
    batched = vectorize_graph(model.logp(), {value: draws})
    assert batched.eval({draws: z}, mode=CHEAP) == pytest.approx(target.log_density(z), abs=1e-12)


@pytest.mark.filterwarnings("ignore:Numba will use object mode:UserWarning")
def test_model_draws_exactly():
    [variable] = targets.pot3.model().free_RVs
    draws = pm.draw(variable, 300, random_seed=11, mode=CHEAP)
    assert draws.shape == (300, 2)
    assert stats.kstest(draws[:, 0], stats.laplace(scale=10).cdf).pvalue > 1e-3


def test_pymc_can_sample_the_model():
    # The py linker: this test is about PyMC accepting the model, not about the backend.
    with targets.pot1.model():
        idata = pm.sample(
            draws=5,
            tune=5,
            chains=1,
            cores=1,
            random_seed=12,
            progressbar=False,
            compute_convergence_checks=False,
            compile_kwargs={"mode": CHEAP},
        )
    assert np.isfinite(idata["posterior"]["pot1"].values).all()
    assert idata["posterior"]["pot1"].shape == (1, 5, 2)


# ---------------------------------------------------------------------- values


@each_target
def test_targets_are_values(target):
    log_z = target.log_z
    again = pickle.loads(pickle.dumps(target))
    assert again == target
    assert hash(again) == hash(target)
    assert again.log_z == log_z
    with pytest.raises(AttributeError):
        target.name = "other"
    assert "0x" not in repr(target)


def test_names():
    assert [target.name for target in targets.POTENTIALS] == ["pot1", "pot2", "pot3", "pot4"]
    assert (targets.pot1, targets.pot4) == (targets.POTENTIALS[0], targets.POTENTIALS[3])
    assert [target.name for target in SHAPES] == ["eight_gaussians", "banana", "ring"]
    assert targets.gaussian([0.0], [[1.0]], name="z").name == "z"


@pytest.mark.parametrize(
    ("mean", "cov", "error", "message"),
    [
        (0.0, 1.0, FlowShapeError, r"got shapes \(\) and \(\)"),
        ([0, 0], [1, 1], FlowShapeError, r"got shapes \(2,\) and \(2,\)"),
        ([0, 0], np.eye(3), FlowShapeError, r"got shapes \(2,\) and \(3, 3\)"),
        ([0, 0], [[1, 1], [1, 1]], ValueError, "got a symmetric matrix whose smallest eigenvalue"),
        ([0, 0], [[1, 0.5], [0, 1]], ValueError, "got an asymmetric matrix"),
        ([0, np.nan], np.eye(2), ValueError, "NaN"),
        ([0, 0], [[1, np.inf], [np.inf, 1]], ValueError, "infinite"),
    ],
)
def test_gaussian_refuses(mean, cov, error, message):
    with pytest.raises(error, match=message):
        targets.gaussian(mean, cov)
