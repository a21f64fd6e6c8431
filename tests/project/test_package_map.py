"""The picture of the packages is that of the source, and the counts behind it are right."""

import importlib.util
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]

SPEC = importlib.util.spec_from_file_location("packages", PROJECT / "tools" / "packages.py")
packages = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(packages)


def test_the_picture_is_current():
    graph = packages.imports_of_packages(packages.imports_of_modules(packages.ROOT), "pymc_flows")
    current = packages.PICTURE.read_text("utf-8") == packages.picture(graph)
    assert current, "an import has changed: run python tools/packages.py --write"


@pytest.fixture
def house(tmp_path):
    """A package of four: `top` stands on `left` and `right`, which stand on `base`."""
    root = tmp_path / "house"
    sources = {
        "__init__.py": "from house.top import run\n",
        "base/__init__.py": "from house.base.inner import number\n",
        "base/inner.py": "number = 1\n",
        "left.py": "from .base import number\n",
        "right.py": "def lazy():\n    import house.base.inner\n",
        "top.py": "from house import left\nfrom house.right import lazy\n",
    }
    for name, source in sources.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, "utf-8")
    return root


def test_imports_are_those_of_the_source(house):
    modules = packages.imports_of_modules(house)
    assert modules["house.right"] == {"house.base.inner"}
    assert modules["house.top"] == {"house.left", "house.right"}
    assert packages.imports_of_packages(modules, "house") == {
        "base": set(),
        "left": {"base"},
        "right": {"base"},
        "top": {"left", "right"},
    }


def test_levels_and_circles_are_counted(house):
    text = packages.counts(house)
    found = dict(line.rsplit(maxsplit=1) for line in text.splitlines())
    # inner, base, left, top
    assert (found["levels of packages"], found["levels of modules"]) == ("3", "4")
    assert (found["files"], found["lines"], found["circles of modules"]) == ("6", "8", "0")
    (house / "base" / "inner.py").write_text("from house.left import number\n", "utf-8")
    assert "circles of modules                      1" in packages.counts(house)


def test_a_circle_counts_as_one_level():
    ring = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}
    assert packages.circles(ring) == [["b", "c"]]
    assert packages.levels(ring) == {"a": 3, "b": 2, "c": 2, "d": 1}


def test_a_picture_needs_an_order():
    with pytest.raises(ValueError, match="no circles of packages"):
        packages.picture({"a": {"b"}, "b": {"a"}})


def test_the_picture_has_a_dot_for_each_import():
    graph = {"low": set(), "middle": {"low"}, "top": {"low", "middle"}}
    drawn = packages.picture(graph)
    assert drawn.count("<circle") == 3
    assert "<title>top imports middle</title>" in drawn
