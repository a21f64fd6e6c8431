"""The benchmark of calibration judges ranks, and fits that their reports call unreliable."""

from benches import record


def test_it_runs(bench, tmp_path):
    arguments = ["--models", "normal hierarchy", "--simulations", "20", "--out", str(tmp_path)]
    report = bench.calibration.main(arguments)
    [row] = record(tmp_path, "calibration")["tables"]["Models"]
    assert (row["simulations"], row["without a result"], row["scalars"]) == (20, 0, 13)
    assert 0.6 < row["in 80 % intervals"] < 0.95
    assert report.checks[0].holds


def test_bars(bench):
    rows = [
        {"model": "m", "p of all": p, "unreliable": unreliable, "simulations": 20}
        for p, unreliable in ((0.5, 0), (0.001, 0), (0.001, 12))
    ]
    assert [check.holds for check in bench.calibration.checks(rows)] == [True, False, True]
