"""What pyproject.toml and the lock files say agrees with the code and with each other."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PROJECT = PYPROJECT["project"]
RUNTIME = PROJECT["dependencies"]
OPTIONAL = PROJECT["optional-dependencies"]
EXTRAS = list(chain.from_iterable(v for extra, v in OPTIONAL.items() if extra != "bench"))
# It names the other extras of this package, and what only the benchmarks need.
BENCH = EXTRAS + [text for text in OPTIONAL["bench"] if Requirement(text).name != PROJECT["name"]]
GROUPS = PYPROJECT["dependency-groups"]


def third_party_imports(folder: Path) -> set[str]:
    found = set()
    own = {"pymc_flows"}
    for path in folder.rglob("*.py"):
        own.add(path.stem)
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module.split(".")[0])
    return found - own - sys.stdlib_module_names


def locked(name: str) -> dict[str, str]:
    text = (ROOT / "requirements" / name).read_text("utf-8")
    pins = re.findall(r"^([a-z0-9][a-z0-9._-]*)==([^ ;\\]+)", text, re.MULTILINE)
    assert len(pins) == len(dict(pins)) > 0
    return dict(pins)


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for text in requirements}


@pytest.mark.parametrize(
    ("folder", "declared"),
    [("src", RUNTIME + EXTRAS), ("tests", RUNTIME + EXTRAS + GROUPS["dev"])],
)
def test_everything_imported_is_declared(folder, declared):
    distributions = packages_distributions()
    undeclared = {
        module
        for module in third_party_imports(ROOT / folder)
        if not names(declared) & set(map(canonicalize_name, distributions.get(module, ["?"])))
    }
    assert undeclared == set()


@pytest.mark.parametrize(
    ("lock", "wanted"),
    [
        ("dev.lock", RUNTIME + EXTRAS + GROUPS["build"] + GROUPS["dev"]),
        ("demo.lock", RUNTIME + EXTRAS + GROUPS["build"]),
        ("bench.lock", RUNTIME + BENCH + GROUPS["build"]),
    ],
)
def test_the_lock_satisfies_pyproject(lock, wanted):
    """Dependencies changed without `make lock` would be installed in their old versions."""
    pins = locked(lock)
    unmet = []
    for text in wanted:
        requirement = Requirement(text)
        version = pins.get(canonicalize_name(requirement.name))
        if version is None or version not in requirement.specifier:
            unmet.append((text, version))
    assert unmet == []


@pytest.mark.parametrize("lock", ["dev.lock", "bench.lock"])
def test_every_environment_has_the_versions_of_the_demo(lock):
    assert locked("demo.lock").items() <= locked(lock).items()


@pytest.mark.parametrize("lock", ["dev.lock", "demo.lock", "bench.lock"])
def test_the_lock_names_no_package_index(lock):
    text = (ROOT / "requirements" / lock).read_text("utf-8")
    assert re.findall(r"://|^--|-index|find-links", text, re.MULTILINE) == []


def test_python_bounds_agree():
    minor = int(re.fullmatch(r">=3\.(\d+)", PROJECT["requires-python"])[1])
    script = (ROOT / "tools" / "make_venv.sh").read_text("utf-8")
    assert f"first_minor={minor} " in script
    assert (ROOT / ".python-version").read_text("utf-8").strip() == f"3.{minor}"
