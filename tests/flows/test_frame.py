"""Fixed coordinates of a flow."""

import cloudpickle
import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest
from scipy import stats

import pymc_flows as pmf
from pymc_flows.backends.modes import NUMPY
from pymc_flows.errors import ArgumentError, FlowShapeError
from pymc_flows.flows.frame import Frame

CENTER = np.array([1.0, -2.0, 0.5])
DIAGONAL = np.array([0.1, 2.0, 30.0])
DENSE = np.array([[0.1, 0, 0], [1.5, 2.0, 0], [-4.0, 7.0, 30.0]])
SCALES = {"none": None, "diagonal": DIAGONAL, "dense": DENSE}
every_scale = pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)


def matrix(scale):
    return {0: np.eye(3), 1: np.diag(DIAGONAL), 2: DENSE}[0 if scale is None else scale.ndim]


def model():
    with pm.Model() as m:
        pm.Normal("x", 0, 1, shape=2)
        pm.Normal("y", 0, 1)
    return m


@every_scale
@pytest.mark.parametrize("shape", [(3,), (5, 3), (2, 4, 3)])
def test_take_undoes_place_on_arrays_and_graphs(scale, shape, rng):
    frame = Frame(CENTER, scale)
    z = rng.normal(size=shape)
    points = frame.forward(z)
    np.testing.assert_allclose(points, z @ matrix(scale).T + CENTER, rtol=1e-14)
    np.testing.assert_allclose(frame.inverse(points), z, rtol=1e-12, atol=1e-12)
    graph = frame.inverse(frame.forward(pt.constant(z)))
    np.testing.assert_allclose(graph.eval(mode=NUMPY), z, rtol=1e-12, atol=1e-12)


@every_scale
def test_log_det_is_that_of_the_matrix(scale):
    _, expected = np.linalg.slogdet(matrix(scale))
    np.testing.assert_allclose(Frame(CENTER, scale).log_det, expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(
    "scale",
    [np.ones(2), np.ones((3, 2)), -DIAGONAL, np.diag([1.0, 0, 1]), np.array([1, np.inf, 1])],
)
def test_a_scale_that_is_no_map_is_refused(scale):
    with pytest.raises(FlowShapeError, match="scale must"):
        Frame(CENTER, scale)


@every_scale
def test_an_approximation_in_a_frame_is_the_gaussian_it_says(scale, rng):
    frame = Frame(CENTER, scale)
    approx = pmf.NormalizingFlow("scale-loc", model=model(), jitter=0, start=frame)
    cov = matrix(scale) @ matrix(scale).T
    exact = stats.multivariate_normal(CENTER, cov)
    points, log_q = approx.sample_and_log_prob(50, random_seed=1)
    np.testing.assert_allclose(log_q, exact.logpdf(points), rtol=1e-12)
    np.testing.assert_allclose(approx.log_prob(points), log_q, rtol=1e-12)
    np.testing.assert_allclose(approx.log_prob(pt.constant(points)).eval(mode=NUMPY), log_q)
    np.testing.assert_allclose(approx.mean.eval(mode=NUMPY), CENTER)
    np.testing.assert_allclose(approx.cov.eval(mode=NUMPY), cov, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(approx.std.eval(mode=NUMPY), np.sqrt(np.diagonal(cov)), rtol=1e-12)
    np.testing.assert_allclose(approx.center_point(), CENTER)


def test_a_frame_of_the_posterior_makes_the_loss_constant():
    """N(center, scale scaleᵀ) is the target: −log q = −log p for every draw."""
    with pm.Model() as m:
        pm.MvNormal("x", CENTER, cov=DENSE @ DENSE.T)
    inference = pmf.NFVI("scale-loc", model=m, jitter=0, start=Frame(CENTER, DENSE))
    inference.fit(3, obj_n_mc=5, backend="jax", progressbar=False)
    np.testing.assert_allclose(inference.hist[0], 0, atol=1e-10)


def test_a_copy_keeps_the_frame():
    approx = pmf.NormalizingFlow("planar", model=model(), start=Frame(CENTER, DENSE))
    copy = cloudpickle.loads(cloudpickle.dumps(approx))
    for a, b in zip(
        *(x.sample_and_log_prob(4, random_seed=2) for x in (approx, copy)), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_a_frame_of_another_dimension_is_refused():
    with pytest.raises(FlowShapeError, match=r"needs a center \(3,\)"):
        pmf.NormalizingFlow("loc", model=model(), start=Frame(np.zeros(2)))


def test_a_frame_of_another_model_is_refused():
    with pm.Model() as other:
        pm.Normal("a")
        pm.HalfNormal("b", shape=2)
    frame = pmf.find_frame(other, random_seed=1)
    assert frame.variables == (("a", 1), ("b_log__", 2))
    assert frame.astype("float32").variables == frame.variables
    assert pmf.NormalizingFlow("loc", model=other, start=frame).ddim == 3
    with pytest.raises(ArgumentError, match=r"model\n.*'x' \(2\), 'y' \(1\), got .*'a' \(1\)"):
        pmf.NormalizingFlow("loc", model=model(), start=frame)
    nameless = Frame(frame.center, frame.scale)
    assert pmf.NormalizingFlow("loc", model=model(), start=nameless).ddim == 3
