"""The workflows use only what is pinned, and only what is there."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", MAKEFILE, re.MULTILINE))

pytestmark = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)


def jobs(path: Path) -> dict:
    return yaml.safe_load(path.read_text("utf-8"))["jobs"]


def test_actions_are_pinned_by_commit(path):
    uses = re.findall(r"uses: (.*)", path.read_text("utf-8"))
    loose = [x for x in uses if not re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", x)]
    assert uses
    assert loose == []
    pins = {tuple(x.split("@")) for x in uses}
    assert len(pins) == len({action for action, _ in pins})  # one version of each


def test_targets_and_locks_exist(path):
    text = path.read_text("utf-8")
    named = set(re.findall(r"(?:run: make|target:) ([a-z -]*[a-z])", text))
    assert named
    assert {word for words in named for word in words.split()} <= TARGETS
    for lock in re.findall(r"requirements/[\w*]+\.lock", text):
        assert list(ROOT.glob(lock)), lock


def test_rights_and_times_are_bounded(path):
    workflow = yaml.safe_load(path.read_text("utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 90
        [checkout] = [x for x in job["steps"] if "checkout" in x.get("uses", "")]
        assert checkout["with"]["persist-credentials"] is False


def test_every_python_is_tested(path):
    matrix = jobs(path).get("test", {}).get("strategy", {}).get("matrix")
    if path.stem == "ci":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
        assert matrix["python"] == re.findall(r":: (3\.\d+)", "\n".join(project["classifiers"]))
        assert len(matrix["backends"]) == 2
    else:
        assert matrix is None
