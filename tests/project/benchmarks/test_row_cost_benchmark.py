"""The benchmark of rows, with settings too small to measure anything."""

import json

import pytest

from benches import record


def test_bars(bench, tmp_path, monkeypatch):
    costs = {"in tiles": {100: 5.0, 1000: 6.0}, "whole": {100: 10.0, 1000: 30.0}}

    def measured(module, arguments, environment):
        assert (module, environment["OMP_NUM_THREADS"]) == ("row_cost", "1")
        if "limit" in arguments:
            return {"limit": 2.7}
        n, how = arguments[4:6]
        return {"CPU ns": costs[how][n], "wall ns": 1.0, "peak MB": 2.0}

    monkeypatch.setattr(bench.row_cost, "run_child", measured)
    options = ["--sizes", "100", "1000", "--likelihoods", "Bernoulli", "--out", str(tmp_path)]
    report = bench.row_cost.main(options)
    assert [(check.what, check.value, check.holds) for check in report.checks] == [
        ("jax: dearest / cheapest cost of a row", pytest.approx(1.2), True),
        ("jax: least share of the limit", pytest.approx(0.45), False),
        ("numba: dearest / cheapest cost of a row", pytest.approx(1.2), True),
    ]
    record(tmp_path, "row_cost")


def test_one_measurement(bench, capsys, monkeypatch):
    monkeypatch.setattr(bench.row_cost, "ROUNDS", 1)
    monkeypatch.setattr(bench.row_cost, "WORK", 0)
    for what in (["jax", "ordered", "gathered", "600", "in tiles"], ["limit"]):
        bench.row_cost.main(["--measure", *what, "--repeats", "1"])
        found = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert min(found.values()) >= 0  # clocks may not tick in so short a time
