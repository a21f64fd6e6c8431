"""One invalid draw in a batch is its own problem: all others keep their values and gradients.

PyMC's checks of parameters look at everything that they see at once. Here every model accepts
some draws and refuses others, and each draw is held against the same draw alone.
"""

from functools import cache

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from pymc.distributions.dist_math import check_parameters
from pytensor.compile.builders import OpFromGraph
from pytensor.raise_op import Assert, CheckAndRaise

from as_written import AS_WRITTEN
from pymc_flows.backends.graphs import switch_parameter_checks
from pymc_flows.backends.modes import NUMPY, training_mode
from pymc_flows.backends.ops import ops_of
from pymc_flows.model.logp import ModelDensity
from single_draws import by_variable, value_and_grad

N = 6
BAD = 2  # this draw is refused; the last one may be, too


def scale():
    sigma = pm.Normal("sigma", 1, 1)
    pm.Normal("y", 0, sigma, observed=[1.0, 2.0])


def one_of_three_scales():
    sigma = pm.Normal("sigma", 1, 1, shape=3)
    pm.Normal("y", 0, sigma, observed=np.ones((2, 3)))


def correlation_matrix(r):
    return pt.stack([pt.stack([1.0, r]), pt.stack([r, 1.0])])


def covariance():
    r = pm.Normal("r", 0, 1)
    pm.MvNormal("y", np.zeros(2), cov=correlation_matrix(r), observed=np.ones((2, 2)))


def cholesky_that_raises():
    r = pm.Normal("r", 0, 1)
    with pytest.warns(FutureWarning, match="on_raise"):
        factor = pt.linalg.cholesky(correlation_matrix(r), on_error="raise")
    pm.Normal("y", factor @ np.ones(2), 1, observed=[1.0, 2.0])


def beta_and_dirichlet():
    a = pm.Normal("a", 1, 1, shape=3)
    pm.Beta("y", a[0], 4 - a[1], observed=[0.2, 0.3])
    pm.Dirichlet("p", a, observed=[0.2, 0.3, 0.5])


def bounds():
    a = pm.HalfNormal("a", 1, default_transform=None, initval=0.5)
    u = pm.Uniform("u", 0, 1, default_transform=None)
    pm.Normal("y", u, a, observed=[0.2, 0.3])


def not_a_density():
    """A check that may not be replaced by −inf: it guards a parameter."""
    a = pm.Normal("a", 1, 1)
    root = check_parameters(pt.sqrt(pt.abs(a)), a > 0, can_be_replaced_by_ninf=False, msg="a > 0")
    pm.Normal("y", root, 1, observed=[0.2])


def nested():
    a = pm.Normal("a", 1, 1, shape=2)
    inner = check_parameters(a[0] * 2, a[0] > 0, can_be_replaced_by_ninf=False, msg="inner")
    pm.Potential("p", check_parameters(inner + a[1], a[1] > -5, inner > 0, msg="outer"))
    pm.Normal("y", 0, inner, observed=[0.2])


def users_assertion():
    a = pm.Normal("a", 1, 1)
    pm.Normal("y", Assert("a > 0")(pt.abs(a) ** 0.5, a > 0), 1, observed=[0.2])


def in_an_inner_graph():
    x = pt.dscalar()
    op = OpFromGraph([x], [pm.logp(pm.Normal.dist(0, x), 1.5)])
    a = pm.Normal("a", 1, 1)
    pm.Potential("p", op(a))


def in_a_loop():
    a = pm.Normal("a", 1, 1)
    total = pytensor.scan(
        lambda y, previous, a: previous + pm.logp(pm.Normal.dist(0, a), y),
        sequences=[pt.as_tensor(np.array([1.0, 2.0, 3.0]))],
        outputs_info=[pt.zeros(())],
        non_sequences=[a],
        return_updates=False,
    )
    pm.Potential("p", total[-1])


# The value of the refused draw.
MODELS = {
    scale: -np.inf,
    one_of_three_scales: -np.inf,
    covariance: -np.inf,
    cholesky_that_raises: np.nan,
    beta_and_dirichlet: -np.inf,
    bounds: -np.inf,
    not_a_density: np.nan,
    nested: -np.inf,
    users_assertion: np.nan,
    in_an_inner_graph: -np.inf,
    in_a_loop: -np.inf,
}
each_model = pytest.mark.parametrize("build", MODELS, ids=lambda build: build.__name__)


def build_model(build, **kwargs):
    with pm.Model(**kwargs) as model:
        build()
    return model, ModelDensity(model)


def draws(dim):
    points = 0.5 + 0.3 * np.abs(np.random.default_rng(1).standard_normal((N, dim)))
    points[BAD, 0] = -1.3
    return points


def alone(density, points):
    """Each draw on its own, through the unbatched graph."""
    z = pt.vector("z", shape=(density.dim,))
    values = density.single(z)
    outputs = [values[0] + values[1], pytensor.grad(values[0] + values[1], z)]
    fn = pytensor.function([z], outputs, mode=AS_WRITTEN)
    return [np.stack(x) for x in zip(*map(fn, points), strict=True)]


@cache
def case(build):
    """Density, draws, which of them are good, and the good ones' values and gradients."""
    model, density = build_model(build)
    points = draws(density.dim)
    good = np.arange(N) != BAD
    expected, expected_grads = alone(density, points[good])
    reference = model.compile_logp(mode=AS_WRITTEN)
    assert_allclose(
        expected, [reference(by_variable(density, point)) for point in points[good]], rtol=1e-10
    )
    return density, points, good, expected, expected_grads


def assert_only_one_is_refused(build, micro_batch, mode, refused):
    density, points, good, expected, expected_grads = case(build)
    values, grads = value_and_grad(density, points, micro_batch, mode)
    assert_array_equal(values[BAD], refused)
    assert_allclose(values[good], expected, rtol=1e-10)
    assert_allclose(grads[good], expected_grads, rtol=1e-9)


@each_model
@pytest.mark.parametrize("micro_batch", [N, 4, None])
def test_other_draws_are_untouched(build, micro_batch):
    assert_only_one_is_refused(build, micro_batch, NUMPY, MODELS[build])


@each_model
def test_other_draws_are_untouched_on_jax(build):
    micro_batch = None if build is in_a_loop else N
    assert_only_one_is_refused(build, micro_batch, training_mode("jax"), MODELS[build])


def everything_that_numba_compiles_quickly():
    scale()
    a = pm.Normal("a", 1, 1, shape=2)
    pm.Beta("z", a[0], 4 - a[1], observed=[0.2, 0.3])
    root = check_parameters(pt.sqrt(pt.abs(a[1])), a[1] > 0, can_be_replaced_by_ninf=False, msg="a")
    pm.Normal("w", root, 1, observed=[0.2])


def test_other_draws_are_untouched_on_numba():
    build = everything_that_numba_compiles_quickly
    assert_only_one_is_refused(build, N, training_mode("numba"), -np.inf)


@each_model
def test_no_check_is_left_to_raise(build):
    density, *_ = case(build)
    assert not [op for op in ops_of(density.terms) if isinstance(op, CheckAndRaise)]


def test_without_check_bounds_no_draw_is_refused():
    def shifted():
        sigma = pm.Normal("sigma", 1, 1)
        pm.CustomDist(
            "y", sigma, logp=lambda y, s: check_parameters(-(y**2) * s, s > 0), observed=[1.0, 2.0]
        )

    points = draws(1)
    _, checked = build_model(shifted)
    _, unchecked = build_model(shifted, check_bounds=False)
    expected = -0.5 * (points[:, 0] - 1) ** 2 - 0.5 * np.log(2 * np.pi) - 5 * points[:, 0]
    assert_allclose(value_and_grad(unchecked, points, N)[0], expected, rtol=1e-12)
    assert value_and_grad(checked, points, N)[0][BAD] == -np.inf


def test_assertions_about_data_and_shapes_stay():
    x, data = pt.dvector("x"), pt.dscalar("data")
    about_data = Assert("data")(x.sum(), data > 0)
    about_shape = Assert("shape")(x.sum(), x.shape[0] > 2)
    outputs = switch_parameter_checks([about_data, about_shape], [x], keep=True)
    assert [type(op) for op in ops_of(outputs)].count(Assert) == 2
