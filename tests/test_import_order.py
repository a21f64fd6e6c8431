"""The package is a stack of modules: each imports only from those below it.

The rules read the source and import nothing, so they also see imports inside functions.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "pymc_flows"
ROOT = Path(__file__).parents[1] / "src" / PACKAGE
FILES = sorted(ROOT.rglob("*.py"))

# Low to high. A subpackage is one layer: its own modules may import each other.
ORDER = (
    "errors",
    "_interrupts",
    "_tables",
    "registry",
    "formula",
    "flows",
    "frame",
    "targets",
    "_files",
    "_rewrites",
    "modes",
    "evaluate",
    "_graphs",
    "_products",
    "_simplify",
    "layout",
    "_replacements",
    "density",
    "_jax",
    "_trial",
    "examine",
    "_probe",
    "log_density",
    "importance",
    "search",
    "moments",
    "backend",
    "_packing",
    "objective",
    "optimizers",
    "annealing",
    "_materialize",
    "_rngs",
    "_noise",
    "training",
    "draws",
    "points",
    "approximation",
    "diagnostics",
    "_reliability",
    "_coverage",
    "report",
    "callbacks",
    "_progress",
    "_arguments",
    "stopping",
    "_concerns",
    "_session",
    "_checkpoint",
    "operators",
    "_step",
    "_prepare",
    "inference",
    "_rungs",
    "ladder",
    "storage",
    "fitting",
    "_held_out",
    "maximum_likelihood",
    "integration",
    "_independence",
    "mcmc",
    "plots",
    "__init__",
)

# What the low layers may import besides the standard library and this package.
THIRD_PARTY = {
    "errors": set(),
    "_tables": set(),
    "registry": set(),
    "formula": set(),
    "flows": {"numpy", "pytensor", "jax"},
    "targets": {"numpy", "pytensor", "pymc"},
}

# PyMC's variational base classes may change; these modules are the ones that would have to follow.
MEET_PYMC_VARIATIONAL = {"approximation", "operators", "inference", "integration"}
# Optimizers and callbacks are plain functions and classes that anyone may use.
PLAIN_PYMC_VARIATIONAL = {"updates", "callbacks"}

# Optional dependencies, and slow to import: only inside the functions that need them.
LAZY = {"h5netcdf", "h5py", "jax", "jaxlib", "matplotlib"}


def layer_of(path: Path) -> str:
    """The name in ORDER of a file of the package: flows/base.py belongs to 'flows'."""
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imports(tree: ast.AST, path: Path) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of everything imported under a node.

    `import a.b` gives a.b and `from a import b` gives a.b too, whether b is a module or not;
    relative imports are resolved.
    """
    folder = (PACKAGE, *path.relative_to(ROOT).parent.parts)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(folder[: len(folder) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            for alias in node.names:
                yield node.lineno, f"{module}.{alias.name}"


def imported_layer(name: str) -> str | None:
    """The layer that a dotted name belongs to; None outside the package."""
    package, *rest = name.split(".")
    if package != PACKAGE:
        return None
    # A name that is no layer is one that the package's __init__ defines or re-exports.
    return rest[0] if rest and rest[0] in ORDER else "__init__"


def upward_imports(source: str, path: Path) -> list[str]:
    layer = layer_of(path)
    if layer not in ORDER:
        return []
    return [
        f"{path.relative_to(ROOT)}:{line}: {layer} imports {name}"
        for line, name in imports(ast.parse(source), path)
        if (other := imported_layer(name)) not in {None, layer}
        and ORDER.index(other) > ORDER.index(layer)
    ]


def foreign_imports(source: str, path: Path) -> list[str]:
    """Third-party packages that a low layer must do without."""
    layer = layer_of(path)
    if layer not in THIRD_PARTY:
        return []
    allowed = THIRD_PARTY[layer] | {PACKAGE} | sys.stdlib_module_names
    return [
        f"{path.relative_to(ROOT)}:{line}: {layer} imports {name}"
        for line, name in imports(ast.parse(source), path)
        if name.split(".")[0] not in allowed
    ]


def uses_of_pymc_variational(source: str, path: Path) -> list[str]:
    """Uses of PyMC's variational base classes outside the modules that may."""
    if layer_of(path) in MEET_PYMC_VARIATIONAL:
        return []
    tree = ast.parse(source)
    used = []
    for line, name in imports(tree, path):
        first, second, third, *_ = [*name.split("."), "", ""]
        if (first, second) == ("pymc", "variational") and third not in PLAIN_PYMC_VARIATIONAL:
            used.append((line, name))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr == "variational":
            used.append((node.lineno, ast.unparse(node)))
    return [f"{path.relative_to(ROOT)}:{line}: {name}" for line, name in used]


def statements_run_at_import(tree: ast.Module) -> Iterator[ast.stmt]:
    """The import statements that run when the module is imported."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            waiting.extend(node.orelse)
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        waiting.extend(ast.iter_child_nodes(node))


def eager_imports(source: str, path: Path) -> list[str]:
    """Imports at module level of what must be imported inside functions."""
    return [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for statement in statements_run_at_import(ast.parse(source))
        for line, name in imports(statement, path)
        if name.split(".")[0] in LAZY or name.startswith("pytensor.link.jax")
    ]


RULES = (upward_imports, foreign_imports, uses_of_pymc_variational, eager_imports)


@pytest.mark.parametrize("rule", RULES)
def test_the_package_keeps_the_rule(rule):
    assert FILES
    assert [line for path in FILES for line in rule(path.read_text("utf-8"), path)] == []


def test_every_module_has_a_place_in_the_order():
    assert {layer_of(path) for path in FILES} <= set(ORDER)


@pytest.mark.parametrize(
    ("rule", "file", "source"),
    [
        (upward_imports, "formula.py", "from pymc_flows.flows import build_chain"),
        (upward_imports, "formula.py", "import pymc_flows.inference"),
        (upward_imports, "formula.py", "from pymc_flows import Formula"),
        (upward_imports, "formula.py", "import pymc_flows as pmf"),
        (upward_imports, "formula.py", "from . import flows"),
        (upward_imports, "formula.py", "from .flows.base import Flow"),
        (upward_imports, "formula.py", "def f():\n    from pymc_flows import flows"),
        (upward_imports, "flows/__init__.py", "from ..density import Density"),
        (upward_imports, "flows/planar.py", "from pymc_flows.density import Density"),
        (upward_imports, "flows/planar.py", "from .. import targets"),
        (foreign_imports, "formula.py", "import numpy as np"),
        (foreign_imports, "flows/planar.py", "from pymc import Model"),
        (foreign_imports, "targets.py", "import scipy.stats"),
        (uses_of_pymc_variational, "density.py", "from pymc.variational.opvi import Group"),
        (uses_of_pymc_variational, "density.py", "from pymc.variational import opvi"),
        (uses_of_pymc_variational, "density.py", "import pymc.variational.inference"),
        (uses_of_pymc_variational, "density.py", "import pymc.variational"),
        (uses_of_pymc_variational, "density.py", "import pymc as pm\npm.variational.KLqp"),
        (eager_imports, "plots.py", "import matplotlib.pyplot as plt"),
        (eager_imports, "training.py", "try:\n    import jax\nexcept ImportError:\n    jax = None"),
        (eager_imports, "training.py", "class A:\n    from jax import numpy"),
        (eager_imports, "training.py", "from pytensor.link.jax.dispatch import jax_funcify"),
    ],
)
def test_a_rule_sees_what_breaks_it(rule, file, source):
    assert len(rule(source, ROOT / file)) == 1


@pytest.mark.parametrize(
    ("rule", "file", "source"),
    [
        (upward_imports, "flows/planar.py", "from .base import Flow"),
        (upward_imports, "flows/planar.py", "from ..errors import FlowError"),
        (upward_imports, "flows/planar.py", "from pymc_flows import errors"),
        (upward_imports, "inference.py", "import numpy\nfrom pymc_flows.flows.base import Chain"),
        (upward_imports, "__init__.py", "from pymc_flows.plots import trace\nfrom . import flows"),
        (foreign_imports, "formula.py", "import re\nfrom dataclasses import dataclass"),
        (foreign_imports, "density.py", "import pymc as pm"),
        (uses_of_pymc_variational, "density.py", "from pymc.variational.updates import adam"),
        (uses_of_pymc_variational, "density.py", "from pymc.variational import callbacks"),
        (uses_of_pymc_variational, "approximation.py", "from pymc.variational.opvi import Group"),
        (eager_imports, "plots.py", "def draw():\n    import matplotlib.pyplot as plt"),
        (eager_imports, "plots.py", "if TYPE_CHECKING:\n    from matplotlib.axes import Axes"),
    ],
)
def test_a_rule_leaves_the_rest_alone(rule, file, source):
    assert rule(source, ROOT / file) == []
