"""sample(correct=...): draws with importance weights, and draws resampled by them."""

import warnings

import arviz as az
import numpy as np
import pymc as pm
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

import pymc_flows as pmf
from pymc_flows.backends.modes import NUMPY
from pymc_flows.errors import ArgumentError, FitError, ModelError
from pymc_flows.flows.frame import Frame
from pymc_flows.importance import MIN_DRAWS, corrected, systematic, weigh

N = 4_000


def gaussian():
    """Posterior of mu exactly N(2, 0.5²), of sigma: unchanged, log-normal(0, 0.3)."""
    with pm.Model(coords={"k": ["a", "b"]}) as model:
        mu = pm.Normal("mu", 2, 0.5, dims="k")
        sigma = pm.LogNormal("sigma", 0, 0.3)
        pm.Deterministic("ratio", mu / sigma, dims="k")
    return model


def approximation(model, sd=0.6, shift=0.2):
    """A Gaussian of the wrong place and width; sigma is exact."""
    frame = Frame(np.array([2.0 + shift, 2.0, 0.0]), np.array([sd, 0.5, 0.3]))
    return pmf.NormalizingFlow("scale-loc", model=model, jitter=0, start=frame)


@pytest.fixture(scope="module")
def approx():
    return approximation(gaussian())


@pytest.fixture(scope="module")
def plain(approx):
    return approx.sample(N, random_seed=1)


@pytest.fixture(scope="module")
def weighted(approx):
    return approx.sample(N, random_seed=1, correct="psis")


@pytest.fixture(scope="module")
def resampled(approx):
    return approx.sample(N, random_seed=1, correct="resample")


def test_without_a_correction_there_are_no_statistics(plain):
    assert not plain.sample_stats.data_vars
    assert "khat" not in plain.sample_stats.attrs


def test_weights_leave_the_draws_as_they_are(plain, weighted):
    assert weighted.posterior.equals(plain.posterior)
    assert weighted.posterior.ratio.dims == ("chain", "draw", "k")
    found = weighted.sample_stats
    assert set(found.data_vars) == {"lp", "log_q", "log_weight"}
    assert all(v.dims == ("chain", "draw") and v.shape == (1, N) for v in found.values())
    assert_array_equal(found.draw, weighted.posterior.draw)


def test_the_log_densities_are_those_of_the_unconstrained_space(weighted):
    posterior = weighted.posterior
    mu = posterior.mu.values
    lp = stats.norm.logpdf(mu, 2, 0.5).sum(axis=-1)
    z = np.log(posterior.sigma.values)
    assert_allclose(weighted.sample_stats.lp, lp + stats.norm.logpdf(z, 0, 0.3), rtol=1e-7)
    log_q = stats.norm.logpdf(mu, [2.2, 2], [0.6, 0.5]).sum(axis=-1)
    log_q += stats.norm.logpdf(z, 0, 0.3)
    assert_allclose(weighted.sample_stats.log_q, log_q, rtol=1e-10)


def test_weighted_means_are_those_of_the_posterior(plain, weighted):
    weights = np.exp(weighted.sample_stats.log_weight)
    assert float(weights.sum()) == pytest.approx(1)
    mu = weighted.posterior.mu.isel(k=0)
    mean = float((weights * mu).sum())
    sd = float(np.sqrt((weights * (mu - mean) ** 2).sum()))
    assert mean == pytest.approx(2, abs=0.04)
    assert sd == pytest.approx(0.5, abs=0.03)
    assert abs(float(plain.posterior.mu.isel(k=0).mean()) - 2) > 0.15


def test_the_attributes_say_how_good_the_weights_are(weighted, resampled):
    attrs = weighted.sample_stats.attrs
    assert attrs["correct"] == "psis"
    assert attrs["khat"] < 0.3 < attrs["khat_threshold"]
    assert 0.5 * N < attrs["importance_ess"] < N
    assert attrs["n_without_density"] == 0
    for name in ("khat", "khat_threshold", "importance_ess"):
        assert resampled.sample_stats.attrs[name] == attrs[name]


def test_resampled_draws_need_no_weights(plain, resampled):
    mu = resampled.posterior.mu.isel(k=0)
    assert float(mu.mean()) == pytest.approx(2, abs=0.04)
    assert float(mu.std()) == pytest.approx(0.5, abs=0.03)
    summary = az.summary(resampled, var_names=["mu"], round_to="none")
    assert_allclose(summary["mean"].astype(float), 2, atol=0.04)
    assert set(mu.values.ravel()) <= set(plain.posterior.mu.isel(k=0).values.ravel())
    assert_allclose(resampled.sample_stats.log_weight, -np.log(N))
    ratio = resampled.posterior.mu / resampled.posterior.sigma
    assert_allclose(resampled.posterior.ratio, ratio.transpose(*resampled.posterior.ratio.dims))


def test_copies_count_as_one_draw_in_effective_sample_sizes(approx, resampled):
    copies = len(np.unique(resampled.posterior.mu.isel(k=0)))
    assert copies < 0.9 * N
    expected = resampled.sample_stats.attrs["importance_ess"]
    found = float(az.ess(resampled.posterior.mu.isel(k=0)))
    assert 0.6 * expected < found < 1.15 * expected


def test_seeds(approx, resampled):
    again = approx.sample(N, random_seed=1, correct="resample")
    assert again.posterior.equals(resampled.posterior)
    other = approx.sample(N, random_seed=2, correct="resample")
    assert not other.posterior.equals(resampled.posterior)


def test_equal_weights_are_perfect():
    approx = approximation(gaussian(), sd=0.5, shift=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tree = approx.sample(100, random_seed=1, correct="resample")
    assert tree.sample_stats.attrs["khat"] == -np.inf
    assert tree.posterior.equals(approx.sample(100, random_seed=1).posterior)


@pytest.mark.parametrize("correct", ["psis", "resample"])
def test_weights_with_a_heavy_tail_are_warned_of(correct):
    approx = approximation(gaussian(), sd=0.15)
    with pytest.warns(UserWarning, match=r"Pareto k-hat .* above 0.6\d, for 1000 draws"):
        tree = approx.sample(1000, random_seed=1, correct=correct)
    assert tree.sample_stats.attrs["khat"] > 0.7


def test_draws_without_density_have_no_weight():
    with pm.Model() as model:
        x = pm.Normal("x")
        pm.Potential("half", pm.math.switch(x > 0, 0.0, -np.inf))
    approx = pmf.NormalizingFlow(
        "scale-loc", model=model, jitter=0, start=Frame(np.zeros(1), np.ones(1))
    )
    tree = approx.sample(500, random_seed=1, correct="psis")
    negative = tree.posterior.x.values < 0
    assert_array_equal(np.isneginf(tree.sample_stats.log_weight), negative)
    assert tree.sample_stats.attrs["n_without_density"] == negative.sum()
    positive = approx.sample(500, random_seed=1, correct="resample").posterior.x
    assert float(positive.min()) > 0


def test_a_density_that_is_nan_is_warned_of(rng):
    points = rng.normal(size=(100, 1))
    log_p = stats.norm.logpdf(points[:, 0])
    log_q = np.array(log_p)
    log_p[3] = np.nan
    with pytest.warns(UserWarning, match="1 of them have no finite density"):
        kept, found = corrected("resample", points, log_p, log_q, rng)
    assert points[3, 0] not in kept
    assert found.attrs["khat"] == np.inf
    with (
        pytest.warns(UserWarning, match="cannot be trusted"),
        pytest.raises(FitError, match="none of 100 draws has a finite weight"),
    ):
        corrected("resample", points, np.full(100, -np.inf), log_q, rng)


def test_weights_of_draws_very_far_off_are_weighed_without_a_warning(rng):
    log_weights = -(rng.normal(size=400) ** 2)
    expected, _ = weigh(log_weights)
    log_weights[:2] = -1e200
    found, _ = weigh(log_weights)
    assert (found.elbo, found.elbo_error) == (pytest.approx(-5e197), np.inf)
    assert found.log_evidence == pytest.approx(expected.log_evidence, abs=0.02)


def test_few_weights_cannot_be_judged(rng):
    for n in range(1, MIN_DRAWS):
        found, smoothed = weigh(rng.normal(size=n))
        assert found.khat == np.inf
        assert np.exp(smoothed).sum() == pytest.approx(1)


def test_resampling_is_unbiased(rng):
    """Each draw comes n·weight times on average, and never a whole copy more or less."""
    log_q = rng.normal(size=50)
    _, smoothed = weigh(-log_q)
    expected = 50 * np.exp(smoothed)
    counts = np.zeros(50)
    points = np.arange(50.0)[:, None]
    for _ in range(400):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kept, _ = corrected("resample", points, np.zeros(50), log_q, rng)
        count = np.bincount(kept[:, 0].astype(int), minlength=50)
        assert (abs(count - expected) < 1 + 1e-9).all()
        assert (np.diff(kept[:, 0]) >= 0).all()
        counts += count / 400
    assert_allclose(counts, expected, atol=0.12)


def test_arguments(approx):
    with pytest.raises(ArgumentError, match="correct must be None, 'psis', 'resample' or False"):
        approx.sample(10, correct="sir")
    with pytest.raises(ArgumentError, match="MultiTrace has no place"):
        approx.sample(10, correct="psis", return_inferencedata=False)


def minibatch_model(y, *, batch):
    with pm.Model() as model:
        mu = pm.Normal("mu", 0, 10)
        data = pm.Minibatch(y, batch_size=10) if batch else y
        pm.Normal("y", mu, 1, observed=data, total_size=len(y) if batch else None)
    return model


def test_a_minibatch_has_the_weights_of_all_its_rows(rng):
    y = rng.normal(3, 1, size=200)
    frame = Frame(np.array([y.mean()]), np.array([200**-0.5]))
    approx = pmf.NormalizingFlow(
        "scale-loc", model=minibatch_model(y, batch=True), jitter=0, start=frame
    )
    own = approx.sample(100, correct="psis", random_seed=1)
    with minibatch_model(y, batch=False):
        tree = approx.sample(100, correct="psis", random_seed=1)
    assert tree.sample_stats.attrs["importance_ess"] == pytest.approx(100, rel=1e-3)
    np.testing.assert_allclose(own.sample_stats["lp"], tree.sample_stats["lp"], rtol=1e-10)


def test_a_model_in_context_with_other_variables_is_refused(approx):
    with pm.Model(coords={"k": ["a", "b"]}):
        pm.Normal("mu", 2, 0.5, dims="k")
        with pytest.raises(ModelError, match=r"expected mu, sigma_log__, got mu$"):
            approx.sample(100, correct="psis")


def exact_loo(y, sd, prior_sd=3.0):
    """Σ log p(y_i | the others) for mu ~ N(0, prior_sd²), y_i ~ N(mu, sd²)."""
    total = 0.0
    for i, value in enumerate(y):
        others = np.delete(y, i)
        precision = prior_sd**-2 + len(others) / sd**2
        mean = others.sum() / sd**2 / precision
        total += stats.norm.logpdf(value, mean, np.sqrt(1 / precision + sd**2))
    return total


def test_resampled_draws_go_through_leave_one_out(rng):
    """It takes draws as they are, so weights would be ignored; the approximation is off."""
    y = rng.normal(1.5, 2, size=12)
    found = {}
    for sd in (2.0, 5.0):
        with pm.Model() as model:
            mu = pm.Normal("mu", 0, 3)
            pm.Normal("y", mu, sd, observed=y)
        precision = 1 / 9 + len(y) / sd**2
        frame = Frame(
            np.array([y.sum() / sd**2 / precision + 0.5 * precision**-0.5]),
            np.array([1.2 * precision**-0.5]),
        )
        approx = pmf.NormalizingFlow("scale-loc", model=model, jitter=0, start=frame)
        idata = approx.sample(N, correct="resample", random_seed=1)
        pm.compute_log_likelihood(
            idata, model=model, progressbar=False, compile_kwargs={"mode": NUMPY}
        )
        assert az.loo(idata).elpd == pytest.approx(exact_loo(y, sd), abs=0.03)
        found[f"sd {sd}"] = idata
    assert list(az.compare(found).index) == ["sd 2.0", "sd 5.0"]


def test_the_last_place_of_systematic_resampling_is_a_draw():
    """The largest number below 1 and a draw before it are rounded to the number of draws."""

    class Largest:
        def random(self):
            return np.nextafter(1.0, 0.0)

    chosen = systematic(np.array([0.5, 0.5, 0.0]), 1_000, Largest())
    assert chosen.max() == 1
