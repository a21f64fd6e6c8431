"""What pyproject.toml and the lock files say agrees with the code and with each other."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path

import pytest
import yaml
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from pymc_flows import __version__

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PROJECT = PYPROJECT["project"]
RUNTIME = PROJECT["dependencies"]
OPTIONAL = PROJECT["optional-dependencies"]
EXTRAS = list(chain.from_iterable(v for extra, v in OPTIONAL.items() if extra != "bench"))
# It names the other extras of this package, and what only the benchmarks need.
BENCH = [text for text in OPTIONAL["bench"] if Requirement(text).name != PROJECT["name"]]
GROUPS = PYPROJECT["dependency-groups"]


def group(name: str) -> list[str]:
    """The requirements of a dependency group, with those of the groups that it includes."""
    found = []
    for item in GROUPS[name]:
        found += [item] if isinstance(item, str) else group(item["include-group"])
    return found


ALONE = [text for extra in ("plots", "files") for text in OPTIONAL[extra]]
# What the demo, the documentation and the peers need: no data on disk, no cluster.
USUAL = ALONE + OPTIONAL["jax"]
LOCKS = {
    "dev.lock": RUNTIME + EXTRAS + group("build") + group("dev"),
    "demo.lock": RUNTIME + USUAL + group("build"),
    "bench.lock": RUNTIME + USUAL + BENCH + group("build"),
    "docs.lock": RUNTIME + USUAL + group("build") + group("docs"),
    "numba.lock": RUNTIME + ALONE + group("build") + group("test"),
    "lowest.lock": RUNTIME + EXTRAS + group("build") + group("test") + group("peers"),
    "dist.lock": group("dist"),
}


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
    lines = re.findall(r"^([a-z0-9][a-z0-9._-]*)==([^ ;\\]+)(?: ; ([^\\]+))?", text, re.MULTILINE)
    # Where versions differ between Pythons or systems, those of this Python on Linux.
    here = {"python_full_version": "3.12.0", "python_version": "3.12", "sys_platform": "linux"}
    pins = [(name, pin) for name, pin, on in lines if not on or Marker(on).evaluate(here)]
    assert len(pins) == len(dict(pins)) > 0
    return dict(pins)


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for text in requirements}


@pytest.mark.jax  # the extras must be installed to be known
@pytest.mark.parametrize(
    ("folder", "declared"),
    [("src", RUNTIME + EXTRAS), ("tests", RUNTIME + EXTRAS + group("dev"))],
)
def test_everything_imported_is_declared(folder, declared):
    distributions = packages_distributions()
    undeclared = {
        module
        for module in third_party_imports(ROOT / folder)
        if not names(declared) & set(map(canonicalize_name, distributions.get(module, ["?"])))
    }
    assert undeclared == set()


@pytest.mark.parametrize(("lock", "wanted"), LOCKS.items(), ids=LOCKS)
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


@pytest.mark.parametrize("lock", ["dev.lock", "bench.lock", "docs.lock"])
def test_every_environment_has_the_versions_of_the_demo(lock):
    assert locked("demo.lock").items() <= locked(lock).items()


@pytest.mark.parametrize("lock", LOCKS)
def test_the_lock_names_no_package_index(lock):
    text = (ROOT / "requirements" / lock).read_text("utf-8")
    assert re.findall(r"://|^--|-index|find-links", text, re.MULTILINE) == []


def test_every_lock_is_known():
    assert {path.name for path in (ROOT / "requirements").glob("*.lock")} == set(LOCKS)


def test_tests_run_at_the_lower_bounds():
    pins = locked("lowest.lock")
    higher = []
    for requirement in map(Requirement, RUNTIME + EXTRAS):
        [bound] = [x.version for x in requirement.specifier if x.operator == ">="]
        if Version(pins[requirement.name]) != Version(bound):
            higher.append((requirement.name, bound, pins[requirement.name]))
    assert higher == []


def test_without_jax_is_without_jax():
    assert {"jax", "jaxlib"}.isdisjoint(locked("numba.lock"))


def test_newest_versions_are_asked_for_with_the_same_bounds():
    command = [sys.executable, ROOT / "tools" / "newest.py"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")
    assert set(found) - {""} == set(LOCKS["lowest.lock"])
    found = subprocess.run([*command, "--pre"], capture_output=True, text=True, check=True).stdout
    [pymc] = [Requirement(line) for line in found.splitlines() if line.startswith("pymc>")]
    assert "7.0.0rc1" in pymc.specifier
    assert "6.3.0" not in pymc.specifier


def test_the_version_to_cite_is_that_of_the_package():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert (cited["title"].partition(":")[0], cited["version"]) == (PROJECT["name"], __version__)
    assert cited["license"] == PROJECT["license"]


@pytest.mark.parametrize("path", [*(ROOT / "src").rglob("*.py"), *(ROOT / "docs").rglob("*.md")])
def test_nobody_is_sent_to_an_index_for_this_package(path):
    """It is on none yet."""
    assert re.search(rf"install[^\n]*{PROJECT['name']}\b", path.read_text("utf-8")) is None


def test_python_bounds_agree():
    minor = int(re.fullmatch(r">=3\.(\d+)", PROJECT["requires-python"])[1])
    script = (ROOT / "tools" / "make_venv.sh").read_text("utf-8")
    assert f"first_minor={minor} " in script
    assert (ROOT / ".python-version").read_text("utf-8").strip() == f"3.{minor}"
    minors = re.findall(r":: 3\.(\d+)", "\n".join(PROJECT["classifiers"]))
    assert min(map(int, minors)) == minor
    assert f"last_minor={max(map(int, minors))} " in script
