"""Histograms and tails of importance weights are those of the weights that were given."""

import numpy as np
import pymc as pm
import pytest
import xarray as xr
from scipy import stats

import pymc_flows as pmf
from pymc_flows import plots
from pymc_flows.errors import ArgumentError, FlowShapeError
from pymc_flows.flows.frame import Frame

pytest.importorskip("matplotlib")

WEIGHTS = np.random.default_rng(0).normal(-3, 0.5, size=4_000)


def legend_texts(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_the_histogram_counts_log_weights():
    ax = plots.log_weights(WEIGHTS, title="q")
    counts = [patch.get_height() for patch in ax.patches]
    assert sum(counts) == 3_992  # but for 0.2 % on the left
    assert "8 of them too low" in legend_texts(ax)[0]
    elbo, evidence = (line.get_xdata()[0] for line in ax.get_lines())
    assert elbo == pytest.approx(WEIGHTS.mean())
    assert evidence == pytest.approx(np.log(np.exp(WEIGHTS).mean()))
    assert ax.get_title() == "q"


def test_draws_without_density_are_counted():
    ax = plots.log_weights([*WEIGHTS[:100], -np.inf])
    assert legend_texts(ax)[0].startswith("101 draws (2 of them")
    [evidence] = ax.get_lines()  # the ELBO is −∞
    assert evidence.get_xdata()[0] == pytest.approx(np.log(np.exp(WEIGHTS[:100]).sum() / 101))


@pytest.mark.parametrize("k", [0.3, 0.9])
def test_the_tail_has_the_slope_of_k_hat(k):
    """Weights of a Pareto distribution, whose quantiles are share ** -k."""
    share = (np.arange(10_000) + 0.5) / 10_000
    ax = plots.pareto_tail(-k * np.log(share))
    dots, tail, limit = ax.get_lines()
    np.testing.assert_allclose(dots.get_xdata(), share)
    raw = share**-k
    np.testing.assert_allclose(dots.get_ydata(), raw / raw.mean())
    [shown] = [text for text in legend_texts(ax) if text.startswith("Pareto tail, k-hat")]
    assert float(shown.split()[-1]) == pytest.approx(k, abs=0.06)
    n = len(tail.get_xdata())
    assert n == 300  # 3 √10,000
    # The tail goes through the weights, up to where Pareto smoothing cuts it off.
    np.testing.assert_allclose(tail.get_ydata()[5:], dots.get_ydata()[5:n], rtol=0.15)
    slope = stats.linregress(np.log(limit.get_xdata()), np.log(limit.get_ydata())).slope
    assert slope == pytest.approx(-0.7)


def test_weights_that_were_stored_with_the_draws():
    with pm.Model() as model:
        pm.Normal("x", shape=2)
    approx = pmf.NormalizingFlow(
        "loc", model=model, jitter=0, start=Frame(np.zeros(2), np.full(2, 1.5))
    )
    idata = approx.sample(200, correct="psis", random_seed=1)
    z = idata.posterior["x"].values[0]
    log_weights = (stats.norm.logpdf(z) - stats.norm.logpdf(z, scale=1.5)).sum(-1)
    for samples in (idata, idata["sample_stats"], idata["sample_stats"].to_dataset()):
        ax = plots.log_weights(samples)
        assert ax.get_lines()[0].get_xdata()[0] == pytest.approx(log_weights.mean())
    for other in (approx.sample(50, correct="resample", random_seed=1), approx.sample(50)):
        with pytest.raises(ArgumentError, match=r"sample\(correct='psis'\)"):
            plots.pareto_tail(other)


@pytest.mark.parametrize(
    ("plot", "samples", "error", "message"),
    [
        (plots.log_weights, [], FlowShapeError, "expected log weights"),
        (plots.log_weights, [0.0, np.nan], ArgumentError, "got 1 finite ones of 2"),
        (plots.log_weights, [-np.inf], ArgumentError, "got 0 finite ones of 1"),
        (plots.pareto_tail, WEIGHTS[:24], ArgumentError, "got 24 that are finite"),
        (plots.pareto_tail, np.zeros(100), ArgumentError, "k-hat -inf"),
        (plots.pareto_tail, xr.Dataset(), ArgumentError, "got sample_stats with nothing"),
    ],
)
def test_what_is_refused(plot, samples, error, message):
    with pytest.raises(error, match=message):
        plot(samples)
