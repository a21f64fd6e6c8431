"""`fit_many`: exact posteriors of many data sets, whoever fits them."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pymc as pm
import pytest

import pymc_flows as pmf
from pymc_flows.backends.functions import counts
from pymc_flows.backends.modes import NUMPY
from pymc_flows.errors import ArgumentError

Y = np.array([[0.3, 1.2, -0.4, 2.0], [5.0, 4.0, 6.5, 5.5], [-2.0, -3.0, -2.5, -1.0]])


def build(y):
    """mu ~ N(0, 2²), y ~ N(mu, 1): normal posteriors."""
    with pm.Model(coords={"axis": ["first", "second"]}) as model:
        mu = pm.Normal("mu", 0, 2, dims="axis")
        pm.Normal("y", mu[[0, 0, 1, 1]], 1, observed=pm.Data("data", y))
    return model


def exact(y):
    precision = 1 / 4 + 2
    return y.reshape(2, 2).sum(axis=1) / precision, np.full(2, precision**-0.5)


@pytest.fixture(scope="module")
def many():
    return pmf.fit_many(build, Y, draws=2_000, random_seed=1, progressbar=False)


@pytest.mark.jax
def test_a_trained_formula_is_compiled_for_the_first_fit_alone():
    given = {"formula": "tril-loc", "n": 5, "draws": 10, "random_seed": 1, "progressbar": False}
    pmf.fit_many(build, Y[:1], **given)
    before = counts().made
    assert len(pmf.fit_many(build, Y[1:], **given).errors) == 0
    assert counts().made == before


def test_each_fit_is_the_posterior_of_its_data(many):
    posterior = many.tree["posterior"]["mu"]
    assert posterior.dims == ("fit", "chain", "draw", "axis")
    assert list(posterior.coords["axis"].values) == ["first", "second"]
    for k, y in enumerate(Y):
        mean, sd = exact(y)
        np.testing.assert_allclose(posterior[k].mean(("chain", "draw")), mean, atol=5 * sd[0] / 45)
        np.testing.assert_allclose(posterior[k].std(("chain", "draw")), sd, rtol=0.08)
    stats = many.tree["fit_stats"]
    assert np.isfinite(stats["elbo"].values).all()
    assert (stats["log_evidence"].values - stats["elbo"].values < 0.01).all()


def test_approximations_have_models_of_their_own(many):
    assert len(many) == 3
    assert repr(many) == "ManyFits(3 fits)"
    one, other = many[0], many[-1]
    assert one.model is not other.model
    for approx, y in ((one, Y[0]), (other, Y[2])):
        np.testing.assert_allclose(approx.mean.eval(mode=NUMPY), exact(y)[0], atol=0.05)
        assert pmf.report(approx, 500, random_seed=1).quality.is_trusted
    assert [str(fit) for fit in many[1:]] == [str(one)] * 2
    with pytest.raises(IndexError):
        many[3]


def test_threads_give_the_same_bits(many):
    with ThreadPoolExecutor(2) as executor:
        other = pmf.fit_many(
            build, list(Y), draws=2_000, random_seed=1, progressbar=False, executor=executor
        )
    assert other.tree["posterior"].to_dataset().equals(many.tree["posterior"].to_dataset())


def test_a_model_with_data_by_name_does_the_same(many):
    sets = [{"data": y} for y in Y]
    other = pmf.fit_many(build(Y[0]), sets, draws=2_000, random_seed=1, progressbar=False)
    np.testing.assert_allclose(
        other.tree["posterior"]["mu"], many.tree["posterior"]["mu"], rtol=1e-9
    )


def test_a_data_set_that_fails_leaves_the_others(caplog):
    bad = Y.copy()
    bad[1, 0] = np.nan
    found = pmf.fit_many(build(Y[0]), [{"data": y} for y in bad], draws=50, progressbar=False)
    assert list(found.errors) == [1]
    assert "Fit 1 has no result: ModelError" in caplog.text
    means = found.tree["posterior"]["mu"].mean(("chain", "draw", "axis")).values
    assert np.isnan(means).tolist() == [False, True, False]
    assert repr(found) == "ManyFits(3 fits, 1 without a result)"
    with pytest.raises(ArgumentError, match="fit 1 has no result"):
        found[1]


def test_if_all_fail_the_error_is_raised():
    with pytest.raises(ArgumentError, match="the model has no data 'z'"):
        pmf.fit_many(build(Y[0]), [{"z": Y[0]}], progressbar=False)


@pytest.mark.parametrize(
    ("sets", "arguments", "message"),
    [
        ([], {}, "data_sets is empty"),
        (Y, {"draws": 0}, "draws must be an integer"),
        (Y, {"model": build(Y[0])}, "model= is for one"),
        (Y, {"restarts": 2}, "restarts= is for one"),
        (Y, {"checkpoint": "x"}, "checkpoint= is for one"),
        (Y, {"correct": "sir"}, "correct must be"),
    ],
)
def test_what_has_no_meaning_is_refused(sets, arguments, message):
    with pytest.raises(ArgumentError, match=message):
        pmf.fit_many(build, sets, **arguments)


def test_data_sets_with_different_names_are_refused():
    """What a data set does not name would keep the value of the fit before."""
    sets = [{"data": Y[0]}, {"data": Y[1], "more": 1}]
    with pytest.raises(ArgumentError, match=r"data set 0 has \['data'\], data set 1 has"):
        pmf.fit_many(build(Y[0]), sets, progressbar=False)


def test_leave_one_out_by_importance_and_by_refits_agree():
    """What ArviZ makes of our log p and log q, and what as many fits say."""
    import arviz_stats as azs
    from scipy import stats

    y = np.array([0.2, 1.5, -0.7, 0.9, 1.1, -0.1, 0.4, 2.2])

    def mean(data):
        with pm.Model() as model:
            mu = pm.Normal("mu", 0, 2)
            pm.Normal("y", mu, 1, observed=data)
        return model

    # Exact: the predictive distribution of each value given the others is normal.
    precision = 1 / 4 + (len(y) - 1)
    centers = (y.sum() - y) / precision
    exact = stats.norm(centers, np.sqrt(1 + 1 / precision)).logpdf(y)

    with mean(y):
        approx = pmf.fit(random_seed=1, progressbar=False)
        draws = approx.sample(4_000, correct="psis", random_seed=2)
        pm.compute_log_likelihood(draws, progressbar=False)
    found = azs.loo_approximate_posterior(
        draws, draws["sample_stats"]["lp"], draws["sample_stats"]["log_q"], pointwise=True
    )
    np.testing.assert_allclose(found.elpd_i, exact, atol=0.03)

    left_out = [np.delete(y, i) for i in range(len(y))]
    many = pmf.fit_many(mean, left_out, draws=4_000, random_seed=3, progressbar=False)
    mu = many.tree["posterior"]["mu"].values.reshape(len(y), -1)
    refits = np.log(stats.norm(mu, 1).pdf(y[:, None]).mean(axis=1))
    np.testing.assert_allclose(refits, exact, atol=0.03)
