"""What `benchmarks.accuracy` measures, compares and keeps; in settings too small to judge fits."""

import importlib
import json
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pymc as pm
import pytensor
import pytest

from pymc_flows.backends.modes import NUMPY
from pymc_flows.model.log_density import LogDensity
from pymc_flows.model.logp import ModelDensity

# --------------------------------------------------------------------------------- the measures


def test_what_overlaps_counts_once(bench):
    assert bench._compile_clock.covered([(3, 5), (0, 2), (1, 2.5), (3.5, 4)]) == 4.5


def test_the_clock_counts_compiling_and_nothing_else(bench):
    x = pytensor.tensor.dscalar()
    with bench._compile_clock.compile_clock() as clock:
        time.sleep(0.05)
        assert clock.seconds.wall == 0
        function = pytensor.function([x], x + 1, mode=NUMPY)
        compiling = clock.seconds.wall
        assert function(1.0) == 2
        assert clock.seconds.wall == compiling > 0
        with clock.running():
            time.sleep(0.01)
        assert clock.seconds.wall >= compiling + 0.01
    assert pytensor.function([x], x, mode=NUMPY)(1.0) == 1
    assert clock.seconds.wall < compiling + 1


def test_wall_times_are_told_as_cpu_times(bench):
    """Where the machine did something else, wall seconds go by without CPU time."""
    course = bench._compile_clock.Course()
    course.looks = [(10.0, 1.0), (11.0, 2.0), (20.0, 2.5)]
    found = [course.cpu_at(wall) for wall in (9.0, 10.5, 15.5, 21.0)]
    assert found == [1.0, 1.5, 2.25, 2.5]


def test_the_clock_hears_numba_and_jax(bench):
    jax = pytest.importorskip("jax")
    numba = importlib.import_module("numba")
    with bench._compile_clock.compile_clock() as clock:
        numba.njit(lambda x: x + 1)(1.0)
        by_numba = clock.seconds.wall
        jax.jit(lambda x: x + 1)(1.0)
    assert clock.seconds.wall > by_numba > 0


def test_scores_of_draws_that_are_off(bench, rng):
    exact = {"x": rng.standard_normal((20_000, 2)), "y": rng.standard_normal(20_000)}
    reference = bench._posteriors.summarized(exact)
    off = {"x": exact["x"] * [1, 2] + [0.5, 0], "y": exact["y"]}
    found = bench._posteriors.score(off, reference)
    assert found["max_mean"] == pytest.approx(0.5, rel=0.02)
    assert found["worst_mean"] == "x[0]"
    assert found["max_logsd"] == pytest.approx(np.log(2))
    assert found["worst_sd"] == "x[1]"
    assert found["mean_logsd"] == pytest.approx(np.log(2) / 3)
    np.testing.assert_allclose(bench._posteriors.sd_ratios(off, reference), [1, 2, 1])


def test_the_sliced_distance_of_a_shift_is_its_mean_projection(bench, rng):
    x = rng.standard_normal((500, 3))
    shift = np.array([1.0, 0.0, 0.0])
    directions = np.random.default_rng(1).standard_normal((100_000, 3))
    expected = np.abs(directions @ shift / np.linalg.norm(directions, axis=1)).mean()
    found = bench._posteriors.sliced_wasserstein(x + shift, x)
    assert found == pytest.approx(expected, abs=0.1)  # of 100 directions


@pytest.fixture
def schools() -> pm.Model:
    with pm.Model() as model:
        tau = pm.HalfNormal("tau", 2.0)
        offset = pm.Normal("offset", shape=2)
        pm.Deterministic("other", tau * np.ones(2))
        pm.Deterministic("theta", 3 + tau * offset)
    return model


def test_free_variables_are_solved_for(bench, schools, rng):
    tau, offset = rng.gamma(2.0, size=5), rng.standard_normal((5, 2))
    draws = {"tau": tau, "other": tau[:, None] * [1, 1], "theta": 3 + tau[:, None] * offset}
    np.testing.assert_allclose(bench._methods.solve_missing(schools, draws)["offset"], offset)
    with pytest.raises(ValueError, match="'offset' are neither given nor implied"):
        bench._methods.solve_missing(schools, {"tau": tau})


def test_the_best_gaussian_has_the_moments_of_the_reference(bench, schools, rng):
    offset = rng.multivariate_normal([1, -1], [[1, 0.8], [0.8, 2]], 2_000)
    log_tau = 0.1 * offset[:, 0] + rng.normal(0, 0.2, 2_000)
    reference = {"draws": {"tau": np.exp(log_tau), "theta": 3 + np.exp(log_tau)[:, None] * offset}}
    fitted = bench._methods.best_gaussian(schools, reference, 0, 50_000)
    found = np.column_stack([np.log(fitted.draws["tau"]), fitted.draws["offset"]])
    exact = np.column_stack([log_tau, offset])
    np.testing.assert_allclose(found.mean(0), exact.mean(0), atol=0.03)
    np.testing.assert_allclose(np.cov(found.T), np.cov(exact.T), atol=0.05)
    assert np.isfinite(fitted.facts()["ELBO"])


@pytest.mark.parametrize("family", ["MeanField", "FullRank"])
def test_gaussians_of_pymc_become_flows(bench, schools, family):
    with pytensor.config.change_flags(mode="FAST_COMPILE"):
        with schools:
            approx = getattr(pm, family)(random_seed=1)
        group = approx.groups[0]
        raw = np.arange(1.0, 1 + group.params_dict["mu"].get_value().size)
        group.params_dict["mu"].set_value(raw)
        mean, cov = bench._methods.moments(approx)
    flow = bench._methods.as_flow(schools, mean, cov)
    points, _ = flow.sample_and_log_prob(20_000, random_seed=1)
    np.testing.assert_allclose(points.mean(0), mean, atol=0.05)
    np.testing.assert_allclose(np.cov(points.T), cov, atol=0.05)
    assert list(group.ordering) == [slot.name for slot in ModelDensity(schools).slots]


# ----------------------------------------------------------------------------- bars and tables


def row(method: str = "auto", posterior: str = "p", **given) -> dict:
    plain = {
        "posterior": posterior,
        "method": method,
        "seed": 0,
        "dim": 2,
        "worst mean error": 0.05,
        "mean mean error": 0.02,
        "lowest sd ratio": 0.95,
        "highest sd ratio": 1.05,
        "worst log sd error": 0.05,
        "run CPU s": 8.0,
        "compile CPU s": 3.0,
        "share of run": 1.0,
        "sw1": 0.04,
        "is good": True,
        "source": 0,
    }
    keys = ("white", "ELBO", "ELBO error", "k-hat", "note", "worst mean at", "worst sd at")
    return dict.fromkeys(keys) | plain | given


@pytest.mark.parametrize(
    ("given", "floor", "holds"),
    [
        ({}, {}, True),
        ({"worst mean error": 0.11}, {}, False),
        ({"worst mean error": 0.11}, {"max_mean": 0.06, "max_logsd": 0.01}, True),
        ({"highest sd ratio": 1.102, "worst log sd error": np.log(1.102)}, {}, False),
        ({"lowest sd ratio": 0.7, "worst log sd error": -np.log(0.7)}, {"max_logsd": 0.2}, True),
        ({"lowest sd ratio": 0.6, "worst log sd error": -np.log(0.6)}, {"max_logsd": 0.2}, False),
    ],
)
def test_what_is_good(bench, given, floor, holds):
    assert bench._accuracy_tables.Bars.of(floor).holds(row(**given)) is holds


def test_checks_count_wins_and_losses(bench):
    bad = {"is good": False, "share of run": None}
    rows = [
        row("auto", "a"),
        row("advi", "a", **bad, **{"worst mean error": 3.0}),
        row("nuts", "a", **{"run CPU s": 40.0, "share of run": 0.5}),
        row("auto", "b", **bad, **{"worst mean error": 0.4}),
        row("advi", "b", **bad, **{"worst mean error": 0.3}),
        row("nuts", "b", **{"run CPU s": 12.0, "share of run": 0.5}),
        row("auto", "c"),
        row("nuts", "c", **{"run CPU s": 9.0}),
    ]
    found = [(c.what, c.value, c.holds) for c in bench._accuracy_tables.checks(rows)]
    until_good = "CPU seconds until good, auto : nuts"
    assert found[:3] == [
        ("auto: share of good posteriors", pytest.approx(2 / 3), False),
        ("auto no nearer than advi on 2 posteriors where that fails (b)", 1, False),
        (f"a: {until_good}", pytest.approx(0.4), True),
    ]
    assert found[3][0] == f"b: {until_good}"
    assert not found[3][2]
    assert len(found) == 4
    duels = bench._accuracy_tables.duels(rows, ["a", "b", "c"])
    assert [duel["faster"] for duel in duels] == ["auto", "nuts", "auto"]


def test_a_run_is_good_from_when_it_stays_good(bench):
    draws = np.concatenate([np.full(100, 5.0), np.zeros(100)])
    draws[::2] *= -1  # mean 0 all the way; sd 5, then less and less
    reference = {"mean": {"x": 0.0}, "sd": {"x": draws.std(ddof=1)}, "draws": {"x": draws}}
    collection = bench._posteriors.OwnTargets()
    course = [(n, n / 200) for n in (50, 100, 150, 190, 200)]
    fitted = bench._methods.Fitted({"x": draws}, dict, course)
    found = bench.accuracy.share_until_good(collection, fitted, reference, bench.accuracy.Bars())
    assert found == 0.95


# ------------------------------------------------------------------------------------- the script


def test_without_a_folder_it_says_what_is_missing(bench, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    arguments = ["--names", "pot1", "--methods", "scale-loc", "--seeds", "1", "--steps", "20"]
    report = bench.accuracy.main([*arguments, "--out", str(tmp_path)])
    assert "No --data: real posteriors are missing" in capsys.readouterr().out
    assert "No --data: real posteriors are missing" in report.about
    [found] = json.loads((tmp_path / "accuracy.json").read_text())["details"]["rows"]
    assert found["dim"] == 2
    assert found["white"] is None
    assert np.isfinite([found["worst mean error"], found["ELBO"], found["run CPU s"]]).all()
    assert found["compile wall s"] > 0
    assert (tmp_path / "accuracy.png").stat().st_size > 10_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two posteriors, one of which cannot be fitted."""
    path = tmp_path / "data"
    (path / "reference").mkdir(parents=True)
    (path / "reference" / "good.npz").touch()
    (path / "reference" / "bad.npz").touch()
    (path / "floor.json").write_text(json.dumps({"good": {"max_mean": 0.3, "max_logsd": 0.3}}))
    (path / "models.py").write_text(
        "import pymc as pm\n"
        "NAMES = ['good', 'bad']\n"
        "def build(name):\n"
        "    with pm.Model() as model:\n"
        "        (pm.Normal if name == 'good' else pm.Poisson)('x', 1.0)\n"
        "    return model\n"
    )
    (path / "score.py").write_text(
        "import numpy as np\n"
        "def load_reference(path):\n"
        "    assert path.name in ('good.npz', 'bad.npz')\n"
        "    return {'mean': {'x': 1.0}, 'sd': {'x': 1.0}, 'draws': {'x': np.arange(-1., 4.)}}\n"
        "def score(draws, reference):\n"
        "    keys = ('max_mean', 'mean_mean', 'max_logsd', 'mean_logsd', 'sw1', 'sw1_white')\n"
        "    return dict.fromkeys(keys, 0.5) | {'worst_mean': 'x', 'worst_sd': 'x'}\n"
    )
    return path


def test_a_folder_and_rows_of_an_earlier_run(bench, tmp_path, folder):
    pytest.importorskip("matplotlib")
    arguments = ["--data", str(folder), "--seeds", "1", "--steps", "20"]
    arguments += ["--methods", "loc", "best Gaussian"]
    first = bench.accuracy.main([*arguments, "--out", str(tmp_path / "first")])
    good, best, bad, _ = first.details["rows"]
    assert (good["sw1"], good["white"], good["worst sd at"]) == (0.5, 0.5, "x")
    assert good["is good"]  # by twice the floor
    assert best["compile CPU s"] is None
    assert bad["note"].startswith("ModelError: ")
    assert bad["ELBO"] is None

    earlier = str(tmp_path / "first" / "accuracy.json")
    page = tmp_path / "page.md"
    arguments = ["--data", str(folder), "--methods", "--seeds", "1", "--page", str(page)]
    arguments += ["--add", earlier, earlier, "--out", str(tmp_path / "second")]
    second = bench.accuracy.main(arguments)
    assert [r | {"source": 0} for r in second.details["rows"]] == first.details["rows"]
    [run] = second.tables["Runs"]
    assert (run["methods"], run["rows"]) == ("loc, best Gaussian", 4)
    assert run["date"] == first.details["sources"][0]["date"]
    assert "](second/accuracy.png)" in page.read_text()
    assert "| good | **0.50; " in page.read_text()


def test_a_new_row_stands_instead_of_an_added_one(bench):
    added = [row("auto", "a", source=1), row("nuts", "a", source=1)]
    new = [row("auto", "a"), row("auto", "b")]
    found = bench.accuracy.together(new, added)
    assert [(r["method"], r["posterior"], r["source"]) for r in found] == [
        ("auto", "a", 0),
        ("nuts", "a", 1),
        ("auto", "b", 0),
    ]


def test_our_rows_come_first(bench):
    arguments = SimpleNamespace(command="", name="accuracy")
    rows = [row(m, p) for p in ("a", "b", "c") for m in ("best Gaussian", "nuts", "auto", "advi")]
    report = bench.accuracy.report_of(rows, [], ["b", "a"], "", arguments)
    ours, *others = [(r["posterior"], r["method"]) for r in report.details["rows"][:4]]
    assert ours == ("b", "auto")
    assert others == [("b", m) for m in ("advi", "nuts", "best Gaussian")]
    assert len(report.details["rows"]) == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "EMPTY"], "has no models.py, score.py, reference"),
        (["--names", "pot1", "pot9"], "unknown: pot9"),
        (["--data", "EMPTY", "--held-out", "EMPTY"], "not both"),
    ],
)
def test_it_refuses(bench, tmp_path, capsys, arguments, message):
    given = [str(tmp_path) if a == "EMPTY" else a for a in arguments]
    with pytest.raises(SystemExit):
        bench.accuracy.main(given)
    assert message in capsys.readouterr().err


# ------------------------------------------------------------------------------ two further bars


def test_the_reference_of_the_regression_is_its_posterior(bench):
    logistic = bench.accuracy_bars.Logistic(rows=2_000, predictors=2)
    reference = logistic.reference("any")
    mean, sd = reference["mean"]["beta"], reference["sd"]["beta"]
    # By a grid, ten standard deviations wide.
    axes = [np.linspace(m - 5 * s, m + 5 * s, 61) for m, s in zip(mean, sd, strict=True)]
    grid = np.stack([x.ravel() for x in np.meshgrid(*axes)], axis=1)
    log_p = np.concatenate([logistic.log_density(part) for part in np.array_split(grid, 100)])
    p = np.exp(log_p - log_p.max())
    exact = p @ grid / p.sum()
    np.testing.assert_allclose((mean - exact) / sd, 0, atol=0.005)
    np.testing.assert_allclose(sd, np.sqrt(p @ (grid - exact) ** 2 / p.sum()), rtol=0.04)
    np.testing.assert_allclose(reference["draws"]["beta"].mean(0), mean, atol=0.15 * sd.max())
    density = ModelDensity(logistic.model("any"))
    shift = LogDensity(density).value(grid[:2]) - logistic.log_density(grid[:2])
    np.testing.assert_allclose(shift[0], shift[1], rtol=1e-9)


def test_the_correlated_normal_has_the_condition_of_the_bar(bench):
    target = bench.accuracy_bars.correlated_normal(6)
    assert np.linalg.cond(np.array(target.cov)) == pytest.approx(1e4)
    assert bench.accuracy_bars.sd_error(np.sqrt(np.diagonal(target.cov)) * 1.02, target) == (
        pytest.approx(0.02)
    )


def test_bars_of_the_correlated_normal(bench):
    keys = ("method", "largest sd error", "run CPU s")
    values = [
        *(("auto", 0.01, 10.0), ("tril-loc", 0.04, 2.0)),
        *(("full-rank ADVI, its default", 0.5, 1.0), ("full-rank ADVI, adam(0.01)", 0.02, 3.0)),
    ]
    rows = [dict(zip(keys, x, strict=True)) for x in values]
    found = [(c.value, c.holds) for c in bench.accuracy_bars.correlated_checks(rows)]
    third = pytest.approx(10 / 3), pytest.approx(2 / 3)
    assert found == [(0.01, True), (third[0], False), (0.04, False), (third[1], True)]
    checks = bench.accuracy_bars.correlated_checks(rows[:3])
    assert checks[1].what.endswith("which never was as accurate")
    assert checks[1].value == 10


def test_full_rank_advi_goes_on_until_it_is_as_accurate(bench, monkeypatch):
    monkeypatch.setattr(bench.accuracy_bars, "ADVI_PART", 10)
    monkeypatch.setattr(bench.accuracy_bars, "SD_BAR", 0.0)
    target = bench.accuracy_bars.correlated_normal(2)
    with pytensor.config.change_flags(mode="FAST_COMPILE"):
        found = bench.accuracy_bars.full_rank_advi(target, "adam(0.01)", 0, 25)
    assert found["note"] == "25 steps"
    assert found["largest sd error"] > 0


def test_two_further_bars(bench, tmp_path, monkeypatch):
    seconds = {"auto": 3.0, "nuts": 40.0}
    asked = []

    def fit_once(collection, name, method, seed, steps, bars):
        asked.append((name, method, seed, steps))
        given = {"run CPU s": seconds[method], "run wall s": 1.0, "share of run": 0.5}
        return row(method, name, seed=seed, **given)

    monkeypatch.setattr(bench.accuracy_bars, "fit_once", fit_once)
    arguments = ["--targets", "logistic", "--rows", "300", "--out", str(tmp_path)]
    report = bench.accuracy_bars.main(arguments)
    assert asked == [("logistic 300 × 50", "auto", 0, None), ("logistic 300 × 50", "nuts", 0, 400)]
    assert len(report.tables["Logistic regression"]) == 2
    [check] = report.checks
    assert (check.value, check.holds) == (pytest.approx(3 / 40), True)
