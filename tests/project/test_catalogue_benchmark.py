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
    assert bench.catalogue.run(folder / "fits.py", "jax", 1e-3)["outcome"] == "late"
    monkeypatch.setattr(bench.catalogue.sys, "executable", "false")
    assert bench.catalogue.run(folder / "fits.py", "jax", 60)["outcome"] == "fails"


def test_the_page_has_a_line_per_model(bench, folder, tmp_path, monkeypatch):
    outcomes = {
        ("fits", "default"): {"outcome": "fits", "why": "", "backend": "jax", "dimensions": 1},
        ("fits", "jax"): {"outcome": "fits", "why": ""},
        ("discrete", "default"): {"outcome": "refused", "why": "'x' is discrete"},
        ("discrete", "jax"): {"outcome": "refused", "why": "'x' is discrete"},
    }
    monkeypatch.setattr(bench.catalogue, "run", lambda p, b, _: outcomes[p.stem, b])
    arguments = ["--folder", str(folder), "--models", "fits", "discrete"]
    arguments += ["--backends", "default", "jax", "--out", str(tmp_path)]
    report = bench.catalogue.main(arguments)
    assert [row["why"] for row in report.tables["Models"]] == ["", "'x' is discrete"]
    assert [check.holds for check in report.checks] == [True, True]
    assert "| discrete |" in (tmp_path / "catalogue.md").read_text()


def test_the_folder_must_exist(bench, capsys):
    with pytest.raises(SystemExit):
        bench.catalogue.main(["--folder", "no_such_folder"])
    assert "must be a folder" in capsys.readouterr().err
