"""The benchmark of many fits runs, and its bars see what is missing."""

import pytest

from benches import record


@pytest.mark.jax
def test_it_runs(bench, tmp_path):
    arguments = ["--formulas", "loc", "--fits", "2", "--steps", "10", "--out", str(tmp_path)]
    report = bench.many.main(arguments)
    rows = record(tmp_path, "many")["tables"]["Ways"]
    assert [row["way"] for row in rows] == [bench.many.MANY, bench.many.CALLS, bench.many.ALONE]
    many, calls, alone = (row["functions made after the first"] for row in rows)
    assert many == calls == 0
    assert alone > 0
    assert report.checks[0].holds


def test_bars(bench):
    many = bench.many
    rows = [
        {"formula": "loc", "way": way, "CPU s each": s, "functions made after the first": made}
        for way, s, made in ((many.MANY, 0.1, 1), (many.CALLS, 0.5, 0), (many.ALONE, 2.0, 9))
    ]
    assert [check.holds for check in many.checks(rows)] == [False, False, True]
