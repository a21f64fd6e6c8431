"""Fits to rows that come batch by batch, compared with the same model and all rows in memory."""

import gc
import weakref

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pymc as pm
import pytest

import pymc_flows as pmf
from fits import JAX, QUIET, assert_identical, everything
from pymc_flows.approximation import deep_copy
from pymc_flows.errors import ArgumentError, ModelError
from pymc_flows.model.log_density import LogDensity
from pymc_flows.model.logp import density_of
from pymc_flows.model.streams import stream_of

N, GROUPS, BATCH = 2_010, 5, 100
rng = np.random.default_rng(2)
X = rng.normal(size=(N, 2))
GROUP = np.sort(rng.integers(GROUPS, size=N))  # rows of a group are stored side by side
LOGITS = X @ [0.5, -1.0] + np.array([-1.0, -0.5, 0.0, 0.5, 1.0])[GROUP]
Y = (rng.random(N) < 1 / (1 + np.exp(-LOGITS))).astype(int)
FORMULA = "scale-hh*2-loc"
ARGUMENTS = {"obj_n_mc": 8, "random_seed": 5, **JAX}


def logistic(x, group, y, **total_size):
    with pm.Model() as model:
        slopes = pm.Normal("slopes", 0, 2, shape=2)
        intercepts = pm.Normal("intercepts", 0, 2, shape=GROUPS)
        logit = x @ slopes + intercepts[group]
        pm.Bernoulli("y", logit_p=logit, observed=y, **total_size)
    return model


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    table = pa.table({"a": X[:, 0], "b": X[:, 1], "group": GROUP, "y": Y})
    pq.write_table(table, path, row_group_size=200)
    return path


def batches(path):
    columns = {"x": ["a", "b"], "group": "group", "y": "y"}
    rows = pmf.Rows.parquet(path, columns, batch_size=BATCH, pool_rows=500)
    return logistic(rows["x"], rows["group"], rows["y"], total_size=rows.total)


@pytest.fixture(scope="module")
def model(path):
    return batches(path)


@pytest.fixture(scope="module")
def full():
    return logistic(X, GROUP, Y)


@pytest.fixture(scope="module")
def frame(model):
    return pmf.find_frame(model, random_seed=1)


def start(model, frame, **kwargs):
    inference = pmf.NFVI(FORMULA, model=model, random_seed=1, start=frame)
    inference.fit(300, **ARGUMENTS, **kwargs)
    return inference


@pytest.fixture(scope="module")
def whole(model, frame):
    return start(model, frame)


def test_the_log_density_is_that_of_all_rows(model, full):
    points = rng.normal(size=(70, 2 + GROUPS))
    found = LogDensity(density_of(model)).value_and_grad(points)
    expected = LogDensity(density_of(full)).value_and_grad(points)
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-8)


def test_a_start_is_the_mode_of_all_rows(frame, full):
    expected = pmf.find_frame(full, random_seed=1)
    np.testing.assert_allclose(frame.inverse(expected.center), 0, atol=0.01)
    np.testing.assert_allclose(frame.scale, expected.scale, rtol=0.01, atol=1e-4)


def test_batches_leave_no_noise_in_a_fit(whole, full):
    """One batch knows the log density of all rows to some 100 nats."""
    losses = whole.hist[-100:] * N / BATCH
    assert losses.std() < 2
    density = LogDensity(density_of(full))
    points, log_q = whole.approx.sample_and_log_prob(4_000, random_seed=1)
    elbo = (density.value(points) - log_q).mean()
    assert -losses.mean() == pytest.approx(elbo, abs=0.3)
    quality = pmf.report(whole.approx, random_seed=1).quality
    assert quality.elbo == pytest.approx(elbo, abs=4 * quality.elbo_error)
    assert quality.log_evidence - quality.elbo < 0.05


def test_a_resumed_fit_has_the_same_bits(whole, path, frame, tmp_path):
    file, kept = tmp_path / "fit.nc", tmp_path / "kept.nc"

    def stop(approx, losses, i):
        if i == 150:
            raise RuntimeError("the power is gone")

    with pytest.raises(RuntimeError, match="power"):
        start(batches(path), frame, checkpoint=file, every=70, callbacks=[stop])
    kept.write_bytes(file.read_bytes())
    resumed = pmf.resume(kept, batches(path), callbacks=[stop], **QUIET)
    assert_identical(everything(resumed), everything(whole))


def test_every_step_reads_on(whole):
    assert whole.state.loop.state_dict()["batches"]["taken"] == 300


def test_a_copy_of_a_model_has_its_rows(model):
    copied = deep_copy(model)
    density = density_of(copied)
    point = np.zeros((1, 2 + GROUPS))
    expected = LogDensity(density_of(model)).value(point)
    np.testing.assert_array_equal(LogDensity(density).value(point), expected)


def test_a_model_is_forgotten_with_its_rows(path):
    density = density_of(batches(path))
    LogDensity(density).value(np.zeros((1, 2 + GROUPS)))
    ref = weakref.ref(density)
    del density
    gc.collect()
    assert ref() is None


def test_the_ladder_judges_by_all_rows(model, full):
    approx = pmf.fit(model=model, random_seed=1, **JAX)
    [rung] = approx.ladder.rungs
    assert rung.steps == 0
    points, log_q = approx.sample_and_log_prob(2_000, random_seed=1)
    weights = LogDensity(density_of(full)).value(points) - log_q
    assert rung.quality.log_evidence == pytest.approx(
        np.logaddexp.reduce(weights) - np.log(2_000), abs=0.02
    )
    assert approx.sample(3).posterior["slopes"].shape == (1, 3, 2)


def test_pymc_minibatches_are_judged_and_centred_by_all_rows():
    y = rng.normal(1.0, 2.0, 1_003)  # not a multiple of the batch
    batch = pm.Minibatch(y, batch_size=50)
    with pm.Model() as model:
        mu, sigma = pm.Normal("mu", 0, 10), pm.HalfNormal("sigma", 5)
        pm.Normal("y", mu, sigma, observed=batch, total_size=len(y))
    with pm.Model() as whole:
        mu, sigma = pm.Normal("mu", 0, 10), pm.HalfNormal("sigma", 5)
        pm.Normal("y", mu, sigma, observed=y)
    points = rng.normal(size=(3, 2))
    found = LogDensity(density_of(model)).value(points)
    np.testing.assert_allclose(found, LogDensity(density_of(whole)).value(points), rtol=1e-10)
    approx = pmf.fit(300, model=model, formula="scale-loc", **ARGUMENTS)
    assert approx.hist[-100:].std() * len(y) / 50 < 3


def potential(rows):
    mu = pm.Normal("mu")
    pm.Potential("lik", pm.logp(pm.Normal.dist(mu, 1), rows["y"]).sum())


def without_total_size(rows):
    pm.Normal("z", pm.Normal("mu"), 1, observed=rows["y"])


def another_total_size(rows):
    pm.Normal("z", pm.Normal("mu"), 1, observed=rows["y"], total_size=7)


def latent(rows):
    mu = pm.Normal("mu", rows["y"])
    pm.Normal("z", mu, 1, observed=rows["y"], total_size=rows.total)


def two_sources(rows):
    other = pmf.Rows.arrays({"w": np.zeros(60)}, batch_size=20)
    mu = pm.Normal("mu")
    pm.Normal("z", mu + other["w"], 1, observed=rows["y"], total_size=rows.total)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (potential, "the potential 'lik' depends on a batch of rows"),
        (without_total_size, r"'z' depends on a batch of rows and has total_size=\[\]"),
        (another_total_size, "Give it total_size=rows.total, which is 60"),
        (latent, "the prior of 'mu' depends on a batch of rows"),
        (two_sources, "one source of Rows, got several"),
    ],
)
def test_a_model_that_does_not_say_what_all_rows_are_is_refused(build, message):
    rows = pmf.Rows.arrays({"y": np.arange(60.0)}, batch_size=20)
    with pm.Model() as model:
        build(rows)
    with pytest.raises(ModelError, match=message):
        pmf.fit(10, model=model, formula="scale-loc", **QUIET)


def test_what_needs_all_rows_in_memory_is_refused(model, whole):
    with pytest.raises(ArgumentError, match="needs all rows in memory"):
        pmf.fit(model=model, formula="tril-loc | laplace", **QUIET)
    with pytest.raises(ModelError, match="batch by batch"):
        pmf.sample(whole.approx, 10, **QUIET)
    with pytest.raises(ModelError, match="batch by batch"):
        pmf.neutra(whole.approx)


def test_bad_rows_end_a_fit_and_say_where_they_are():
    y = np.arange(600.0)
    y[333] = np.nan
    rows = pmf.Rows.arrays({"y": y}, batch_size=20, pool_rows=20)
    with pytest.raises(ArgumentError, match="'y' has NaN in row 333 of"):
        _ = rows.first
    assert stream_of(density_of(whole_of())) is None


def whole_of():
    with pm.Model() as model:
        pm.Normal("x")
    return model
