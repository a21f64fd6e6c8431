"""Another family of distributions than flows: what it has to bring, and what works with it."""

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from numpy.testing import assert_allclose
from scipy import stats

import pymc_flows as pmf
from pymc_flows.backends.modes import NUMPY
from pymc_flows.errors import NotInvertibleError
from pymc_flows.formula import Formula
from pymc_flows.io.files import read

LOC, SD = np.array([0.5, -1.0]), np.array([0.8, 1.2])


class FixedNormal:
    """Independent normals without anything to train."""

    formula, dim, is_framed = Formula("scale-loc"), 2, True
    params, params_dict, label = (), {}, "a fixed normal"

    def draw(self, n, rng):
        points = LOC + SD * rng.standard_normal((n, 2))
        return points, self.log_prob(points)

    def log_prob(self, points):
        return stats.norm(LOC, SD).logpdf(points).sum(axis=1)

    def center(self):
        return LOC

    def landmarks(self):
        return LOC + SD * np.array([[0.0, 0.0], [1.0, -1.0]])

    def draw_graph(self, z0):
        points = pt.constant(LOC) + pt.constant(SD) * z0
        return points, self.log_prob_graph(points)

    def log_prob_graph(self, points):
        return pm.logp(pm.Normal.dist(LOC, SD), points).sum(axis=-1)

    def mean(self):
        return pt.constant(LOC)

    def std(self):
        return pt.constant(SD)

    def cov(self):
        return pt.diag(pt.constant(SD**2))

    def arrays(self):
        return {"center": LOC, "scale": SD}

    def load(self, array):
        pass


@pytest.fixture(scope="module")
def approx():
    with pm.Model(coords={"side": ["left", "right"]}) as model:
        x = pm.Normal("x", LOC, SD, dims="side")
        pm.Deterministic("double", 2 * x, dims="side")
    return pmf.NormalizingFlow.of(FixedNormal(), model, random_seed=1)


def test_draws_and_densities(approx):
    posterior = approx.sample(4_000, random_seed=1).posterior
    assert list(posterior["side"].values) == ["left", "right"]
    assert_allclose(posterior["double"].mean(("chain", "draw")), 2 * LOC, atol=0.1)
    points, log_q = approx.sample_and_log_prob(5, random_seed=2)
    expected = stats.norm(LOC, SD).logpdf(points).sum(axis=1)
    assert_allclose([log_q, approx.log_prob(points)], [expected] * 2)
    assert_allclose(approx.log_prob({"x": points}), expected)
    assert_allclose(approx.log_prob(pt.constant(points)).eval(mode=NUMPY), expected)


def test_moments_and_graphs_of_pymc(approx):
    assert_allclose(approx.mean_data["x"], LOC)
    assert_allclose(approx.std_data["x"], SD)
    node = approx.sample_node(approx.model["double"].sum(), size=2_000)
    assert_allclose(node.eval(mode=NUMPY).mean(), 2 * LOC.sum(), atol=0.2)


def test_a_report_and_weights(approx):
    report = pmf.report(approx, 1_000, random_seed=1)
    assert report.quality.khat < 0.3
    assert_allclose(report.quality.log_evidence, 0, atol=1e-10)
    corrected = approx.sample(500, correct="psis", random_seed=1)
    assert_allclose(corrected.sample_stats["log_weight"], -np.log(500))


def test_it_is_saved_by_its_arrays(approx, tmp_path):
    approx.save(tmp_path / "normal.nc")
    content = read(tmp_path / "normal.nc")
    assert_allclose([content.arrays["center"], content.arrays["scale"]], [LOC, SD])
    expected = stats.norm(LOC, SD).logpdf(approx.q.landmarks()).sum(axis=1)
    assert_allclose(content.record["log_density"]["x"], expected)


def test_what_needs_a_map_of_a_normal_base_says_so(approx):
    for use in (approx.inverse, approx.forward):
        with pytest.raises(NotInvertibleError, match="not one map of N"):
            use(np.zeros((1, 2)))
    with pytest.raises(NotInvertibleError, match="not one map of N"):
        pmf.neutra(approx)


def test_pymc_compiles_nothing_in_c_for_an_approximation(monkeypatch):
    """A Cholesky factor of correlations took five seconds, for an initial point."""
    with pm.Model() as model:
        pm.Normal("x")
    found = []
    initial_point = pm.Model.initial_point

    def noted(self, *args, **kwargs):
        found.append(pytensor.config.cxx)
        return initial_point(self, *args, **kwargs)

    monkeypatch.setattr(pm.Model, "initial_point", noted)
    with pytensor.config.change_flags(cxx="some compiler"):
        pmf.NormalizingFlow("scale-loc", model=model)
    assert found
    assert set(found) == {""}
