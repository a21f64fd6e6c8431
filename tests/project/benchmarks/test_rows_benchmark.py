"""The benchmark of rows on disk runs, and its bars see what is missing."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import pymc_flows as pmf
from benches import record

RATES = (("file", 6.0), ("memory", 10.0))


@pytest.mark.jax
def test_it_runs(bench, tmp_path, monkeypatch):
    rows = bench.rows
    fake = {"FORMULA": "scale-loc", "TRAINED": "scale-loc", "TURN": 2, "TURNS": 1, "BATCH": 500}
    for name, value in fake.items():
        monkeypatch.setattr(rows, name, value)
    monkeypatch.setattr(
        rows,
        "run_child",
        lambda _, given, env: json.loads(
            json.dumps(rows.measure(given[3], given[4], Path(given[5]), int(given[1])))
        ),
    )
    # Few draws: nothing is measured.
    monkeypatch.setattr("pymc_flows.start.weighted.moments.ROUNDS", (400,) * 4)
    met, ends = Counter({"in the middle of writing": 1}), Counter({rows.kills.SAME: 1})
    monkeypatch.setattr(rows.kills, "kill_fits", lambda n, seed, run: (met, ends, 1.0))
    arguments = ["--rows", "2000", "--steps", "3", "--kills", "1", "--models", "logistic"]
    report = rows.main([*arguments, "--out", str(tmp_path)])
    tables = record(tmp_path, "rows")["tables"]
    gaussian, trained = tables["Fits"]
    assert gaussian["largest error of a mean, sd"] < 0.1
    assert trained["steps"] == 3
    assert tables["Throughput"][0]["rows/CPU s, file"] > 0
    assert report.checks[-1].holds


def test_bars(bench):
    rows = bench.rows
    row = {"model": "m", "way": "w", "peak GB": 2.0, "largest error of a mean, sd": 0.2}
    slow = rows.shares({f"rows/{unit} s, {way}": r for unit in rows.UNITS for way, r in RATES})
    assert slow["share by CPU time"] == pytest.approx(0.6)
    rate = {"model": "m", **slow}
    killed = {"damaged files": 0, rows.kills.SAME: 1, rows.kills.OTHER: 1}
    assert [check.holds for check in rows.checks([row], [rate], killed)] == [False] * 5
    good = {**row, "peak GB": 1.0, "largest error of a mean, sd": 0.05}
    fast = {**rate, "share by wall time": 0.8, "share by CPU time": 0.8}
    found = rows.checks([good], [fast], {**killed, rows.kills.OTHER: 0})
    assert all(check.holds for check in found)


def test_the_other_way_to_the_posterior_has_its_mode_and_width(bench, tmp_path):
    models = bench._rows_models
    path = models.data_file(tmp_path, 4_000)
    model, _ = models.build(models.LOGISTIC, path, 500)
    mean, sd = models.posterior(models.LOGISTIC, path)
    frame = pmf.find_frame(model, random_seed=1)
    np.testing.assert_allclose((frame.center - mean) / sd, 0, atol=0.1)
    np.testing.assert_allclose(np.linalg.norm(frame.scale, axis=1), sd, rtol=0.05)


def test_the_sum_over_scales_is_that_of_a_normal_hierarchy(bench):
    """With a likelihood that knows the intercepts exactly, τ has their mean square."""
    models = bench._rows_models
    rng = np.random.default_rng(2)
    mode = np.concatenate([np.zeros(models.COLUMNS), rng.normal(0.3, 0.5, models.GROUPS)])
    mean, sd = models._over_tau(mode, 1e10 * np.eye(len(mode)))
    own = mode[models.COLUMNS :]
    np.testing.assert_allclose(mean[models.COLUMNS + 2 :], own, atol=1e-6)
    assert mean[models.COLUMNS] == pytest.approx(own.mean(), abs=0.01)
    assert sd[models.COLUMNS] == pytest.approx(own.std() / 10, rel=0.05)
    assert mean[models.COLUMNS + 1] == pytest.approx(np.log(own.std()), abs=0.02)
    assert sd[models.COLUMNS + 1] == pytest.approx(1 / np.sqrt(2 * models.GROUPS), rel=0.05)
