"""The benchmarks of many fits and of calibration run, and their bars see what is missing."""

import pytest

from benches import record


@pytest.mark.jax
def test_it_runs(bench, tmp_path, monkeypatch):
    many = bench.many

    def here(module, arguments, environment):
        """Stand for a process."""
        assert module == "many"
        assert arguments[:-1] == ["--formulas", "loc", "--steps", 10, "--child"]
        return {"seconds": 1.0 + arguments[-1], "made": 3, "error": 0.1}

    monkeypatch.setattr(many, "run_child", here)
    arguments = ["--formulas", "loc", "--fits", "1", "--processes", "1", "--steps", "10"]
    report = many.main([*arguments, "--out", str(tmp_path)])
    rows = record(tmp_path, "many")["tables"]["Ways"]
    assert [row["way"] for row in rows] == [many.MANY, many.CALLS, many.ALONE, many.PROCESS]
    together, calls, alone, each = (row["functions made after the first"] for row in rows)
    assert (each, rows[-1]["CPU s each"]) == (3, 2.0)  # without the one that fills the caches
    assert together == calls == 0
    assert alone > 0
    assert report.checks[0].holds


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
