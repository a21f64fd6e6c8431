"""The tutorial runs; what the other pages call exists; no link leads nowhere."""

import ast
import inspect
import re
from pathlib import Path

import pytest

import pymc_flows as pmf
from pymc_flows.fitting import auto as ladder

pytestmark = pytest.mark.jax

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [DOCS / "index.md", DOCS / "tutorial.md", DOCS / "api.md", *sorted(DOCS.glob("howto/*.md"))]
NAMED_BLOCK = re.compile(r"<!-- (\w+) -->\n```python\n(.*?)```\n", re.DOTALL)
BLOCK = re.compile(r"```python\n(.*?)```\n", re.DOTALL)

# Only shorter: each of these must occur, so that the tutorial cannot drift away from its test.
FIT = ("pmf.fit(", "pmf.fit(100, progressbar=False, obj_n_mc=4, ")
NO_SEARCH = (FIT[0], FIT[1] + "start=pmf.Frame(np.zeros(10)), ")  # it takes seconds in a funnel
SHORTER = {
    "model": [],
    "fit": [FIT],
    "draws": [("sample(4_000", "sample(400")],
    "report": [("random_seed=1", "500, random_seed=1")],
    "reference": [
        # NUTS takes long to compile.
        ("pm.sample(1_000, chains=4, cores=1, random_seed=1)", "approx.sample(500, random_seed=1)"),
        ("reference=nuts, random", "n=500, reference=nuts, random"),
    ],
    "best": [FIT],
    "gaussian": [FIT, ("report(gaussian", "report(gaussian, 500")],
    "correct": [("sample(4_000", "sample(400")],
    "funnel": [NO_SEARCH, ("report(narrow", "report(narrow, 500")],
    "remedy": [
        (NO_SEARCH[0], NO_SEARCH[1].replace("100", "0")),
        ("report(better", "report(better, 500"),
    ],
    "keep": [],
}


@pytest.mark.filterwarnings("ignore:Pareto k-hat")  # the fits are very short
def test_the_tutorial_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Something with losses to show, that compiles fast.
    monkeypatch.setattr(
        "pymc_flows.fitting.auto.richer", lambda dim: [ladder.Candidate("scale-loc")]
    )
    monkeypatch.setattr("pymc_flows.fitting.tried.best_of", lambda qualities: len(qualities) - 1)
    text = (DOCS / "tutorial.md").read_text("utf-8")
    blocks = dict(NAMED_BLOCK.findall(text))
    assert list(blocks) == list(SHORTER)
    assert text.count("```python") == len(blocks)
    namespace: dict[str, object] = {}
    for name, code in blocks.items():
        for long, short in SHORTER[name]:
            assert code.count(long) == 1, f"{long!r} is not in the block {name!r}"
            code = code.replace(long, short)
        exec(compile(code, f"tutorial.md, {name}", "exec"), namespace)
    assert namespace["idata"].posterior["ld50"].shape == (1, 400)
    assert "scale-loc" in str(namespace["better"].ladder)


def resolved(node: ast.expr) -> object:
    """What ``pmf.a.b`` is; None for other expressions."""
    if isinstance(node, ast.Name) and node.id == "pmf":
        return pmf
    if isinstance(node, ast.Attribute) and (owner := resolved(node.value)) is not None:
        return getattr(owner, node.attr)
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_pages_call_exists_and_takes_these_arguments(page):
    for code in BLOCK.findall(page.read_text("utf-8")):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Call) and (called := resolved(node.func)) is not None:
                keywords = dict.fromkeys(k.arg for k in node.keywords)
                inspect.signature(called).bind(*node.args, **keywords)


def test_the_reference_lists_every_public_name():
    listed = set(re.findall(r"^   ([\w.]+)$", (DOCS / "api.md").read_text("utf-8"), re.MULTILINE))
    errors = {name for name in pmf.__all__ if name.endswith("Error")}  # in the module `errors`
    assert set(pmf.__all__) - {"FLOWS"} - errors <= listed
    for name in listed:
        assert resolved(ast.parse(f"pmf.{name}", mode="eval").body) is not None


LISTS = [DOCS / "examples.md", DOCS / "results.md"]


@pytest.mark.parametrize("page", [*PAGES, *LISTS], ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    text = page.read_text("utf-8")
    targets = re.findall(r"\]\(([^)#]+)\)", text)
    listed = re.findall(r"^```\{toctree\}\n(?::.*\n)*\n((?:[^`\s].*\n)+)", text, re.MULTILINE)
    pages = [f"{name}.*" for block in listed for name in block.split()]
    for target in [*targets, *pages]:
        if not target.startswith("https://"):
            folder, name = (page.parent / target).parent, Path(target).name
            assert list(folder.glob(name)), target


def test_the_page_on_structure_shows_what_it_prints(capsys):
    text = (DOCS / "howto" / "structure.md").read_text("utf-8")
    [code] = BLOCK.findall(text)
    exec(code, {})
    assert f"```\n{capsys.readouterr().out}```\n" in text


def test_the_page_on_hierarchies_runs(capsys):
    text = (DOCS / "howto" / "hierarchies.md").read_text("utf-8")
    fit, draws, *_ = BLOCK.findall(text)
    namespace: dict[str, object] = {}
    exec(fit, namespace)
    # Numbers depend on the machine in their last digits; what was fitted and the verdict do not.
    printed = capsys.readouterr().out
    [row] = [line for line in printed.splitlines() if line.endswith("taken")]
    assert row.startswith("tril-loc | laplace")
    assert "Good where it has draws" in printed
    exec(draws, namespace)
    attrs = namespace["idata"].sample_stats.attrs
    assert attrs["correct"] == "resample"
    assert attrs["n_groups"] == 30
    assert "correct" not in namespace["q"].sample_stats.attrs
