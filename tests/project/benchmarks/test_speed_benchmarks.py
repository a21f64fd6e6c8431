"""Benchmarks of speed, with settings too small to measure any."""

import importlib
import json
import time

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from packaging.version import Version

from benches import record
from pymc_flows import NFVI
from pymc_flows.backends.modes import NUMPY


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


def test_a_child_that_fails_says_why(bench):
    message = r"(?s)benchmarks\.nothing --nonsense failed.*No module named benchmarks\.nothing"
    with pytest.raises(RuntimeError, match=message):
        bench._process.run_child("nothing", ["--nonsense"], {})


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
    ("peer", "group"),
    [
        ("flowjax", "W1"),
        ("NumPyro", "W7"),
        pytest.param(
            *("pm.fit on JAX", "W7"),
            marks=pytest.mark.skipif(
                Version(pm.__version__) < Version("6.4"),
                reason="PyMC's own inference on JAX needs PyMC 6.4",
            ),
        ),
    ],
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
