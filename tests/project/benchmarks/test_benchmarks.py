"""Each benchmark runs, with settings too small to measure anything."""

import json
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

from benches import record
from fits import normal_mean
from pymc_flows import NFVI, targets
from pymc_flows.fitting import checkpoint as _checkpoint
from pymc_flows.io import files as _files
from pymc_flows.io.files import Content


def test_the_divergence_of_a_target_from_itself_is_zero(bench):
    target = targets.gaussian([0.0, 0.0], np.eye(2))
    approx = NFVI("scale-loc", model=target.model(), jitter=0).approx
    found = bench._common.divergence(approx, target, random_seed=1)
    assert found.points.shape == (20_000, 2)
    np.testing.assert_allclose([found.kl, found.standard_error, found.largest], 0, atol=1e-12)


def test_the_divergence_of_a_shifted_gaussian_is_half_its_squared_shift(bench):
    target = targets.gaussian([0.6, 0.8], np.eye(2))
    approx = NFVI("loc", model=target.model(), jitter=0, start={"gaussian": [0.0, 0.0]}).approx
    found = bench._common.divergence(approx, target, random_seed=1)
    assert found.standard_error == pytest.approx(1 / np.sqrt(20_000), rel=0.05)
    assert found.kl == pytest.approx(0.5, abs=4 * found.standard_error)


def test_tables_show_four_digits_and_escape_bars(bench):
    rows = [{"a|b": 0.123456, "n": 12345, "x": None}, {"a|b": "c|d", "n": 123456.7, "x": True}]
    assert bench._common.markdown_table(rows).splitlines() == [
        "| a\\|b | n | x |",
        "| --- | --- | --- |",
        "| 0.1235 | 12,345 | – |",
        "| c\\|d | 123,457 | True |",
    ]


def test_commands_show_no_places_outside_of_the_repository(bench):
    parser = bench._common.Parser("loop", None)
    arguments = parser.read(["--out", "/home/somebody/results"])
    assert arguments.command == "python -m benchmarks.loop --out results"
    assert parser.read(["--out", "build/out"]).command.endswith("--out build/out")


def test_pymc3_starts_are_normal_around_zero(bench, rng):
    start = bench.notebook_quality.pymc3_start("planar*500", 3, 0.1, rng)
    assert sorted(start) == list(range(500))
    assert {name: value.shape for name, value in start[7].items()} == {
        "b": (),
        "u": (3,),
        "w": (3,),
    }
    for name in ("b", "u", "w"):
        values = np.concatenate([np.ravel(layer[name]) for layer in start.values()])
        assert values.mean() == pytest.approx(0, abs=4 * 0.1 / np.sqrt(values.size))
        assert values.std() == pytest.approx(0.1, rel=4 / np.sqrt(2 * values.size))


def test_pymc3_starts_know_planar_layers_only(bench, rng):
    with pytest.raises(ValueError, match="planar layers only, got 'planar-scale'"):
        bench.notebook_quality.pymc3_start("planar-scale", 2, 1.0, rng)


@pytest.mark.jax
def test_notebook_quality(bench, tmp_path, monkeypatch):
    starts = ("PyMC3", "own, default jitter")
    monkeypatch.setattr(bench.notebook_quality, "STARTS", starts)
    arguments = ["--seeds", "1", "--steps", "20", "--cases", "1", "--out", str(tmp_path)]
    report = bench.notebook_quality.main(arguments)
    runs = record(tmp_path, "notebook_quality")["details"]["runs"]
    assert {run["start"]: run["jitter"] for run in runs} == dict(
        zip(starts, (1, 0.01), strict=True)
    )
    kl = [run["seeds"][0]["kl"] for run in runs]
    assert np.isfinite(kl).all()
    (change,) = report.tables["Own starts against PyMC3's (negative: own is better)"]
    assert change["median KL minus PyMC3 start's"] == pytest.approx(kl[1] - kl[0])
    assert [check.bar for check in report.checks] == ["≤ 0.22"] * 2


def test_loop(bench, tmp_path):
    arguments = ["--backends", "jax", "--optimizers", "adam", "--repeats", "1"]
    arguments += ["--loop-steps", "100", "--single-steps", "10", "--out", str(tmp_path)]
    report = bench.loop.main(arguments)
    (row,) = report.tables["Steps per second"]
    assert row["ratio"] == pytest.approx(row["loop, steps/s"] / row["single steps/s"])
    assert record(tmp_path, "loop")["settings"]["repeats"] == 1


def test_compile_time(bench, tmp_path, monkeypatch):
    seconds = {"planar*4": 2.0, "planar*64": 5.0}

    def measured(formula, backend):
        assert backend == "jax"
        return dict.fromkeys(("import_wall", "wall", "cpu", "steps_wall"), seconds[formula])

    monkeypatch.setattr(bench.compile_time, "measure_cold", measured)
    report = bench.compile_time.main(["--repeats", "1", "--pairs", "1", "--out", str(tmp_path)])
    assert [(check.value, check.bar, check.holds) for check in report.checks] == [
        (2.5, "≤ 1.3", False)
    ] * 2
    assert [row["CPU s"] for row in report.tables["Seconds"]] == [2.0, 5.0]
    record(tmp_path, "compile_time")


def test_compile_time_measures_one_fit(bench, capsys):
    bench.compile_time.main(["--measure", "hh*2", "jax"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["wall"] > found["steps_wall"] > 0


def test_the_child_process_of_compile_time_gets_caches_of_its_own(bench, monkeypatch):
    seen = {}

    @contextmanager
    def begin(command, *, env, **_):
        seen.update(env, command=command)
        yield SimpleNamespace(
            returncode=0, communicate=lambda timeout: ('noise\n{"wall": 1.5}\n', "")
        )

    monkeypatch.setattr(bench._process.subprocess, "Popen", begin)
    assert bench.compile_time.measure_cold("planar*4", "jax") == {"wall": 1.5}
    assert seen["command"][1:] == [
        *("-m", "benchmarks.compile_time", "--measure"),
        *("planar*4", "jax"),
    ]
    cache = seen["NUMBA_CACHE_DIR"].removesuffix("/numba")
    assert seen["PYTENSOR_FLAGS"].endswith(f",base_compiledir={cache}/pytensor")


def test_conjugate(bench, tmp_path):
    arguments = ["--seeds", "1", "--steps", "20", "--methods", "pmf.fit()", "--out", str(tmp_path)]
    report = bench.conjugate.main(arguments)
    assert [check.bar for check in report.checks] == ["< 0.01", "< 0.03"]
    (run,) = record(tmp_path, "conjugate")["details"]["runs"]["pmf.fit()"]
    # The search before the fit finds a normal posterior; 20 steps do not lose it.
    assert abs(run["sd_error"]) < 0.1
    assert run["cpu_seconds"] > 0


# --------------------------------------------------------------------------- evidence and kills


@pytest.mark.jax
def test_evidence(bench, tmp_path, monkeypatch):
    target = bench.evidence.all_targets()["gaussian2"]
    recipe = bench.shapes.Shape(target, "scale-loc", steps=3, draws=4)
    monkeypatch.setitem(bench.evidence.RECIPES, target.name, recipe)
    arguments = ["--targets", "gaussian2", "--formulas", "scale-loc", "--recipes", "gaussian2"]
    arguments += ["--seeds", "1", "--steps", "200", "--without-nuts", "--out", str(tmp_path)]
    report = bench.evidence.main(arguments)
    row, by_recipe = record(tmp_path, "evidence")["tables"]["Fits that do not"]
    # No mean-field fit covers a correlated Gaussian.
    assert row["thin share"] > 0.01
    assert abs(row["error of log Z"]) < 1
    assert (row["seed"], by_recipe["seed"]) == (0, bench.shapes.FIRST_SEED)
    (collapsed,) = report.tables["Fits of eight_gaussians that begin inside one mode"]
    assert collapsed["error of log Z"] < -1
    assert collapsed["with exact draws"] == collapsed["with another run"] == "incomplete"
    assert [(check.value, check.holds) for check in report.checks] == [(0, False), (0, True)]


def test_bars_of_evidence(bench):
    row = {"k-hat": 0.1, "in stated errors": -1.0, "thin share": 0.0, "with exact draws": "good"}
    row["target"] = "round"
    others = [
        {**row, "in stated errors": 3.5},
        {**row, "in stated errors": 9.0, "k-hat": 0.6},
        {**row, "in stated errors": 9.0, "thin share": 0.01},
    ]
    collapsed = {**row, "thin share": 0.5}
    others.append({**row, "in stated errors": 4.0, "target": "square"})
    share, reached, good = bench.evidence.checks([row] * 8 + others, [collapsed])
    assert (share.value, share.holds, good.value, good.holds) == (0.8, False, 1, False)
    assert (reached.value, reached.bar, reached.holds) == (1, "= 2", False)
    assert "of 10 covering fits" in share.what


def test_kills(bench, tmp_path, monkeypatch):
    """In this process; a kill is an exception in the middle of writing."""
    kills, left, fills_the_cache = bench.kills, [1], [1]

    class Killed(BaseException):
        pass

    def write(path, content, growing=None):
        if left and content.record["fit"]["done"] == 40:
            left.pop()
            path.with_name(f".{path.name}.part.tmp").touch()
            raise Killed
        _files.write(path, content, growing)

    def run(path, seconds, *, building=True):
        if fills_the_cache:
            return bool(fills_the_cache.pop()), 0.0
        if seconds is not None:
            monkeypatch.setattr(_checkpoint, "write", write)
        try:
            kills.begin_or_resume(path)
        except Killed:
            return False, 0.0
        return True, 0.0

    fake = {"BACKEND": "jax", "FORMULA": "loc", "STEPS": 60, "model": normal_mean, "run": run}
    for name, value in fake.items():
        monkeypatch.setattr(kills, name, value)
    report = kills.main(["--kills", "1", "--out", str(tmp_path)])
    assert all(check.holds for check in report.checks)
    assert report.tables == {
        "What the kills met": [{"kill": "in the middle of writing", "number": 1}],
        "Fits": [
            {"ended with": "the same bits", "number": 1},
            {"ended with": "other bits", "number": 0},
        ],
    }
    record(tmp_path, "kills")


def test_other_bits_are_seen(bench):
    fit = dict.fromkeys(bench.kills.STATE, 1)
    content = Content("loc", {"param": np.array([1.0])}, {"fit": fit, "draws_rng": {"pos": 1}})
    assert bench.kills.same(content, content)
    for other in (
        Content("loc", {"param": np.nextafter([1.0], 2)}, content.record),
        Content("loc", {}, content.record),
        Content("loc", content.arrays, {**content.record, "draws_rng": {"pos": 2}}),
        Content("loc", content.arrays, {**content.record, "fit": {**fit, "model_rngs": 2}}),
    ):
        assert not bench.kills.same(other, content)


# ------------------------------------------------------------------------------- GPU and NUTS


def test_gpu_says_that_there_is_none(bench, tmp_path):
    jax = pytest.importorskip("jax")
    arguments = ["--cases", "1", "--steps", "5", "--dim", "3", "--out", str(tmp_path)]
    report = bench.gpu.main(arguments)
    (row,) = report.tables["Default device and CPU"]
    assert row["largest relative difference of the first 5 losses"] < 1e-6
    if jax.default_backend() == "cpu":
        assert report.about.startswith("NOT RUN ON A GPU")
        assert report.checks == []
    record(tmp_path, "gpu")


def test_neutra(bench, tmp_path, monkeypatch):
    formulas = dict.fromkeys(bench.neutra.FORMULAS, "scale-loc")
    monkeypatch.setattr(bench.neutra, "FORMULAS", formulas)
    arguments = ["--seeds", "1", "--steps", "20", "--draws", "12", "--tune", "10", "--chains", "2"]
    arguments += ["--sampler", "pymc", "--problems", "funnel", "--out", str(tmp_path)]
    report = bench.neutra.main(arguments)
    (rows,) = report.tables.values()
    assert [row["method"] for row in rows] == ["NUTS", "flow and NUTS"]
    assert all(row["smallest bulk ESS"] > 0 for row in rows)
    divergences, sd, speed = report.checks
    assert divergences.value == rows[1]["divergences"]
    assert sd.value == pytest.approx(abs(rows[1]["sd of v or ln tau"] / 3 - 1))
    assert speed.value == pytest.approx(rows[1]["ESS per CPU s"] / rows[0]["ESS per CPU s"])
    assert record(tmp_path, "neutra")["settings"]["flow of funnel"] == "scale-loc"


def test_recipe(bench, tmp_path, monkeypatch):
    pytest.importorskip("jax")
    recipe = bench.recipe
    chosen = {name: recipe.VARIANTS[name] for name in (recipe.DEFAULTS, "path", "total")}
    monkeypatch.setattr(recipe, "VARIANTS", chosen)
    monkeypatch.setattr(recipe, "FRESH_DRAWS", 500)
    monkeypatch.setattr(recipe, "CALL_STEPS", 5)
    arguments = ["--names", "pot1", "--formulas", "loc", "--steps", "40", "--out", str(tmp_path)]
    report = recipe.main(arguments)
    rows = record(tmp_path, "recipe")["details"]["rows"]
    variants = [recipe.DEFAULTS, "total", "total, equal time", recipe.AVERAGE]
    assert [row["variant"] for row in rows] == variants
    assert np.isfinite([row["ELBO"] for row in rows]).all()
    lines = report.tables["Gains over the defaults"]
    assert [line["variant"] for line in lines] == variants
    assert [line["median gain"] for line in lines[:1]] == [0]
    assert lines[1]["median gain"] == pytest.approx(rows[1]["ELBO"] - rows[0]["ELBO"])
    (noise,) = report.tables["Noise of the gradients"]
    assert noise["variance, total"] > 0
    (stop,) = report.tables["Stops"]
    assert stop["stops at"] is None


def test_a_stop_is_false_if_the_loss_falls_on(bench, rng):
    rule = bench.recipe.Plateau(window=400)
    case = SimpleNamespace(name="x", formula="loc", seed=0)
    flat = 0.03 * rng.standard_normal(2_000)
    falls = np.where(np.arange(2_000) < 400, flat, flat - 1.0)
    for losses, is_false in ((flat, False), (falls, True)):
        row = bench.recipe.stop_row(case, losses, rule)
        assert row["stops at"] == 400
        assert bench.recipe.is_false(row, rule) is is_false
