"""Notebooks and the demo run from top to bottom, and notebooks are committed with outputs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest

pytestmark = pytest.mark.jax

EXAMPLES = Path(__file__).parents[2] / "examples"

# Everything that takes time, made short: (text, replacement, number of places that have it).
OVERVIEW = [
    ("n=20_000", "n=500", 1),
    ('["scale-loc", "scale-hh*2-loc", "scale-hh*20-loc"]', '["scale-hh*2-loc"]', 1),
    ('["scale-loc", "scale-hh*4-loc", "scale-planar*16-loc"]', '["scale-planar*16-loc"]', 1),
    ("        5_000, formula", "        50, formula", 1),
    ("        1_000,\n        chains", "        25,\n        tune=50,\n        chains", 2),
    ("fit(300, ", "fit(10, ", 1),
    ("fit(30_000, ", "fit(300, ", 1),
    ("    25_000,\n    obj_n_mc=100", "    200,\n    obj_n_mc=100", 1),
    ("for seed in range(1, 6)", "for seed in range(1, 2)", 1),
    ("fit(5_000, ", "fit(50, ", 1),
    ("fit(10_000, obj_n_mc=256", "fit(50, obj_n_mc=256", 1),
    ("        3_000,\n        tune=1_000", "        25,\n        tune=50", 1),
    ("fit(25_000, ", "fit(50, ", 1),
    ("fit(60_000, ", "fit(50, ", 1),
    ("fit(10_000, formula", "fit(50, formula", 1),
]
GALLERY = [
    # The ladder has one rung.
    (
        "import pymc_flows as pmf",
        "import pymc_flows as pmf\nimport pymc_flows.fitting.auto\n"
        "pymc_flows.fitting.auto.richer = lambda dim: []",
        1,
    ),
    ("fit(6_000, obj_n_mc=128, ", "fit(60, obj_n_mc=8, ", 1),
    ("refine(1_500, ", "refine(20, ", 1),
    ("6_000: ", "60: ", 1),
    ("step=slice(None, None, 20)", "step=slice(None, None, 2)", 1),
    ("frames_per_layer=2", "frames_per_layer=1", 1),
    ("pmf.fit(6_000, ", "pmf.fit(60, obj_n_mc=8, ", 1),
    ("report(best, ", "report(best, 500, ", 1),
    ("sample(10_000, ", "sample(500, ", 1),
    ("sample(4_000, ", "sample(200, ", 1),
    # Other draws do for a reference: NUTS takes long to compile.
    (
        "pm.sample(\n        1_000, chains=2, cores=1, target_accept=0.95, "
        'nuts_sampler="pymc", progressbar=False\n    )',
        "best.sample(200)",
        1,
    ),
]
SHORTER = {"normalizing_flows_overview": OVERVIEW, "gallery": GALLERY}
PICTURES = {"normalizing_flows_overview": 12, "gallery": 10}

notebooks = pytest.mark.parametrize("name", list(SHORTER))


def path_of(name: str) -> Path:
    return EXAMPLES / f"{name}.ipynb"


def read(name: str) -> "nbformat.NotebookNode":
    return nbformat.read(path_of(name), as_version=4)


def code_cells(notebook: "nbformat.NotebookNode") -> list["nbformat.NotebookNode"]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook: "nbformat.NotebookNode") -> list["nbformat.NotebookNode"]:
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def errors(notebook: "nbformat.NotebookNode") -> list[str]:
    return [output.evalue for output in outputs(notebook) if output.output_type == "error"]


def test_every_notebook_is_tested():
    assert {path.stem for path in EXAMPLES.glob("*.ipynb")} == set(SHORTER)


def shortened(name: str) -> list["nbformat.NotebookNode"]:
    """Cells that have not been run."""
    notebook = read(name)
    source = "\n".join(cell.source for cell in code_cells(notebook))
    for text, replacement, places in SHORTER[name]:
        assert source.count(text) == places, f"{text!r} occurs {source.count(text)} times"
        for cell in code_cells(notebook):
            cell.source = cell.source.replace(text, replacement)
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    return notebook.cells


def test_shortened_notebooks_run(tmp_path):
    # One after the other in one kernel, without the names of the first: what takes the longest is
    # to import what they need.
    notebook = nbformat.v4.new_notebook()
    for name in SHORTER:
        notebook.cells += [*shortened(name), nbformat.v4.new_code_cell("%reset -f")]

    client = nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    )
    # The kernel's own way of showing figures, not the one that the other tests use.
    env = {k: v for k, v in os.environ.items() if k != "MPLBACKEND"}
    # NUTS and values of single graphs, in PyTensor's own mode, are not worth compiling here.
    env["PYTENSOR_FLAGS"] += ",mode=FAST_COMPILE"
    # What others on the machine import may miss ipywidgets, which is no fault of the notebook.
    client.execute(env=env | {"PYTHONWARNINGS": "ignore:IProgress not found"})

    assert errors(notebook) == []
    assert [cell.execution_count for cell in code_cells(notebook)] == list(
        range(1, len(code_cells(notebook)) + 1)
    )
    assert not any("Warning" in output.get("text", "") for output in outputs(notebook))
    assert list(tmp_path.iterdir()) == []


@notebooks
def test_committed_notebook_is_executed(name):
    notebook = read(name)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert errors(notebook) == []
    pictures = [
        output
        for output in outputs(notebook)
        if {"image/png", "image/gif"} & set(output.get("data", ()))
    ]
    assert len(pictures) >= PICTURES[name]
    assert path_of(name).stat().st_size < 2**20


@notebooks
def test_committed_outputs_are_clean(name):
    text = path_of(name).read_text("utf-8")
    for garbage in ("Warning", "Traceback", "/home/", "/tmp/", "/work/", "/root/"):
        assert garbage not in text, garbage


def test_demo_runs(tmp_path):
    picture = tmp_path / "demo.png"
    command = [sys.executable, EXAMPLES / "demo.py", "--steps", "50", "--picture", picture]
    command += ["--default", "eight schools"]  # of the potentials it compiles for a minute
    command += ["--cores", "1"]  # each process would import all that is needed
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    row = r"^(pot\d|eight schools) +(\S+) +KL +(\S+) ± (\S+)"
    rows = re.findall(row, done.stdout, re.MULTILINE)
    assert [(target, call) for target, call, *_ in rows] == [
        ("pot1", "scale-planar*32"),
        ("pot2", "scale-planar*64"),
        ("pot3", "scale-planar*64"),
        ("pot4", "scale-planar*64"),
        ("eight schools", "scale-loc"),
        ("eight schools", "scale-planar*16-loc"),
        ("eight schools", "pmf.fit()"),
    ]
    # KL(q || p) is not negative, so an error in a normalising constant shows.
    assert all(float(kl) > -3 * float(error) for *_, kl, error in rows)
    # The default takes no steps there, and is close.
    assert float(rows[-1][2]) < 0.1
    assert picture.read_bytes().startswith(b"\x89PNG")
