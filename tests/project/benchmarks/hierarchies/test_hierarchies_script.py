"""The script of `benchmarks.hierarchies`: what it runs, keeps, compares and writes."""

import json
from collections import Counter

import numpy as np
import pytest

from benches import record

TINY = "normal-noncentred-5x2-intercepts"


def row(bench, table, posterior, method="auto", seed=0, **given):
    plain = {"table": table, "posterior": posterior, "method": method, "seed": seed, "source": 0}
    known = {"CPU s": 4.0, "of it compiling": 3.0, "is good": True, "says good": True}
    known |= {"CPU s to good": 4.0, "worst mean error": 0.05, "formula": "loc", "status": "good"}
    names = (*bench._hierarchy_fits.COLUMNS, *bench._hierarchy_studies.STUDY_COLUMNS)
    return dict.fromkeys(names) | known | {"peak GB": 1.0, "GB at the start": 0.5} | plain | given


def test_bars(bench):
    bad = {"is good": False, "CPU s to good": None}
    rows = [
        row(bench, "posteriors", "slopes", **{"CPU s to good": 4.0}),
        row(bench, "posteriors", "slopes", "nutpie", **{"CPU s to good": 10.0}),
        row(bench, "posteriors", "slopes", "nutpie low_rank", **bad),
        row(bench, "posteriors", "radon_slopes", **bad),
        row(bench, "posteriors", "bnn", **bad),
        row(bench, "posteriors", "funnel", seed=0),
        row(bench, "posteriors", "funnel", seed=1, **bad, **{"says good": False}),
        *(row(bench, "grid", TINY, seed=i) for i in range(3)),
        row(bench, "grid", TINY, seed=3, **bad),
        row(bench, "cost", "cost-10", groups=10),
        row(bench, "cost", "cost-100", groups=100, **{"CPU s": 13.0}),
        row(bench, "cost", "cost-1000", groups=1_000, formula=None),
    ]
    found = {
        check.what: (check.value, check.holds) for check in bench._hierarchy_tables.checks(rows)
    }
    assert found == {
        "slopes: CPU s until good, ours : the better NUTS": (0.4, False),
        "radon_slopes: CPU s until good": (np.inf, False),
        "bnn: wrongly called good": (1, False),
        "bnn: CPU s": (4.0, True),
        "funnel: good seeds": (1, False),
        "grid: share of 4 fits that are good": (0.75, False),
        "grid: wrongly called good": (1, False),
        "grid: median CPU s, compiling apart": (1.0, True),
        "cost: sizes done": (2, False),
        **{
            f"cost: {what} as which power of groups, {sizes}": (pytest.approx(power), True)
            for what, power in {"time": 1.0, "memory": 0.0}.items()
            for sizes in ("all sizes", "the two largest")
        },
    }


@pytest.fixture
def children(bench, monkeypatch):
    """Rows instead of processes; the commands that would have been run."""
    seen = []

    def run_child(module, arguments, environment):
        seen.append([str(x) for x in arguments])
        table, name, method, seed = seen[-1][1:5]
        if method == "pathfinder":
            raise RuntimeError("child failed\nMemoryError: too large")
        made = row(bench, table, name, method, int(seed))
        if table == "cost":
            made["groups"] = int(name.split("-")[1])
        if table == "million":
            made |= {"wall s": 60.0, "hyperparameters": 42, "beyond 2 sds": 3, "coverage": 0.9}
        if table == "calibration":
            shares = (np.arange(20) + 0.5) / 20
            each = [{"ranks": dict.fromkeys(("fixed", "scale", "effect"), x)} for x in shares]
            return {"rows": [made | x | {"seed": i, "coverage": 0.9} for i, x in enumerate(each)]}
        return {"rows": [made]}

    monkeypatch.setattr(bench.hierarchies, "run_child", run_child)
    return seen


def test_the_script_runs_all_tables_and_writes_a_page(bench, tmp_path, children):
    pytest.importorskip("matplotlib")
    page = tmp_path / "page.md"
    arguments = ["--sample", "2", "--seeds", "1", "--peers", "nutpie", "pathfinder"]
    arguments += ["--shrink", "100", "--out", str(tmp_path), "--page", str(page)]
    report = bench.hierarchies.main(arguments)
    tables = Counter(command[1] for command in children)
    assert tables == {
        "posteriors": 12,
        "grid": 6,
        "logistic": 6,
        "million": 1,
        "cost": 4,
        "calibration": 2,
    }
    assert "100" in children[0][children[0].index("--shrink") :]
    failed = [r for r in report.details["rows"] if r["method"] == "pathfinder"]
    assert {r["note"] for r in failed} == {"the process died: MemoryError: too large"}
    written = record(tmp_path, "hierarchies")
    assert len(written["details"]["rows"]) == 12 + 6 + 6 + 1 + 4 + 40
    text = page.read_text()
    assert "](./hierarchies.png)" in text
    assert "Grid: fits" not in text
    assert (tmp_path / "hierarchies.png").stat().st_size > 10_000
    names = [check.what for check in report.checks]
    assert "very large: coverage of 90 % intervals of effects" in names
    assert "cost: time as which power of groups, the two largest" in names


def test_rows_of_earlier_runs_are_kept(bench, tmp_path, children):
    pytest.importorskip("matplotlib")
    arguments = ["--tables", "grid", "--seeds", "1", "--names", TINY]
    bench.hierarchies.main([*arguments, "--out", str(tmp_path / "first")])
    earlier = str(tmp_path / "first" / "hierarchies.json")
    arguments += ["--formulas", "--peers", "nutpie", "--add", earlier]
    report = bench.hierarchies.main([*arguments, "--out", str(tmp_path / "second")])
    found = [(r["method"], r["source"]) for r in report.details["rows"]]
    assert found == [("auto", 1), ("nutpie", 0)]


def test_one_fit_is_measured_and_judged(bench, tmp_path, capsys):
    models, references = bench._hierarchy_models, bench._hierarchy_references
    truth = models.cell_data(models.Cell.parse(TINY), 0).truth
    exact = {"effects|mean": truth.effects, "effects|sd": np.ones((5, 1))}
    references.keep(tmp_path / "normal-5x2-intercepts-seed0.npz", exact)
    arguments = ["--references", str(tmp_path), "--steps", "20"]
    bench.hierarchies.main([*arguments, "--measure", "grid", TINY, "scale-loc", "0"])
    [found] = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert (found["table"], found["dim"], found["judged"]) == ("grid", 8, 5)
    assert found["CPU s"] > found["of it compiling"] > 0
    assert found["status"] is not None
    assert found["peak GB"] > 0
    assert found["is good"] in (True, False)
    assert found["note"] is None


def test_without_a_reference_there_is_no_verdict(bench):
    problems = bench._hierarchy_problems
    for places, message in (
        (problems.Places(), "no reference: give --references FOLDER"),
        (problems.Places(references=problems.Path("nowhere")), "no reference rat_tumours.npz"),
    ):
        row = {"note": None}
        bench._hierarchy_fits.score(problems.posteriors(places)["rat_tumours"], {}, row)
        assert row["note"].startswith(message)
        assert "is good" not in row


def test_the_data_of_the_rats_are_whole(bench):
    models = bench._hierarchy_models
    y, n = (np.array(text.split(), dtype=int) for text in (models.TUMOURS, models.RATS))
    assert (len(y), len(n), y.sum(), n.sum()) == (71, 71, 267, 1739)
    assert (y <= n).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--names", "nobody"], "unknown: nobody"),
        (["--make-references"], "--make-references needs --references FOLDER"),
    ],
)
def test_it_refuses(bench, capsys, arguments, message):
    with pytest.raises(SystemExit):
        bench.hierarchies.main(arguments)
    assert message in capsys.readouterr().err
