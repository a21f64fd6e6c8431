"""The benchmark of the default call on a folder of models: its judgement, and what it counts."""

import json

import numpy as np
import pymc as pm
import pytest
from xarray import Dataset, DataTree

MODEL = """import pymc as pm


def build_model():
    with pm.Model() as model:
        pm.Normal('x', [1.0, -2.0], [0.5, 3.0], shape=2)
    return model, {}
"""


@pytest.fixture
def path(tmp_path):
    (tmp_path / "two.py").write_text(MODEL)
    return tmp_path / "two.py"


@pytest.fixture
def module(bench):
    return bench.catalogue_posteriors


def test_the_default_call_is_judged_by_the_draws_of_nuts(module, path, rng, monkeypatch):
    def sample(**given):
        assert given["chains"] == 4
        draws = rng.normal([1.0, -2.0], [0.5, 3.0], (4, 1_000, 2))
        posterior = Dataset({"x": (("chain", "draw", "i"), draws)})
        return DataTree.from_dict({"posterior": posterior})

    monkeypatch.setattr(pm, "sample", sample)
    nuts, ours = module.measure(path, "nuts"), module.measure(path, "auto")
    assert module.samples_well(nuts)
    x = nuts["moments"]["x"]
    np.testing.assert_allclose(x["mean error"], np.divide([0.5, 3.0], np.sqrt(4_000)), rtol=0.2)
    np.testing.assert_allclose(x["sd error"], np.divide([0.5, 3.0], np.sqrt(8_000)), rtol=0.2)
    assert (ours["outcome"], ours["status"], ours["dimensions"]) == ("done", "good", 2)
    assert module.judge(ours["moments"], nuts["moments"])["is good"]


def test_data_that_a_file_draws_are_the_same_for_both(module, tmp_path, monkeypatch):
    text = "import numpy as np\n\n\ndef build_model():\n    return np.random.rand()\n"
    (tmp_path / "drawn.py").write_text(text)
    monkeypatch.setattr(module, "by_nuts", lambda data: data)
    monkeypatch.setattr(module, "by_default", lambda data: data)
    both = [module.measure(tmp_path / "drawn.py", method) for method in ("nuts", "auto")]
    assert both[0] == both[1]


def known(mean=0.0, sd=1.0, error=0.01):
    return {"x": {"mean": [mean], "sd": [sd], "mean error": [error], "sd error": [error]}}


@pytest.mark.parametrize(
    ("mean", "sd", "error", "is_good"),
    [
        (0.14, 1.0, 0.01, True),
        (0.16, 1.0, 0.01, False),
        (0.0, 0.84, 0.01, False),
        (0.0, 1.16, 0.01, False),
        (0.2, 1.2, 0.07, True),  # within three errors of the reference
    ],
)
def test_errors_of_means_and_spreads(module, mean, sd, error, is_good):
    found = module.judge(known(mean, sd), known(error=error))
    assert found["is good"] == is_good
    assert found["worst mean error"] == mean
    assert (found["lowest sd ratio"], found["highest sd ratio"]) == (min(sd, 1), max(sd, 1))


def test_a_scalar_that_does_not_vary_is_not_judged(module):
    assert module.judge(known(3.0, 0.0), known(3.0, 0.0, 0.0))["is good"]


def test_models_that_nuts_does_not_sample_well_do_not_count(module, tmp_path, monkeypatch):
    nuts = {"outcome": "done", "why": "", "R-hat": 1.0, "CPU s": 20.0, "moments": known()}
    ours = {"outcome": "done", "why": "", "CPU s": 5.0, "status": "good", "moments": known()}
    outcomes = {
        ("right", "nuts"): nuts,
        ("right", "auto"): ours,
        ("wrong", "nuts"): nuts,
        ("wrong", "auto"): ours | {"moments": known(1.0)},
        ("slow", "nuts"): nuts,
        ("slow", "auto"): ours | {"CPU s": 30.0},
        ("late", "nuts"): {"outcome": "late", "why": "not done"},
        ("apart", "nuts"): nuts | {"R-hat": 1.02},
        ("refused", "nuts"): nuts,
        ("refused", "auto"): {"outcome": "refused", "why": "discrete"},
    }
    done = []
    monkeypatch.setattr(module, "run", lambda path, *how: outcomes[_note(done, path, how)])
    for name in dict(outcomes):
        (tmp_path / f"{name[0]}.py").write_text("")
    options = ["--folder", str(tmp_path), "--out", str(tmp_path / "out"), "--keep"]
    report = module.main([*options, str(tmp_path / "kept")])
    assert set(done) == set(outcomes)
    assert [row["model"] for row in report.tables["Models"]] == [
        "refused",
        "right",
        "slow",
        "wrong",
    ]
    good, wrong, faster = (check.value for check in report.checks)
    assert (good, wrong, faster) == (0.5, 0.25, 0.25)
    kept = [json.loads(line) for line in (tmp_path / "kept").read_text().splitlines()]
    assert {(run["model"], run["method"]) for run in kept} == set(outcomes)
    module.main([*options, str(tmp_path / "kept")])
    assert len(done) == len(outcomes)  # nothing is run again


def _note(done, path, how):
    done.append((path.stem, how[0]))
    return done[-1]
