"""What `benchmarks.seconds` measures and says; in settings too small to judge anything."""

import json

import numpy as np
import pytest
from scipy import optimize
from scipy.special import expit

from pymc_flows import NormalizingFlow

STATES = ("cold", "warm", "again")


def rows(posterior, method, seconds, *, good=True):
    return [
        {"posterior": posterior, "method": method, "seed": seed, "state": state, "note": ""}
        | {"CPU s": seconds + seed, "wall s": 2 * seconds + seed, "is good": good}
        for seed in range(2)
        for state in STATES
    ]


def test_the_reference_of_the_tutorial_has_its_mode_and_its_moments(bench):
    """The mode by SciPy, and means that satisfy E[∇ log p] = 0."""
    t = bench._tutorial
    draws = t.exact()["draws"]
    x = np.stack([draws["alpha"], draws["beta"]])

    def gradient(x):
        rest = t.DEATHS[:, None] - t.ANIMALS * expit(x[0] + np.outer(t.LOG_DOSE, x[1]))
        return np.stack([rest.sum(0) - x[0] / 10**2, t.LOG_DOSE @ rest - x[1] / 25**2])

    g = gradient(x)
    np.testing.assert_allclose(g.mean(1) / g.std(1) * np.sqrt(g.shape[1]), 0, atol=4)
    mode = optimize.root(lambda x: gradient(x[:, None])[:, 0], [1.0, 10.0]).x
    sd = x.std(1)
    distance = np.abs((x - mode[:, None]) / sd[:, None]).max(0)
    assert distance.min() < 0.05
    assert (x.mean(1) - mode > 0).all()  # skewed to the right


def test_the_least_of_the_seeds_counts_and_good_is_bold(bench):
    seconds = bench.seconds
    found = [*rows("tutorial", "auto", 3.0), *rows("tutorial", "nuts", 9.0, good=False)]
    [line] = seconds.table(found, "cold", "CPU s")
    assert line == {"posterior": "tutorial", "auto": "**3.0**", "nuts": "9.0"}
    bar, faster = seconds.checks(found)
    assert (bar.value, bar.holds) == (3.0, True)
    assert (faster.value, faster.holds) == (1.0, True)


@pytest.mark.parametrize(
    ("own", "other", "good", "wins"),
    [(3.0, 9.0, True, 1.0), (9.0, 3.0, True, 0.0), (3.0, 9.0, False, 0.0)],
)
def test_ours_is_faster_if_it_is_good_in_less_time(bench, own, other, good, wins):
    found = [*rows("x", "auto", own, good=good), *rows("x", "nuts", other)]
    [faster] = bench.seconds.checks(found)
    assert faster.value == wins


def test_a_failure_is_a_row_and_a_page_is_written(bench, tmp_path, monkeypatch):
    def child(module, command, environment):
        assert module == "seconds"
        if "nuts" in command:
            raise RuntimeError("failed\nModuleNotFoundError: No module named 'nutpie'")
        assert environment["JAX_ENABLE_COMPILATION_CACHE"] == "true"
        row = {"CPU s": 1.0, "wall s": 2.0, "is good": True}
        return {"first": row, "again": row}

    monkeypatch.setattr(bench.seconds, "run_child", child)
    page = tmp_path / "page.md"
    arguments = ["--names", "tutorial", "--seeds", "1", "--out", str(tmp_path)]
    report = bench.seconds.main([*arguments, "--page", str(page)])
    assert "No module named 'nutpie'" in (tmp_path / "seconds.md").read_text("utf-8")
    assert len(report.details["rows"]) == 2 * len(STATES)
    assert (tmp_path / "seconds.png").exists()
    assert "| tutorial | **1.0** | – |" in page.read_text("utf-8")
    assert json.loads((tmp_path / "seconds.json").read_text("utf-8"))["checks"][0]["holds"]


def test_a_measurement_calls_twice(bench, monkeypatch):
    target = bench._posteriors.OwnTargets()
    calls = []

    def method(model, seed, steps):
        calls.append(seed)
        return NormalizingFlow("loc", model=model).sample(50, random_seed=seed)

    monkeypatch.setattr(bench.seconds, "METHODS", {"auto": method})
    found = bench.seconds.measure(target, target.names[0], "auto", 3, None)
    assert calls == [3, 3]
    assert set(found) == {"first", "again"}
    assert found["again"]["CPU s"] > 0
    assert not found["again"]["is good"]
