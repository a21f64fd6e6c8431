"""The benchmark of restarts runs, and its bars see what is missing."""

import numpy as np
import pytest

from benches import record
from pymc_flows.model.log_density import LogDensity
from pymc_flows.model.logp import density_of

pytestmark = pytest.mark.jax


def test_it_runs(bench, tmp_path):
    arguments = ["--problems", "signs of two slopes", "--seeds", "1", "--restarts", "4"]
    report = bench.modes.main([*arguments, "--steps", "10", "--out", str(tmp_path)])
    [row] = record(tmp_path, "modes")["tables"]["Runs"]
    assert (row["modes"], row["of"], row["result"]) == (4, 4, "mixture")
    assert [check.holds for check in report.checks] == [row["all"]] == [True]


def test_the_bar_counts_seeds(bench):
    rows = [{"posterior": "p", "all": k > 0} for k in range(10)]
    assert bench.modes.checks(rows)[0].holds
    assert not bench.modes.checks([*rows, rows[0]])[0].holds


def test_modes_of_labels_are_told_apart(bench):
    which = bench.modes.labels(0).which
    points = np.array([[-4.0, 0, 5], [5, 0, -4], [-4, 5, 0], [-4.1, 0.1, 5]])
    found = which(points)
    assert len(set(found[:3])) == 3
    assert found[3] == found[0]


def test_shares_of_the_eight_gaussians_are_those_of_the_density(bench):
    problem = bench.modes.eight_gaussians(2, 0)
    angles = np.arange(8) * np.pi / 4
    centers = 15 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    log_p = LogDensity(density_of(problem.model)).value(centers)
    np.testing.assert_allclose(np.exp(log_p) * 2 * np.pi, problem.shares, rtol=1e-6)
    np.testing.assert_array_equal(problem.which(centers), np.arange(8))
