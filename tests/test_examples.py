"""The notebook and the demo run from top to bottom, and the notebook is committed with outputs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("matplotlib")
pytest.importorskip("jax")

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOK = EXAMPLES / "normalizing_flows_overview.ipynb"

# Everything that takes time, made short: (text, replacement, number of places that have it).
SHORTER = [
    ("n=20_000", "n=500", 1),
    ('["scale-loc", "scale-hh*2-loc", "scale-hh*20-loc"]', '["scale-hh*2-loc"]', 1),
    ('["scale-loc", "scale-hh*4-loc", "scale-planar*16-loc"]', '["scale-planar*16-loc"]', 1),
    ("        5_000, formula", "        50, formula", 1),
    ("        1_000,\n        chains", "        50,\n        tune=200,\n        chains", 2),
    ("fit(300, ", "fit(10, ", 1),
    ("fit(30_000, ", "fit(300, ", 1),
    ("    25_000,\n    obj_n_mc=100", "    200,\n    obj_n_mc=100", 1),
    ("for seed in range(1, 6)", "for seed in range(1, 2)", 1),
    ("fit(5_000, ", "fit(50, ", 1),
    ("fit(10_000, obj_n_mc=256", "fit(50, obj_n_mc=256", 1),
    ("        3_000,\n        tune=1_000", "        50,\n        tune=200", 1),
    ("fit(25_000, ", "fit(50, ", 1),
    ("fit(60_000, ", "fit(50, ", 1),
    ("fit(10_000, formula", "fit(50, formula", 1),
]


def read() -> "nbformat.NotebookNode":
    return nbformat.read(NOTEBOOK, as_version=4)


def code_cells(notebook: "nbformat.NotebookNode") -> list["nbformat.NotebookNode"]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook: "nbformat.NotebookNode") -> list["nbformat.NotebookNode"]:
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def errors(notebook: "nbformat.NotebookNode") -> list[str]:
    return [output.evalue for output in outputs(notebook) if output.output_type == "error"]


def test_shortened_notebook_runs(tmp_path):
    notebook = read()
    source = "\n".join(cell.source for cell in code_cells(notebook))
    for text, replacement, places in SHORTER:
        assert source.count(text) == places, f"{text!r} occurs {source.count(text)} times"
        for cell in code_cells(notebook):
            cell.source = cell.source.replace(text, replacement)
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None

    client = nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    )
    # The kernel's own way of showing figures, not the one that the other tests use.
    client.execute(env={k: v for k, v in os.environ.items() if k != "MPLBACKEND"})

    assert errors(notebook) == []
    assert [cell.execution_count for cell in code_cells(notebook)] == list(
        range(1, len(code_cells(notebook)) + 1)
    )
    assert not any("Warning" in output.get("text", "") for output in outputs(notebook))
    assert list(tmp_path.iterdir()) == []


def test_committed_notebook_is_executed():
    cells = code_cells(read())
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert errors(read()) == []
    pictures = [
        output
        for output in outputs(read())
        if output.output_type == "display_data" and "image/png" in output.data
    ]
    assert len(pictures) >= 12
    assert NOTEBOOK.stat().st_size < 2**20


def test_committed_outputs_are_clean():
    text = NOTEBOOK.read_text("utf-8")
    for garbage in ("Warning", "Traceback", "/home/", "/tmp/", "/work/", "/root/"):
        assert garbage not in text, garbage


def test_demo_runs(tmp_path):
    picture = tmp_path / "demo.png"
    command = [sys.executable, EXAMPLES / "demo.py", "--steps", "50", "--picture", picture]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    rows = re.findall(r"^(pot\d|eight schools) +(\S+) +(\S+) ± (\S+)", done.stdout, re.MULTILINE)
    assert [(target, formula) for target, formula, *_ in rows] == [
        ("pot1", "scale-planar*32"),
        ("pot2", "scale-planar*64"),
        ("pot3", "scale-planar*64"),
        ("pot4", "scale-planar*64"),
        ("eight schools", "scale-loc"),
        ("eight schools", "scale-hh*4-loc"),
        ("eight schools", "scale-planar*16-loc"),
    ]
    # KL(q || p) is not negative, so an error in a normalising constant shows.
    assert all(float(kl) > -3 * float(error) for *_, kl, error in rows)
    assert picture.read_bytes().startswith(b"\x89PNG")
