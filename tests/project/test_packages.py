"""The packages are a stack: each imports only from those below it, and no two modules in a circle.

The rules read the source and import nothing, so they also see imports inside functions.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "pymc_flows"
ROOT = Path(__file__).parents[2] / "src" / PACKAGE
FILES = sorted(ROOT.rglob("*.py"))
TESTS = sorted(Path(__file__).parents[1].rglob("*.py"))
COMPAT = ROOT / "support" / "compat.py"

# Low to high. Packages, and the few modules beside them.
ORDER = (
    "errors",
    "support",
    "workers",
    "formula",
    "io",
    "rows",
    "backends",
    "flows",
    "callbacks",
    "targets",
    "importance",
    "model",
    "devices",
    "field",
    "training",
    "approximation",
    "start",
    "diagnostics",
    "fitting",
    "many",
    "mcmc",
    "plots",
    "integration",
    "__init__",
)
MOST_FILES_IN_ROOT, MOST_FILES_IN_FOLDER, MOST_LINES = 6, 12, 400

# What the low layers may import besides the standard library and this package.
THIRD_PARTY = {
    "errors": set(),
    "support": {"numpy", "pytensor", "pymc", "jax"},
    "workers": {"cloudpickle", "jax", "pytensor", "rich", "threadpoolctl"},
    "formula": set(),
    "rows": {"numpy", "pytensor", "pyarrow", "dask"},
    "flows": {"numpy", "pytensor", "scipy", "jax"},
    "targets": {"numpy", "pytensor", "pymc"},
}

# PyMC's variational base classes may change; this module is the one that would have to follow.
MEETS_PYMC_VARIATIONAL = "approximation/_pymc.py"
# Optimizers, callbacks and minibatches are plain functions and classes that anyone may use.
PLAIN_PYMC_VARIATIONAL = {"updates", "callbacks", "minibatch_rv"}
# Names of theirs that `support.compat` imports for this module alone.
VARIATIONAL_IN_COMPAT = {
    f"{PACKAGE}.support.compat.{name}" for name in ("KL", "ObjectiveFunction", "node_property")
}

# Optional dependencies, and slow to import: only inside the functions that need them.
LAZY = {
    "dask",
    "h5netcdf",
    "h5py",
    "jax",
    "jaxlib",
    "matplotlib",
    "pyarrow",
    "threadpoolctl",
    "zarr",
}


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
    """Uses of PyMC's variational base classes outside the module that may."""
    if path.relative_to(ROOT).as_posix() == MEETS_PYMC_VARIATIONAL or path == COMPAT:
        return []
    tree = ast.parse(source)
    used = []
    for line, name in imports(tree, path):
        first, second, third, *_ = [*name.split("."), "", ""]
        if (first, second) == ("pymc", "variational") and third not in PLAIN_PYMC_VARIATIONAL:
            used.append((line, name))
        if name in VARIATIONAL_IN_COMPAT:
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


def test_every_package_has_a_place_in_the_order():
    assert {layer_of(path) for path in FILES} == set(ORDER)


def module_of(path: Path) -> str:
    """The dotted name of a file of the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join([PACKAGE, *(parts[:-1] if parts[-1] == "__init__" else parts)])


def imported_modules(path: Path, known: set[str]) -> set[str]:
    """Modules of the package that a file imports: anywhere in it, also for types alone."""
    found = set()
    for _, name in imports(ast.parse(path.read_text("utf-8")), path):
        while name and name not in known:
            name = name.rpartition(".")[0]
        found.add(name)
    return found - {"", PACKAGE, module_of(path)}


def circle_in(graph: dict[str, set[str]]) -> list[str]:
    """Some of the modules that import each other in a circle; none if there is no circle."""
    left = dict(graph)
    while True:
        wanted = {name for module, others in left.items() for name in others - {module}}
        free = [m for m, others in left.items() if not others & set(left) or m not in wanted]
        if not free:
            return sorted(left)
        for module in free:
            del left[module]


def test_no_modules_import_each_other_in_a_circle():
    known = {module_of(path) for path in FILES}
    graph = {module_of(path): imported_modules(path, known) for path in FILES}
    assert circle_in(graph) == []


def test_a_circle_is_seen():
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}) == ["b", "c"]


def test_folders_and_files_stay_small():
    folders = {path.parent for path in (*FILES, *TESTS)}
    assert len(list(ROOT.glob("*.py"))) <= MOST_FILES_IN_ROOT
    assert {
        f.name: n for f in folders if (n := len(list(f.glob("*.py")))) > MOST_FILES_IN_FOLDER
    } == {}
    assert {
        f.name: n
        for f in (*FILES, *TESTS)
        if (n := len(f.read_text("utf-8").splitlines())) > MOST_LINES
    } == {}


def test_every_package_says_its_contract():
    for path in FILES:
        if path.name == "__init__.py":
            assert ast.get_docstring(ast.parse(path.read_text("utf-8"))), path


@pytest.mark.parametrize(
    ("rule", "file", "source"),
    [
        (upward_imports, "formula/parser.py", "from pymc_flows.flows import build_chain"),
        (upward_imports, "formula/parser.py", "import pymc_flows.fitting.nfvi"),
        (upward_imports, "formula/parser.py", "from pymc_flows import Formula"),
        (upward_imports, "formula/parser.py", "import pymc_flows as pmf"),
        (upward_imports, "formula/parser.py", "from .. import flows"),
        (upward_imports, "formula/parser.py", "from ..flows.base import Flow"),
        (upward_imports, "formula/parser.py", "def f():\n    from pymc_flows import flows"),
        (upward_imports, "flows/__init__.py", "from ..model.logp import ModelDensity"),
        (upward_imports, "flows/planar.py", "from pymc_flows.model.logp import Density"),
        (upward_imports, "flows/planar.py", "from .. import targets"),
        (foreign_imports, "formula/parser.py", "import numpy as np"),
        (foreign_imports, "flows/planar.py", "from pymc import Model"),
        (foreign_imports, "targets/base.py", "import scipy.stats"),
        (uses_of_pymc_variational, "model/logp.py", "from pymc.variational.opvi import Group"),
        (uses_of_pymc_variational, "model/logp.py", "from pymc.variational import opvi"),
        (uses_of_pymc_variational, "approximation/flow.py", "from pymc.variational import opvi"),
        (uses_of_pymc_variational, "model/logp.py", "import pymc.variational.inference"),
        (uses_of_pymc_variational, "model/logp.py", "import pymc.variational"),
        (uses_of_pymc_variational, "model/logp.py", "from ..support.compat import KL"),
        (uses_of_pymc_variational, "model/logp.py", "import pymc as pm\npm.variational.KLqp"),
        (eager_imports, "plots/axes.py", "import matplotlib.pyplot as plt"),
        (
            eager_imports,
            "training/loop.py",
            "try:\n    import jax\nexcept ImportError:\n    jax = None",
        ),
        (eager_imports, "training/loop.py", "class A:\n    from jax import numpy"),
        (eager_imports, "training/loop.py", "from pytensor.link.jax.dispatch import jax_funcify"),
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
        (
            upward_imports,
            "fitting/nfvi.py",
            "import numpy\nfrom pymc_flows.flows.base import Chain",
        ),
        (upward_imports, "__init__.py", "from pymc_flows.plots import trace\nfrom . import flows"),
        (foreign_imports, "formula/parser.py", "import re\nfrom dataclasses import dataclass"),
        (foreign_imports, "model/logp.py", "import pymc as pm"),
        (uses_of_pymc_variational, "model/logp.py", "from pymc.variational.updates import adam"),
        (uses_of_pymc_variational, "model/logp.py", "from pymc.variational import callbacks"),
        (
            uses_of_pymc_variational,
            "approximation/_pymc.py",
            "from pymc.variational.opvi import Group",
        ),
        (eager_imports, "plots/axes.py", "def draw():\n    import matplotlib.pyplot as plt"),
        (eager_imports, "plots/axes.py", "if TYPE_CHECKING:\n    from matplotlib.axes import Axes"),
    ],
)
def test_a_rule_leaves_the_rest_alone(rule, file, source):
    assert rule(source, ROOT / file) == []
