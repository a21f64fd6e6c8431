"""A mixture of flows as an approximation: what SciPy says of a mixture of Gaussians."""

import cloudpickle
import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from scipy import stats

import pymc_flows as pmf
from pymc_flows.approximation import MixtureState
from pymc_flows.backends.modes import NUMPY
from pymc_flows.errors import ArgumentError, NotInvertibleError, StorageError
from pymc_flows.flows.frame import Frame

MEANS = np.array([[-4.0, 1.0], [2.0, 0.0], [3.0, 5.0]])
SCALES = np.array([[[1.0, 0.0], [0.5, 0.7]], [[0.5, 0.0], [0.0, 2.0]], [[1.5, 0.0], [-1.0, 0.4]]])
WEIGHTS = np.array([0.2, 0.5, 0.3])
PARTS = [stats.multivariate_normal(m, s @ s.T) for m, s in zip(MEANS, SCALES, strict=True)]


@pytest.fixture(scope="module")
def model():
    with pm.Model(coords={"axis": ["first", "second"]}) as model:
        pm.Normal("x", 0, 5, dims="axis")
    return model


@pytest.fixture(scope="module")
def approx(model):
    flows = [
        pmf.NormalizingFlow("scale-loc", model=model, jitter=0, start=Frame(m, s), random_seed=1)
        for m, s in zip(MEANS, SCALES, strict=True)
    ]
    state = MixtureState([flow.flow for flow in flows], 7 * WEIGHTS)
    return pmf.NormalizingFlow.of(state, model, random_seed=2)


def log_density(points):
    return np.log(sum(w * part.pdf(points) for w, part in zip(WEIGHTS, PARTS, strict=True)))


def test_its_density_is_that_of_the_mixture(approx, rng):
    points = rng.normal(1, 5, size=(50, 2))
    np.testing.assert_allclose(approx.log_prob(points), log_density(points), rtol=1e-10)
    z = pt.matrix("z")
    graph = pytensor.function([z], approx.log_prob(z), mode=NUMPY)
    np.testing.assert_allclose(graph(points), log_density(points), rtol=1e-10)


def test_draws_come_with_their_density_and_in_the_right_shares(approx):
    points, log_q = approx.sample_and_log_prob(10_000, random_seed=3)
    np.testing.assert_allclose(log_q, log_density(points), rtol=1e-10)
    share = np.mean(PARTS[0].pdf(points) * WEIGHTS[0] / np.exp(log_density(points)))
    assert share == pytest.approx(WEIGHTS[0], abs=0.002)  # by lot it would be 0.008
    # In random order: neighbours are independent.
    x = points[:, 0] - points[:, 0].mean()
    assert abs(np.mean(x[1:] * x[:-1]) / x.var()) < 0.05


def test_one_draw_is_of_a_part_drawn_by_lot(approx):
    rng = np.random.default_rng(1)
    firsts = [approx.q.draw(1, rng)[0][0, 0] for _ in range(400)]
    assert np.mean(np.array(firsts) < -1) == pytest.approx(WEIGHTS[0], abs=0.06)


def test_the_map_from_the_base_has_the_same_distribution(approx):
    z0 = np.random.default_rng(4).standard_normal((20_000, 2))
    points, log_q = approx.q.from_base(z0)
    np.testing.assert_array_equal(approx.forward(z0), points)
    np.testing.assert_allclose(log_q, log_density(points), rtol=1e-10)
    mean, cov = exact_moments()
    error = np.sqrt(np.diag(cov) / len(z0))
    np.testing.assert_array_less(abs(points.mean(axis=0) - mean), 4 * error)
    # What chooses a part leaves no trace in it.
    first = stats.norm.cdf(z0[:, 0]) < WEIGHTS[0]
    inside = (points[first] - MEANS[0]) @ np.linalg.inv(SCALES[0]).T
    assert stats.kstest(inside[:, 0], "norm").pvalue > 0.01
    assert abs(np.corrcoef(inside.T)[0, 1]) < 0.06


def exact_moments():
    mean = WEIGHTS @ MEANS
    cov = sum(
        w * (s @ s.T + np.outer(m - mean, m - mean))
        for w, m, s in zip(WEIGHTS, MEANS, SCALES, strict=True)
    )
    return mean, cov


def test_moments_are_exact(approx):
    mean, cov = exact_moments()
    np.testing.assert_allclose(approx.mean.eval(mode=NUMPY), mean)
    np.testing.assert_allclose(approx.cov.eval(mode=NUMPY), cov)
    np.testing.assert_allclose(approx.std.eval(mode=NUMPY), np.sqrt(np.diag(cov)))


def test_pymc_gets_draws_of_it_too(approx):
    z0 = np.random.default_rng(5).standard_normal((6, 2))
    noise = pt.matrix("z0", shape=(None, 2))
    points, log_q = pytensor.function([noise], approx.q.draw_graph(noise), mode=NUMPY)(z0)
    np.testing.assert_array_equal(points, approx.forward(z0))
    np.testing.assert_allclose(log_q, log_density(points), rtol=1e-10)


def test_where_an_inverse_overflows_the_other_parts_count(approx, monkeypatch):
    points = MEANS.copy()
    expected = np.log(sum(w * p.pdf(points) for w, p in zip(WEIGHTS[1:], PARTS[1:], strict=True)))
    state = MixtureState([Overflows(), *approx.q.parts[1:]], WEIGHTS)
    np.testing.assert_allclose(state.log_prob(points), expected, rtol=1e-10)
    nothing = MixtureState([Overflows(), Overflows()], [1, 1])
    assert np.isnan(nothing.log_prob(points)).all()


class Overflows:
    def log_prob(self, points):
        return np.full(len(points), np.nan)


def test_samples_reports_and_copies_work(approx):
    with pytest.warns(UserWarning, match="Pareto k-hat"):  # it is no posterior
        tree = approx.sample(200, correct="psis", random_seed=1)
    assert tree.posterior["x"].dims == ("chain", "draw", "axis")
    assert np.isfinite(tree["sample_stats"]["log_weight"]).all()
    report = pmf.report(approx, 500, random_seed=1)
    assert np.isfinite(report.quality.elbo)
    assert str(approx) == "NormalizingFlow(mixture of 3 'scale-loc', dim=2)"
    assert "scale-loc" in approx._repr_html_()
    copy = cloudpickle.loads(cloudpickle.dumps(approx))
    np.testing.assert_array_equal(copy.log_prob(MEANS), approx.log_prob(MEANS))


def test_what_needs_one_map_is_refused(approx):
    with pytest.raises(NotInvertibleError, match="mixture of 3 'scale-loc' is not one smooth map"):
        approx.inverse(MEANS)


def test_a_file_keeps_it(approx, model, tmp_path):
    approx.save(tmp_path / "mixture.nc")
    loaded = pmf.load(tmp_path / "mixture.nc", model)
    assert isinstance(loaded.q, MixtureState)
    np.testing.assert_array_equal(loaded.q.weights, approx.q.weights)
    np.testing.assert_array_equal(loaded.log_prob(MEANS), approx.log_prob(MEANS))
    for one, other in zip(
        loaded.sample_and_log_prob(9), approx.sample_and_log_prob(9), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("formulas", [None, "scale-loc", [], ["scale-loc"] * 4, ["nonsense"]])
def test_a_malformed_file_is_refused(approx, model, formulas):
    from pymc_flows.approximation import contents, mixture_state
    from pymc_flows.io.files import Content

    content = contents(approx)
    record = {**content.record, "mixture": formulas}
    with pytest.raises((StorageError, pmf.FormulaError)):
        mixture_state(Content(content.formula, content.arrays, record), model)


@pytest.mark.parametrize("weights", [[1, 0, 1], [1, np.nan, 1], [1, 1], [-1, 1, 1]])
def test_weights_must_be_positive(approx, weights):
    with pytest.raises(ArgumentError, match="mixture"):
        MixtureState(approx.q.parts, weights)
