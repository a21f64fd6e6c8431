"""Each benchmark runs, with settings too small to measure anything."""

import importlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from fits import normal_mean
from pymc_flows import NFVI, _checkpoint, _files, targets
from pymc_flows._files import Content
from pymc_flows.modes import NUMPY

ROOT = Path(__file__).parents[1]
NAMES = {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - {"__init__", "jax_by_hand"}


@pytest.fixture(scope="module")
def bench() -> Iterator[SimpleNamespace]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        modules = {name: importlib.import_module(f"benchmarks.{name}") for name in NAMES}
        yield SimpleNamespace(**modules)


@pytest.fixture
def in_process(bench, monkeypatch, capsys):
    """Let what would start another process run in this one."""

    def run(name, arguments, environment):
        getattr(bench, name).main([str(x) for x in arguments])
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    for module in (bench.speed, bench.scaling):
        monkeypatch.setattr(module, "run_child", run)


@pytest.fixture
def by_hand(bench):
    pytest.importorskip("optax")
    bench.peers.set_jax_precision()
    return importlib.import_module("benchmarks.jax_by_hand")


def record(out: Path, name: str) -> dict:
    """The JSON file of a run."""
    read = json.loads((out / f"{name}.json").read_text(encoding="utf-8"))
    page = (out / f"{name}.md").read_text(encoding="utf-8")
    assert f"`{read['command']}`" in page
    assert read["environment"]["pymc"] in page
    return read


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

    def run(command, *, env, **_):
        seen.update(env, command=command)
        return SimpleNamespace(returncode=0, stdout='noise\n{"wall": 1.5}\n', stderr="")

    monkeypatch.setattr(bench._process.subprocess, "run", run)
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

    def write(path, content):
        if left and content.record["fit"]["done"] == 40:
            left.pop()
            path.with_name(f".{path.name}.part.tmp").touch()
            raise Killed
        _files.write(path, content)

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


# ------------------------------------------------------------------------------- speed and peers


def test_a_child_that_fails_says_why(bench):
    with pytest.raises(RuntimeError, match=r"(?s)benchmarks\.loop --nonsense failed.*unrecognized"):
        bench._process.run_child("loop", ["--nonsense"], {})


@pytest.mark.parametrize("kind", ["pot1", "pot4", "gaussian", "logistic", "schools"])
def test_densities_by_hand_are_those_of_the_models(bench, by_hand, rng, kind):
    workload = next(w for w in bench.workloads.WORKLOADS if w.kind == kind)
    density = NFVI("loc", model=workload.model()).approx.density
    points = rng.standard_normal((2, by_hand.dimension(workload)))
    z = pt.matrix(shape=points.shape)
    (prior, data) = density.batched(z)
    expected = pytensor.function([z], prior + data, mode=NUMPY)(points)
    found = [by_hand.log_density(workload, "float64")(x) for x in points]
    # Normalising constants may be left out.
    np.testing.assert_allclose(np.diff(found), np.diff(expected), rtol=1e-9)


@pytest.mark.parametrize("formula", ["planar*3", "scale-hh*2-loc"])
def test_log_determinants_by_hand(by_hand, rng, formula):
    jax = pytest.importorskip("jax")
    layers, params = by_hand.words(formula), by_hand.start(formula, 3, "float64")
    point = rng.standard_normal(3)
    jacobian = jax.jacobian(lambda z: by_hand.forward(layers, params, z)[0])(point)
    log_det = by_hand.forward(layers, params, point)[1]
    np.testing.assert_allclose(log_det, np.linalg.slogdet(jacobian)[1], atol=1e-12)


def test_speed(bench, by_hand, tmp_path, in_process):
    arguments = ["--workloads", "W1", "--peers", "JAX", "by hand", "NumPyro", "--seconds", "0.01"]
    report = bench.speed.main([*arguments, "--repeats", "2", "--out", str(tmp_path)])
    assert len(report.checks) == 2
    (row,) = report.tables["Steps per CPU second, float64"]
    assert row["by default"] == "JAX"
    assert row["NumPyro"] is None
    rates = record(tmp_path, "speed")["details"]["runs"]["float64"]["W1 planar*2, 1 draw"]["rates"]
    assert np.median(rates["cpu"]["JAX"]) == row["JAX"]
    ratio = np.median(np.divide(rates["cpu"]["JAX"], rates["cpu"]["by hand"]))
    assert report.checks[0].value == pytest.approx(ratio)


@pytest.mark.filterwarnings("ignore:The RandomType SharedVariables")  # pm.fit on JAX
@pytest.mark.parametrize(
    ("peer", "group"), [("flowjax", "W1"), ("NumPyro", "W7"), ("pm.fit on JAX", "W7")]
)
def test_peers_go_on(bench, peer, group):
    way = bench.peers.PEERS[peer]
    if not way.is_installed:
        pytest.skip(f"not installed: {', '.join(way.needs)}")
    bench.peers.set_jax_precision()
    workload = next(w for w in bench.workloads.WORKLOADS if w.group == group and way.fits(w))
    fit = way.fit(workload)
    assert fit.run(3) >= 3
    fit.settle(8.0)
    assert fit.run(3) in (3, 4)


def test_bars_of_speed(bench):
    w2, w6 = "W2 planar*8, 100 draws", "W6 500x10 scale-loc, 1 draw"
    rates = {
        w2: {"JAX": [31e3, 62e3], "numba": [20e3, 20e3], "by hand": [62e3, 62e3]},
        w6: {"JAX": [10.0, 10.0], "numba": [40.0, 40.0], "pm.fit": [8.0, 8.0]},
    }
    rates = {label: {k: np.array(v) for k, v in x.items()} for label, x in rates.items()}
    chosen = {w2: "JAX", w6: "JAX"}
    checks = bench.speed_bars.all_checks(bench.workloads.WORKLOADS, rates, chosen)
    found = {check.what: (check.value, check.bar, check.holds) for check in checks}
    share = "share of 2 workloads with the default backend within 10 % of the better"
    assert found == {
        f"{w2}: JAX : by hand": (0.75, "≥ 0.8", False),
        "JAX : by hand, median of 1 workloads": (0.75, "≥ 1", False),
        f"{w6}: numba, the better : pm.fit": (5.0, "≥ 5", True),
        f"{w2}: JAX : PyMC3 NFVI, scaled": (pytest.approx(0.75 * 62 / 0.9), "≥ 65", False),
        f"{w2}: numba : PyMC3 NFVI, scaled": (pytest.approx(20 / 0.9), "≥ 42", False),
        f"{w2}: JAX, the better : C loop, scaled": (pytest.approx(0.75 * 62 / 132), "≥ 0.4", False),
        share: (0.5, "≥ 0.8", False),
    }


def test_matrix_products_take_their_share(bench):
    workload = next(
        w for w in bench.workloads.WORKLOADS if w.label == "W6 5000x50 scale-loc, 1 draw"
    )
    run = {"rates": {"cpu": {"JAX": [500.0]}}, "gemm": 2e9}
    (row,) = bench.speed.gemm_rows({workload.label: run}, [workload], ["JAX", "numba"])
    assert (row["JAX"], row["numba"]) == (pytest.approx(500 * 4 * 5000 * 50 / 2e9), None)


def test_first_step(bench, tmp_path, monkeypatch):
    seconds = {"JAX": 4.0, "by hand": 1.0, "numba": 12.5}

    def measured(module, arguments, environment):
        assert (module, environment["OMP_NUM_THREADS"]) == ("first_step", "1")
        keys = ("CPU", "wall", "process, CPU", "process, wall")
        return dict.fromkeys(keys, seconds[arguments[1]])

    monkeypatch.setattr(bench.first_step, "run_child", measured)
    monkeypatch.setattr(bench.first_step, "is_installed", lambda side: True)
    report = bench.first_step.main(["--repeats", "1", "--out", str(tmp_path)])
    assert [(check.what, check.value, check.bar, check.holds) for check in report.checks[:3]] == [
        ("numba, CPU s", 12.5, "≤ 12", False),
        ("numba, warm cache, CPU s", 12.5, "≤ 2", False),
        ("JAX, CPU s", 4.0, "≤ 3.3 (1.3 × by hand + 2 s)", False),
    ]
    record(tmp_path, "first_step")


def test_first_step_measures_one_fit(bench, by_hand, capsys):
    bench.first_step.main(["--measure", "by hand", str(time.time())])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["process, CPU"] > found["CPU"] > 0
    assert found["process, wall"] > found["wall"] > 0


def test_scaling(bench, tmp_path, monkeypatch, in_process):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(bench.scaling, "SIZES", {"rows": [600]})
    monkeypatch.setattr(bench.scaling, "CASES", {"rows": ["minibatch"]})
    arguments = ["--axes", "rows", "--backends", "jax", "--seconds", "0.01"]
    report = bench.scaling.main([*arguments, "--out", str(tmp_path)])
    (check,) = report.checks
    assert check.what.startswith("sample(100,000)")
    (row,) = report.tables["By rows"]
    assert row["peak memory, MB"] > row["of it since the fit began, MB"] >= 0
    assert (tmp_path / "scaling.png").stat().st_size > 10_000
    record(tmp_path, "scaling")


def test_bars_of_scaling(bench):
    def run(cpu, peak):
        return {"cpu": cpu, "before": 1e8, "peak": 1e8 + peak}

    point = bench.scaling.Point
    found = {
        point("dimensions", "scale-hh*10-loc", 100, "jax"): run(1.0, 1e6),
        point("dimensions", "scale-hh*10-loc", 1000, "jax"): run(11.0, 1e7),
        point("dimensions", "scale-hh*10-loc", 10_000, "jax"): run(140.0, 1e8),
        point("rows", "all rows", 1_000_000, "jax"): run(9.0, 2.5e9),
    }
    checks = bench.scaling.checks(found, {"wall": 2.0})
    assert [(check.value, check.holds) for check in checks] == [
        (140.0, False),
        (pytest.approx(1.0), True),
        (pytest.approx(2.6), True),
        (2.0, False),
    ]


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
