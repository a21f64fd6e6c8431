"""Names of PyMC, PyTensor and JAX that may change are imported in `support/compat.py` alone."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import pymc_flows

ROOT = Path(pymc_flows.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
COMPAT = ROOT / "support" / "compat.py"

LIBRARIES = {
    "arviz",
    "arviz_base",
    "arviz_plots",
    "arviz_stats",
    "jax",
    "jaxlib",
    "pymc",
    "pytensor",
}
# Modules that the libraries' references document. Everything public in them is public.
PUBLIC = {
    "arviz",
    "arviz_stats.base.array",
    "jax",
    "jax.lax",
    "jax.numpy",
    "jax.random",
    "jax.sharding",
    "jax.tree",
    "pymc",
    "pymc.distributions.transforms",
    "pymc.logprob",
    "pymc.step_methods",
    "pymc.variational",
    "pymc.variational.callbacks",
    "pymc.variational.updates",
    "pytensor",
    "pytensor.compile.builders",
    "pytensor.compile.mode",
    "pytensor.compile.sharedvalue",
    "pytensor.gradient",
    "pytensor.graph.basic",
    "pytensor.graph.fg",
    "pytensor.graph.op",
    "pytensor.graph.replace",
    "pytensor.graph.rewriting.basic",
    "pytensor.graph.rewriting.db",
    "pytensor.graph.traversal",
    "pytensor.raise_op",
    "pytensor.scalar",
    "pytensor.sparse",
    "pytensor.sparse.math",
    "pytensor.tensor",
    "pytensor.tensor.linalg",
    "pytensor.tensor.random",
    "pytensor.tensor.variable",
}
# Attributes of compiled functions, modes and Ops that no reference documents.
PRIVATE_ATTRIBUTES = {
    "input_storage",
    "jit_fn",
    "maker",
    "output_storage",
    "provided_linker",
    "provided_optimizer",
    "vm",
}


# On the way to a public module.
PACKAGES = {name.rpartition(".")[0] for name in PUBLIC} - {""}


def is_public(name: str) -> bool:
    """Whether a dotted name, in full, may be used anywhere: it, or what it is in, is documented."""
    module, _, last = name.rpartition(".")
    if name in PUBLIC | PACKAGES:
        return True
    is_module = isinstance(getattr(sys.modules.get(module), last, None), ModuleType)
    return module in PUBLIC and not last.startswith("_") and not is_module


def bound_modules(tree: ast.AST) -> dict[str, str]:
    """Local names of the libraries' modules: {'pt': 'pytensor.tensor'}."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                whole = alias.name if alias.asname else alias.name.split(".")[0]
                found[alias.asname or whole] = whole
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                found[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return {name: whole for name, whole in found.items() if whole in PUBLIC}


def names_used(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Lines and full names of the libraries' modules and what is in them, imported or dotted."""
    modules = bound_modules(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Attribute):
            first, *rest = ast.unparse(node).split(".")
            # Beyond the first class or function, attributes belong to that.
            whole = modules.get(first, "")
            for part in rest if whole in PUBLIC | PACKAGES else ():
                whole = f"{whole}.{part}"
                yield node.lineno, whole
                if whole not in PUBLIC | PACKAGES:
                    break


def private_names(source: str) -> list[tuple[int, str]]:
    """Lines and names of whatever belongs into `compat`."""
    tree = ast.parse(source)
    found = {
        (line, name)
        for line, name in names_used(tree)
        if name.split(".")[0] in LIBRARIES and not is_public(name)
    }
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in PRIVATE_ATTRIBUTES - own:
            found.add((node.lineno, f".{node.attr}"))
        if isinstance(node, ast.Constant) and re.fullmatch(r"local_\w+", str(node.value)):
            found.add((node.lineno, str(node.value)))
    return sorted(found)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_compat_has_private_names(path):
    if path != COMPAT:
        assert private_names(path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("from pymc.util import _get_seeds_per_chain", "pymc.util._get_seeds_per_chain"),
        ("from pymc.util import RandomState", "pymc.util.RandomState"),
        ("from pytensor.graph.replace import _vectorize_node", "pytensor.graph.replace._vec"),
        ("import pymc.pytensorf", "pymc.pytensorf"),
        ("import pymc.util as u", "pymc.util"),
        ("from pymc import util", "pymc.util"),
        ("import pymc as pm\npm.util.get_var_name", "pymc.util"),
        ("import pytensor\npytensor.link.c.CLinker", "pytensor.link"),
        ("import pytensor.tensor as pt\npt._x", "pytensor.tensor._x"),
        ("def f(fn):\n    return fn.vm", ".vm"),
        ("x = 'local_second_to_alloc'", "local_second_to_alloc"),
        ("def f():\n    from pytensor.scan.op import Scan", "pytensor.scan.op.Scan"),
    ],
)
def test_a_private_name_is_seen(source, name):
    [(_, found)] = private_names(source)
    assert found.startswith(name)


@pytest.mark.parametrize(
    "source",
    [
        "import pymc as pm\npm.Normal.dist(0, 1)",
        "import pytensor\npytensor.graph.basic.Apply",
        "import pytensor\npytensor.config.floatX",
        "from pytensor import scalar as ps\nps.Sigmoid",
        "from pymc.variational import updates\nupdates.adam",
        "from pymc_flows.support.compat import Scan",
        "import numpy as np\nnp.random._generator",
    ],
)
def test_a_public_name_is_not(source):
    assert private_names(source) == []


def test_every_name_says_what_to_do_without_it():
    tree = ast.parse(COMPAT.read_text("utf-8"))
    lines = COMPAT.read_text("utf-8").splitlines()
    imports = [
        node
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in LIBRARIES
    ]
    assert len(imports) > 20
    commented = [node for node in imports if lines[node.lineno - 2].startswith("# ")]
    assert commented[0] is imports[0]
    for node in commented:
        comment, line = "", node.lineno - 2
        while lines[line].startswith("#"):
            comment, line = f"{lines[line]} {comment}", line - 1
        assert "Instead: " in comment or "as above" in comment, node.module
