"""The benchmark of restarts: its bars see what is missing, and a part of it runs."""

import numpy as np
import pytest


@pytest.mark.jax
def test_a_batch_is_timed(bench):
    row = bench.restarts.as_batch("eight schools", "loc", 2, 4)
    assert row["CPU, × one fit"] == pytest.approx(
        row["eight, CPU µs a step of all"] / row["one fit, CPU µs a step"]
    )


def test_results_are_the_same_only_if_all_bits_are(bench):
    one = [np.arange(3.0), np.ones(2)]
    assert bench.restarts.same(one, [x.copy() for x in one])
    assert not bench.restarts.same(one, [one[0], one[1] + 1e-16 * np.array([0, 2.5])])
    assert not bench.restarts.same(one, one[:1])


def test_blocks_of_rows_are_those_of_all(bench):
    whole, part = bench._devices.rows(80, range(8)), bench._devices.rows(80, range(4, 8))
    for a, b in zip(whole, part, strict=True):
        np.testing.assert_array_equal(a[40:], b)


def test_bars(bench):
    ways = [
        {
            "problem": "x",
            "way": way,
            "wall, × one fit": 5.0,
            "CPU, × one fit": 4.0,
            "same bits as cores=1": same,
        }
        for way, same in ((bench.restarts.ALONE, None), (bench.restarts.POOL, False))
    ]
    devices = [
        {"where": where, "relative": relative, "predictors here, MB": size}
        for where, relative, size in (("one", 0.0, 8.0), ("eight", 1e-7, 8.0), ("two", 0.0, 4.0))
    ]
    batch = {"problem": "x", "formula": "loc", "draws": 8, "CPU, × one fit": 2.5}
    checks = bench.restarts.checks(
        {
            "Eight restarts": ways,
            "Killed workers": [{"workers killed": 20, "the same bits": 19}],
            "Eight fits in one loop": [batch],
            "Rows on devices": devices,
        }
    )
    assert [check.holds for check in checks] == [
        *(False, False, True),
        *(False, True),
        *(False, True, True),
    ]
