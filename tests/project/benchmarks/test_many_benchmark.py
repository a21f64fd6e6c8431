"""The benchmarks of many fits and of calibration run, and their bars see what is missing."""

import numpy as np
import pymc as pm
import pytest

from benches import record
from pymc_flows.model.log_density import LogDensity
from pymc_flows.model.logp import ModelDensity


def one_mean(y):
    """A model that compiles fast."""
    with pm.Model() as model:
        pm.Normal("y", pm.Normal("mu", 0, 5), 2, observed=y)
    return model


@pytest.mark.jax
def test_it_runs(bench, tmp_path, monkeypatch):
    many = bench.many

    def here(module, arguments, environment):
        """Stand for a process."""
        assert module == "many"
        assert arguments[:-1] == ["--formulas", "loc", "--steps", 10, "--child"]
        return {"seconds": 1.0 + arguments[-1], "made": 3, "error": 0.1}

    monkeypatch.setattr(many, "run_child", here)
    monkeypatch.setattr(many, "build", one_mean)
    arguments = ["--formulas", "loc", "--fits", "1", "--processes", "1", "--steps", "10"]
    report = many.main([*arguments, "--out", str(tmp_path)])
    rows = record(tmp_path, "many")["tables"]["Ways"]
    assert [row["way"] for row in rows] == [many.MANY, many.CALLS, many.ALONE, many.PROCESS]
    together, calls, alone, each = (row["functions made after the first"] for row in rows)
    assert (each, rows[-1]["CPU s each"]) == (3, 2.0)  # without the one that fills the caches
    assert together == calls == 0
    assert alone > 0
    assert report.checks[0].holds


def test_the_model_has_a_density_where_it_starts(bench):
    density = ModelDensity(bench.many.build(bench.many.data_set(0)))
    assert density.dim == 3 + bench.many.GROUPS
    assert np.isfinite(LogDensity(density).value(density.start()[None])).all()


def test_bars(bench):
    many = bench.many
    rows = [
        {"formula": "loc", "way": way, "CPU s each": s, "functions made after the first": made}
        for way, s, made in (
            (many.MANY, 0.1, 1),
            (many.CALLS, 0.5, 0),
            (many.ALONE, 2.0, 9),
            (many.PROCESS, 3.0, 9),
        )
    ]
    assert [check.holds for check in many.checks(rows)] == [False, False, True, True]


def test_calibration_runs(bench, tmp_path):
    arguments = ["--models", "normal hierarchy", "--simulations", "20", "--out", str(tmp_path)]
    report = bench.calibration.main(arguments)
    [row] = record(tmp_path, "calibration")["tables"]["Models"]
    assert (row["simulations"], row["without a result"], row["scalars"]) == (20, 0, 13)
    assert 0.6 < row["in 80 % intervals"] < 0.95
    assert report.checks[0].holds


def test_bars_of_calibration(bench):
    rows = [
        {"model": "m", "p of all": p, "unreliable": unreliable, "simulations": 20}
        for p, unreliable in ((0.5, 0), (0.001, 0), (0.001, 12))
    ]
    assert [check.holds for check in bench.calibration.checks(rows)] == [True, False, True]
