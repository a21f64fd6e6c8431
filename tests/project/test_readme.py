"""The README's code runs, its outputs are what the code prints, and its table is the registry's."""

import re
from pathlib import Path

import pytest

import pymc_flows as pmf

pytestmark = pytest.mark.jax

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
BLOCK = re.compile(r"<!-- (\w+) -->\n```python\n(.*?)```\n(?:\n```text\n(.*?)```)?", re.DOTALL)

# Only shorter: each of these must occur, so that the README cannot drift away from its test.
SHORTER = {
    "fit": [
        ("pmf.fit(", "pmf.fit(200, formula='scale-loc', progressbar=False, "),
        ("sample(4_000", "sample(400"),
    ],
    "steps": [
        ("inference.fit(10_000, ", "inference.fit(200, progressbar=False, "),
        ("refine(2_000, ", "refine(100, progressbar=False, "),
        ("sample_and_log_prob(1_000)", "sample_and_log_prob(100)"),
    ],
    "keep": [
        ("inference.fit(10_000, ", "inference.fit(200, progressbar=False, "),
        ('"fit.nc", model)', '"fit.nc", model, progressbar=False)'),
    ],
    "error": [],
    "trust": [("random_seed=1", "200, random_seed=1")],
    "mcmc": [
        ('"nvp*4-iaf(clip=20,activation=silu)-scale-loc"', '"scale-loc", n=100, progressbar=False'),
        ("sample(flow, ", "sample(flow, 100, method='imh', "),
        ('"nvp*4-scale-loc", model)', '"scale-loc", model, n=20, progressbar=False)'),
        ("sample(again, ", "sample(again, 100, "),
    ],
}


def shortened(name: str, code: str) -> str:
    for long, short in SHORTER[name]:
        assert code.count(long) == 1, f"{long!r} is not in the block {name!r}"
        code = code.replace(long, short)
    return code


def test_python_blocks_run_in_order(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = {name: (code, output) for name, code, output in BLOCK.findall(README)}
    assert list(blocks) == list(SHORTER)
    assert README.count("```python") == len(blocks)
    namespace: dict[str, object] = {}
    printed = {}
    for name, (code, _) in blocks.items():
        exec(compile(shortened(name, code), f"README.md, {name}", "exec"), namespace)
        printed[name] = capsys.readouterr().out
    assert len(namespace["inference"].hist) == 500
    assert namespace["idata"].posterior["theta"].shape == (1, 400, 8)
    # The numbers of a shortened fit differ; rows and columns do not.
    assert words(printed["fit"]) == words(blocks["fit"][1])
    assert printed["error"] == blocks["error"][1]


def words(text: str) -> list[str]:
    return re.findall(r"\b[a-z]\w*", text)


def test_the_table_of_flows_is_the_registry():
    [table] = re.findall(r"^\| word \| map \| inverse \|\n.*\n((?:\|.*\n)+)", README, re.MULTILINE)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert {word.strip("`"): equation for word, equation, _ in rows} == {
        word: flow.equation for word, flow in pmf.FLOWS.items()
    }
    assert len(rows) == len(pmf.FLOWS)


def test_formulas_of_the_readme_are_valid():
    [table] = re.findall(r"^\| formula \| \|\n.*\n((?:\|.*\n)+)", README, re.MULTILINE)
    formulas = re.findall(r"^\| `(.*?)` \|", table, re.MULTILINE)
    assert len(formulas) == 6
    for text in formulas:
        assert str(pmf.Formula(text)) == text


@pytest.mark.parametrize("page", ["README.md", "docs/migration.md"])
def test_links_and_pictures_exist(page):
    text = (ROOT / page).read_text("utf-8")
    targets = re.findall(r"\]\(([^)#]+)\)", text)
    local = [target for target in targets if not target.startswith("https://")]
    assert local
    for target in local:
        assert (ROOT / page).parent.joinpath(target).exists(), target


def test_make_targets_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"`make (\w+)`", README))
    assert targets == {"demo", "docs", "test"}
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
