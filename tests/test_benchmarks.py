"""Each benchmark runs, with settings too small to measure anything."""

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pymc_flows import NFVI, targets

ROOT = Path(__file__).parents[1]
NAMES = ("_common", "compile_time", "conjugate", "loop", "notebook_quality", "posteriors")


@pytest.fixture(scope="module")
def bench() -> Iterator[SimpleNamespace]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        modules = {name: importlib.import_module(f"benchmarks.{name}") for name in NAMES}
        yield SimpleNamespace(**modules)


def record(out: Path, name: str) -> dict:
    """The JSON file of a run, whose Markdown page must have the same command."""
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
        (2.5, "≤ 1.5", False)
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

    monkeypatch.setattr(bench.compile_time.subprocess, "run", run)
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
    # After 20 steps of size 0.01 the standard deviation is still near that of the base.
    assert run["sd_error"] == pytest.approx(np.sqrt(11) - 1, abs=0.7)


def test_posteriors_without_a_folder_says_what_is_missing(bench, tmp_path, capsys):
    arguments = ["--names", "pot1", "--formulas", "scale-hh*k-loc", "--seeds", "1", "--steps", "20"]
    report = bench.posteriors.main([*arguments, "--out", str(tmp_path)])
    assert "No --data: real posteriors are missing" in capsys.readouterr().out
    assert "No --data: real posteriors are missing" in report.about
    (row,) = report.tables["Errors"]
    assert row["dim"] == 2
    assert row["sw1"] is None
    assert np.isfinite([row["mean error, sd"], row["log sd error"], row["ELBO"]]).all()
    record(tmp_path, "posteriors")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two posteriors, one of which cannot be fitted."""
    path = tmp_path / "data"
    (path / "reference").mkdir(parents=True)
    (path / "reference" / "good.npz").touch()
    (path / "models.py").write_text(
        "import pymc as pm\n"
        "NAMES = ['good', 'bad']\n"
        "def build(name):\n"
        "    with pm.Model() as model:\n"
        "        (pm.Normal if name == 'good' else pm.Poisson)('x', 1.0)\n"
        "    return model\n"
    )
    (path / "score.py").write_text(
        "def load_reference(path):\n"
        "    return path.name\n"
        "def score(draws, reference):\n"
        "    assert draws['x'].shape == (4000,) and reference == 'good.npz'\n"
        "    keys = ('max_mean', 'max_logsd', 'sw1', 'sw1_white')\n"
        "    return dict.fromkeys(keys, 0.5) | {'worst_mean': 'x', 'worst_sd': 'x'}\n"
    )
    return path


def test_posteriors_of_a_folder(bench, tmp_path, folder):
    arguments = ["--data", str(folder), "--formulas", "loc", "--seeds", "1", "--steps", "20"]
    report = bench.posteriors.main([*arguments, "--out", str(tmp_path)])
    good, bad = report.tables["Errors"]
    assert good["sw1"] == 0.5
    assert good["worst mean, sd"] == "x, x"
    assert bad["note"].startswith("ModelError: ")
    assert bad["ELBO"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "EMPTY"], "has no models.py, score.py, reference"),
        (["--names", "pot1", "pot9"], "unknown: pot9"),
    ],
)
def test_posteriors_refuses(bench, tmp_path, capsys, arguments, message):
    given = [str(tmp_path) if a == "EMPTY" else a for a in arguments]
    with pytest.raises(SystemExit):
        bench.posteriors.main(given)
    assert message in capsys.readouterr().err
