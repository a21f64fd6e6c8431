"""Models that no recipe was chosen on, and their references."""

from pathlib import Path

import numpy as np
import pymc as pm
import pytensor
import pytest

from pymc_flows.model.log_density import LogDensity
from pymc_flows.model.logp import ModelDensity


@pytest.mark.parametrize("name", ["weibull_censored", "ordered_logit", "beta_binomial_groups"])
def test_held_out_models_have_a_density_where_they_start(bench, name):
    density = ModelDensity(bench.held_out.HeldOut(Path()).model(name))
    assert np.isfinite(LogDensity(density).value(density.start()[None])).all()


def test_references_are_read_from_the_cache(bench, tmp_path):
    name = "change_point"
    draws = np.arange(4.0)
    kept = {"mean__when": 1.5, "sd__when": 1.0, "draws__when": draws, "rhat": 1.002, "ess": 2000.0}
    np.savez(tmp_path / f"{name}.npz", **kept, divergences=0)
    held_out = bench.held_out.HeldOut(tmp_path)
    reference = held_out.reference(name)
    assert (reference["mean"]["when"], reference["sd"]["when"], reference["rhat"]) == (
        1.5,
        1,
        1.002,
    )
    np.testing.assert_array_equal(reference["draws"]["when"], draws)
    np.savez(tmp_path / f"{name}.npz", **kept | {"rhat": 1.3}, divergences=0)
    with pytest.raises(RuntimeError, match=r"change_point do not agree: largest R-hat 1\.300"):
        held_out.reference(name)


def test_references_are_long_runs(bench, tmp_path, monkeypatch, capsys):
    pytest.importorskip("nutpie")

    def two_normals():
        with pm.Model() as model:
            pm.Normal("x", [1.0, 2.0], [1.0, 3.0])
            pm.Deterministic("constant", pytensor.tensor.ones(2))
        return model

    monkeypatch.setitem(bench.held_out.MODELS, "change_point", two_normals)
    for name, value in {"TUNE": 200, "LENGTH": 1_500, "MIN_ESS": 500}.items():
        monkeypatch.setattr(bench.held_out, name, value)
    [found] = bench.held_out.main([str(tmp_path), "--names", "change_point"])
    assert (found["scalars"], found["note"]) == (2, "")
    assert "| change_point | 2 | 1" in capsys.readouterr().out
    reference = bench.held_out.HeldOut(tmp_path).reference("change_point")
    np.testing.assert_allclose(reference["mean"]["x"], [1, 2], atol=0.2)
    np.testing.assert_allclose(reference["sd"]["x"], [1, 3], rtol=0.1)
    assert reference["draws"]["x"].shape == (4_000, 2)
    assert 0 < bench.held_out.HeldOut(tmp_path).floor("change_point")["max_mean"] < 0.1
