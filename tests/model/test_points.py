"""log_prob of values by name, in either space; forward and inverse maps of arrays."""

import warnings

import arviz as az
import numpy as np
import pymc as pm
import pytest
import xarray as xr
from numpy.testing import assert_allclose, assert_array_equal
from pymc.distributions import transforms as tr

import pymc_flows as pmf
from models import ZOO
from pymc_flows.errors import ArgumentError, FlowShapeError, ModelError
from pymc_flows.model.points import to_unconstrained

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "The `pymc.dims` module is experimental")
    import pymc.dims as pmd

# PyTensor says so when PyMC takes the initial point of an LKJ distribution, where it finds no BLAS.
pytestmark = pytest.mark.filterwarnings("ignore:PyTensor could not link to a BLAS")


def one(distribution, *args, **kwargs):
    with pm.Model() as model:
        distribution("x", *args, **kwargs)
    return pmf.NormalizingFlow("planar*2-scale-loc", model=model, jitter=0.5, random_seed=3)


def shapes_model():
    """Transforms that keep shapes and that change them, and bounds that are random."""
    with pm.Model(coords={"k": list("pqr")}) as model:
        pm.HalfNormal("s")
        pm.Dirichlet("simplex", np.ones(3), dims="k")
        low = pm.Normal("low", shape=2)
        pm.Uniform("between", low, low + 2)
        pm.Normal("o", shape=3, transform=tr.ordered, initval=[0, 1, 2.0])
        pm.ZeroSumNormal("z", shape=(2, 4))
        pm.LKJCholeskyCov("chol", eta=2, n=3, sd_dist=pm.Exponential.dist(1.0, shape=3))
        pm.Deterministic("double", 2 * low)
    return model


@pytest.fixture(scope="module")
def approx():
    return pmf.NormalizingFlow("scale-hh*2-loc", model=shapes_model(), jitter=0.2, random_seed=1)


@pytest.fixture(scope="module")
def tree(approx):
    return approx.sample(20, random_seed=2)


@pytest.fixture(scope="module")
def own(approx):
    return approx.sample_and_log_prob(20, random_seed=2)


# ------------------------------------------------------------------------------- integrals are 1


@pytest.mark.parametrize(
    ("distribution", "kwargs", "grid"),
    [
        (pm.Normal, {}, np.linspace(-30, 30, 60_001)),
        (pm.HalfNormal, {}, np.geomspace(1e-9, 1e7, 60_001)),
        (pm.Exponential, {"lam": 3.0}, np.geomspace(1e-9, 1e7, 60_001)),
        (pm.Uniform, {"lower": -1, "upper": 3}, 1 + 2 * np.tanh(np.linspace(-18, 18, 60_001))),
        (pm.Beta, {"alpha": 2, "beta": 3}, 0.5 + 0.5 * np.tanh(np.linspace(-18, 18, 60_001))),
    ],
)
def test_the_density_of_a_constrained_value_integrates_to_one(distribution, kwargs, grid):
    approx = one(distribution, **kwargs)
    log_q = approx.log_prob({"x": grid}, space="constrained")
    density = np.where(np.isfinite(log_q), np.exp(log_q), 0)
    assert np.trapezoid(density, grid) == pytest.approx(1, abs=2e-4)


def test_ordered_values_integrate_to_one():
    approx = one(pm.Normal, shape=2, transform=tr.ordered, initval=[0, 1.0])
    low, gap = np.linspace(-15, 15, 201), np.geomspace(1e-6, 1e6, 801)
    pairs = np.stack([np.add.outer(low, 0 * gap), np.add.outer(low, gap)], axis=-1)
    log_q = approx.log_prob({"x": pairs}, space="constrained")
    assert log_q.shape == (201, 801)
    total = np.trapezoid(np.trapezoid(np.exp(log_q), gap), low)
    assert total == pytest.approx(1, abs=2e-3)
    assert np.isneginf(approx.log_prob({"x": pairs[..., ::-1]}, space="constrained")).all()


def test_bounds_that_are_random_count_in_the_jacobian():
    with pm.Model() as model:
        low = pm.Normal("low")
        pm.Uniform("x", low, low + 2)
    approx = pmf.NormalizingFlow("scale-loc", model=model, jitter=0.3, random_seed=1)
    low, x = np.linspace(-6, 6, 601), np.linspace(-6, 8, 1401)
    both = dict(zip(["low", "x"], np.meshgrid(low, x, indexing="ij"), strict=True))
    density = np.exp(approx.log_prob(both, space="constrained"))
    assert np.trapezoid(np.trapezoid(density, x), low) == pytest.approx(1, abs=5e-3)


# ------------------------------------------------------------------------------- values by name


def test_draws_have_their_own_log_q(approx, tree, own):
    _, log_q = own
    found = approx.log_prob(tree)
    assert found.shape == (1, 20)
    assert_allclose(found[0], log_q, rtol=1e-7, atol=1e-7)
    transformed = approx.sample(20, random_seed=2, include_transformed=True)
    assert_allclose(approx.log_prob(transformed)[0], log_q, rtol=1e-9)
    for other in (tree.posterior.to_dataset(), az.extract(tree)):
        assert_allclose(np.ravel(approx.log_prob(other)), log_q, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", sorted(ZOO))
def test_draws_of_any_model_have_their_own_log_q(name):
    model = ZOO[name]()
    approx = pmf.NormalizingFlow("scale-loc", model=model, jitter=0.3, random_seed=2)
    tree = approx.sample(3, random_seed=4, include_transformed=False)
    _, log_q = approx.sample_and_log_prob(3, random_seed=4)
    assert_allclose(approx.log_prob(tree)[0], log_q, rtol=1e-5, atol=1e-5)


def test_either_name_and_any_batch(approx, tree, own):
    points, log_q = own
    values = {rv.name: tree.posterior[rv.name].values[0] for rv in approx.model.free_RVs}
    inner = {
        slot.name: points[:, slot.slice].reshape((20, *slot.shape)) for slot in approx.density.slots
    }
    assert_allclose(approx.log_prob(values), log_q, rtol=1e-7, atol=1e-7)
    assert_allclose(approx.log_prob(inner), log_q, rtol=1e-9)
    mixed = {**values, "s_log__": inner["s_log__"]}
    del mixed["s"]
    assert_allclose(approx.log_prob(mixed), log_q, rtol=1e-7, atol=1e-7)
    assert approx.log_prob({name: v[0] for name, v in values.items()}).shape == ()
    stacked = {name: v.reshape(4, 5, *v.shape[1:]) for name, v in values.items()}
    assert_allclose(approx.log_prob(stacked).ravel(), log_q, rtol=1e-7, atol=1e-7)
    none = {name: v[:0] for name, v in values.items()}
    assert approx.log_prob(none).shape == (0,)


def test_both_names_give_one_density_of_the_constrained_value():
    approx = one(pm.HalfNormal)
    x = np.array([0.1, 1.0, 7.0])
    found = approx.log_prob({"x": x}, space="constrained")
    assert_allclose(found, approx.log_prob(np.log(x)[:, None]) - np.log(x), rtol=1e-10)
    assert_allclose(found, approx.log_prob({"x_log__": np.log(x)}, space="constrained"))
    assert_allclose(approx.log_prob({"x": x}), approx.log_prob(np.log(x)[:, None]), rtol=1e-10)


@pytest.mark.parametrize("space", ["constrained", "unconstrained"])
def test_outside_of_the_support_there_is_no_density(space):
    log_q = one(pm.HalfNormal).log_prob({"x": [-1.0, 0.0, 1.0, np.inf, np.nan]}, space=space)
    assert_array_equal(np.isneginf(log_q), [True, True, False, True, False])
    assert np.isnan(log_q[-1])
    off = one(pm.Dirichlet, np.ones(3)).log_prob({"x": [[0.2, 0.3, 0.5], [0.2, 0.3, 0.6]]})
    assert_array_equal(np.isneginf(off), [False, True])


def test_a_changed_shape_has_no_density_of_its_own(approx, tree):
    with pytest.raises(ModelError, match=r"'simplex' have no density .* shape \(3,\), and \(2,\)"):
        approx.log_prob(tree, space="constrained")


def chained_angle(name, mu, kappa):
    pm.VonMises(name, mu, kappa, default_transform=tr.Chain([tr.circular, tr.circular]))


# PyMC 6.3 has none with dims.
ANGLES = [pm.VonMises, *filter(None, [getattr(pmd, "VonMises", None)]), chained_angle]


@pytest.mark.parametrize("dist", ANGLES)
def test_an_angle_has_no_density_of_its_own(dist):
    angle = one(dist, 0, 1)
    assert np.isfinite(angle.log_prob({"x": [0.5]})).all()
    with pytest.raises(ModelError, match="'x' is an angle"):
        angle.log_prob({"x": [0.5]}, space="constrained")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"nope": 1.0}, ArgumentError, "'nope', which is not a free variable"),
        ({"double": np.zeros(2)}, ArgumentError, "'double', which is not a free variable"),
        ({"s_log__": np.zeros(3)}, ArgumentError, "two values for one variable: 's' and 's_log__'"),
        ({"s": None}, ArgumentError, "no value for 's' or 's_log__'"),
        ({"low": None}, ArgumentError, "no value for 'low'\n"),
        ({"s": "big"}, ArgumentError, "value of 's' in points is not numeric: 'big'"),
        ({"s": np.ones(4)}, FlowShapeError, r"not equally many .*\ngot s \(4,\), low \(3,\)"),
        ({"low": np.ones((3, 3))}, FlowShapeError, r"expected \(..., 2\), got \(3, 3\)"),
    ],
    ids=str,
)
def test_values_that_do_not_fit(change, error, message):
    with pm.Model() as model:
        pm.HalfNormal("s")
        low = pm.Normal("low", shape=2)
        pm.Deterministic("double", 2 * low)
    approx = pmf.NormalizingFlow("scale-loc", model=model)
    values = {"s": np.ones(3), "low": np.zeros((3, 2)), **change}
    with pytest.raises(error, match=message):
        approx.log_prob({name: value for name, value in values.items() if value is not None})


def test_a_tree_without_a_variable(approx, tree):
    part = xr.DataTree.from_dict({"posterior": tree.posterior.to_dataset().drop_vars("o")})
    with pytest.raises(ArgumentError, match="no value for 'o' or 'o_ordered__'"):
        approx.log_prob(part)


@pytest.mark.parametrize("draws", [np.zeros((100, 1)), [[0.0]], None])
def test_draws_without_names(approx, draws):
    with pytest.raises(
        ArgumentError, match=r"by name: a DataTree.*\ngot (ndarray of shape|list|No)"
    ):
        to_unconstrained(approx.density, draws)


def test_arguments(approx):
    with pytest.raises(ArgumentError, match="space must be"):
        approx.log_prob(np.zeros(approx.ddim), space="real")
    with pytest.raises(ArgumentError, match="needs values by name"):
        approx.log_prob(np.zeros(approx.ddim), space="constrained")


# ------------------------------------------------------------------------------- the maps


def test_forward_and_inverse(approx, rng):
    z0 = rng.standard_normal((3, 4, approx.ddim))
    points = approx.forward(z0)
    assert points.shape == z0.shape
    assert_allclose(approx.inverse(points), z0, atol=1e-9)
    assert_allclose(approx.forward(z0[0, 0]), points[0, 0], atol=1e-12)
    assert_array_equal(approx.forward(np.zeros(approx.ddim)), approx.center_point())
    assert approx.forward(z0[:0]).shape == (0, 4, approx.ddim)


def test_draws_are_the_forward_map_of_the_base(approx):
    """Their log densities differ by the volume that the map gains."""
    points, log_q = approx.sample_and_log_prob(5, random_seed=1)
    z0 = approx.inverse(points)
    jacobian = np.stack(
        [
            (approx.forward(z0 + step) - approx.forward(z0 - step)) / 2e-6
            for step in 1e-6 * np.eye(approx.ddim)
        ]
    )
    _, log_det = np.linalg.slogdet(np.moveaxis(jacobian, 1, 0))
    base = -0.5 * (z0**2 + np.log(2 * np.pi)).sum(axis=1)
    assert_allclose(log_q, base - log_det, rtol=1e-6)


def test_maps_check_the_dimension(approx):
    for call in (approx.forward, approx.inverse):
        with pytest.raises(FlowShapeError, match="points must have shape"):
            call(np.zeros((3, 2)))


# ---------------------------------------------------------------------------------- made only once


def test_maps_are_made_once(approx, tree, monkeypatch):
    expected = approx.log_prob(tree)

    def no_more(*args, **kwargs):
        raise AssertionError("a map was made again")

    monkeypatch.setattr("pymc_flows.model.points._function", no_more)
    monkeypatch.setattr(pm.Model, "eval_rv_shapes", no_more)
    assert_array_equal(approx.log_prob(tree), expected)
