"""The benchmark on a folder of models: what it says of models that fit, fail, or end late."""

import numpy as np
import pytest

FILES = {
    "fits": "    with pm.Model() as model:\n        pm.Normal('x')\n    return model, {}\n",
    "discrete": "    with pm.Model() as model:\n        pm.Poisson('x', 1)\n    return model\n",
    "broken": "    raise ValueError('no data')\n",
}


@pytest.fixture
def folder(tmp_path):
    for name, body in FILES.items():
        text = f"import pymc as pm\n\n\ndef build_model():\n{body}"
        (tmp_path / f"{name}.py").write_text(text)
    return tmp_path


def test_a_model_is_fitted_refused_or_not_built(bench, folder, monkeypatch):
    monkeypatch.setattr(bench.catalogue, "STEPS", 3)
    found = bench.catalogue.measure(folder / "fits.py", "jax")
    assert (found["outcome"], found["backend"], found["dimensions"]) == ("fits", "jax", 1)
    assert np.isfinite(found["loss"])
    found = bench.catalogue.measure(folder / "discrete.py", "jax")
    assert found["outcome"] == "refused"
    assert "discrete" in found["why"]
    found = bench.catalogue.measure(folder / "broken.py", "jax")
    assert (found["outcome"], found["why"]) == ("not built", "no data")


def test_what_ends_late_or_dies_is_said(bench, folder, monkeypatch):
    monkeypatch.setattr(bench._process, "PATIENCE", 1_000)
    monkeypatch.setattr(bench._process.sys, "executable", "false")
    assert bench.catalogue.run(folder / "fits.py", "jax", 60)["outcome"] == "fails"
    monkeypatch.setattr(bench._process.sys, "executable", str(folder / "python"))
    (folder / "python").write_text("#!/bin/sh\nwhile :; do :; done\n")
    (folder / "python").chmod(0o755)
    found = bench.catalogue.run(folder / "fits.py", "jax", 1)
    assert (found["outcome"], found["why"]) == ("late", "not done after 1 CPU s")
    (folder / "python").write_text("#!/bin/sh\nsleep 60\n")
    monkeypatch.setattr(bench._process, "PATIENCE", 0.05)
    found = bench.catalogue.run(folder / "fits.py", "jax", 1)
    assert (found["outcome"], found["why"]) == ("late", "not done after 0.05 s")


@pytest.fixture
def runs(bench, monkeypatch):
    """What was run, where outcomes are known."""
    outcomes = {
        ("fits", "default"): {"outcome": "fits", "why": "", "backend": "jax", "dimensions": 1},
        ("fits", "numba"): {"outcome": "fits", "why": ""},
        ("discrete", "default"): {"outcome": "refused", "why": "'x' is discrete"},
        ("discrete", "numba"): {"outcome": "refused", "why": "'x' is discrete"},
        ("discrete", "jax"): {"outcome": "refused", "why": "'x' is discrete"},
        ("broken", "default"): {"outcome": "not built", "why": "no data"},
    }
    done = []

    def run(path, backend, limit):
        done.append((path.stem, backend))
        return outcomes[done[-1]]

    monkeypatch.setattr(bench.catalogue, "run", run)
    return done


def test_the_page_has_a_line_per_model(bench, folder, tmp_path, runs):
    report = bench.catalogue.main(["--folder", str(folder), "--out", str(tmp_path)])
    rows = {row["model"]: row for row in report.tables["Models"]}
    assert rows["discrete"]["why"] == "'x' is discrete"
    assert rows["fits"]["jax"] == rows["fits"]["numba"] == "fits"
    assert ("fits", "jax") not in runs  # the default choice is the same fit
    assert ("broken", "numba") not in runs
    assert [check.holds for check in report.checks] == [True, True]
    assert "| discrete |" in (tmp_path / "catalogue.md").read_text()


def test_outcomes_that_are_kept_are_not_found_out_again(bench, folder, tmp_path, runs):
    arguments = ["--folder", str(folder), "--keep", str(tmp_path / "kept"), "--out", str(tmp_path)]
    first = bench.catalogue.main([*arguments, "--models", "fits"])
    n = len(runs)
    assert bench.catalogue.main([*arguments, "--models", "fits"]).tables == first.tables
    assert len(runs) == n
    bench.catalogue.main([*arguments, "--models", "fits", "discrete"])
    assert {name for name, _ in runs[n:]} == {"discrete"}


def test_the_folder_must_exist(bench, capsys):
    with pytest.raises(SystemExit):
        bench.catalogue.main(["--folder", "no_such_folder"])
    assert "must be a folder" in capsys.readouterr().err
