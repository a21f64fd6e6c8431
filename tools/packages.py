"""Draw which package imports which, and count files, lines, levels and circles.

    python tools/packages.py             print the counts
    python tools/packages.py --write     draw docs/packages.svg anew
    python tools/packages.py --root DIR  count another tree, such as an older one

The source is parsed, never imported, so imports inside functions and for types count, too.
"""

import argparse
import ast
import sys
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path

PROJECT = Path(__file__).parents[1]
ROOT = PROJECT / "src" / "pymc_flows"
PICTURE = PROJECT / "docs" / "packages.svg"

type Graph = dict[str, set[str]]

CELL, LEFT, TOP, FONT = 22, 150, 120, 13


# --------------------------------------------------------------------------------- the source


def module_names(root: Path) -> dict[str, Path]:
    """The dotted name of every file of a package."""
    named = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return named


def imported_names(path: Path, root: Path) -> Iterator[str]:
    """Full dotted names of everything that a file imports."""
    folder = path.relative_to(root.parent).parent.parts
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(folder[: len(folder) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            yield from (f"{module}.{alias.name}" for alias in node.names)


def imports_of_modules(root: Path) -> Graph:
    """Which modules of the package each of them imports; of names, the module that has them."""
    known = module_names(root)
    graph: Graph = {}
    for module, path in known.items():
        found = set()
        for imported in imported_names(path, root):
            name = imported
            while name and name not in known:
                name = name.rpartition(".")[0]
            found.add(name)
        graph[module] = found - {"", module}
    return graph


def imports_of_packages(modules: Graph, package: str) -> Graph:
    """The same for packages and the modules beside them, without the outermost `__init__`."""

    def owner(module: str) -> str:
        return module.removeprefix(package).strip(".").partition(".")[0]

    graph: Graph = {}
    for module, others in modules.items():
        if mine := owner(module):
            graph.setdefault(mine, set()).update(map(owner, others))
    return {name: others - {"", name} for name, others in graph.items()}


# ---------------------------------------------------------------------------------- the counts


def levels(graph: Mapping[str, set[str]]) -> dict[str, int]:
    """How many others lie below each: 1 for what imports nothing. A circle counts as one."""
    whole = {module: ring[0] for ring in circles(graph) for module in ring}
    below: Graph = {}
    for module, others in graph.items():
        below.setdefault(whole.get(module, module), set()).update(whole.get(o, o) for o in others)
    found: dict[str, int] = {}
    while ready := [m for m in below if m not in found and below[m] - {m} <= found.keys()]:
        found |= {m: 1 + max((found[b] for b in below[m] - {m}), default=0) for m in ready}
    return {module: found[whole.get(module, module)] for module in graph}


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Modules that import each other, directly or not (Tarjan's algorithm)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in graph[module]:
            if other not in index:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], index[other])
        if low[module] == index[module]:
            at = stack.index(module)
            if len(stack) - at > 1:
                found.append(sorted(stack[at:]))
            del stack[at:]

    for module in graph:
        if module not in index:
            visit(module)
    return found


def counts(root: Path) -> str:
    """Files, lines, levels and circles, as lines of text."""
    modules = imports_of_modules(root)
    paths = list(module_names(root).values())
    inner = {m: others - {root.name} for m, others in modules.items() if m != root.name}
    packages = imports_of_packages(modules, root.name)
    lines = [len(path.read_text("utf-8").splitlines()) for path in paths]
    in_folder = [len(list(folder.glob("*.py"))) for folder in {path.parent for path in paths}]
    rows = {
        "files": len(paths),
        "lines": sum(lines),
        "lines of the longest file": max(lines),
        "files in the root": len(list(root.glob("*.py"))),
        "most files in a folder": max(in_folder),
        "packages, and modules beside them": len(packages),
        "levels of packages": max(levels(packages).values()),
        "levels of modules": max(levels(inner).values()),
        "circles of packages": len(circles(packages)),
        "circles of modules": len(circles(inner)),
    }
    return "\n".join(f"{name:<34}{number:>7,}" for name, number in rows.items())


# --------------------------------------------------------------------------------- the picture


def picture(graph: Mapping[str, set[str]]) -> str:
    """A matrix of imports as SVG: in the row of each package, a dot for each that it imports.

    Packages that are imported come before those that import them, so all dots lie below the
    diagonal.
    """
    if found := circles(graph):
        raise ValueError(f"expected no circles of packages, got {found}")
    level = levels(graph)
    names = sorted(graph, key=lambda name: (level[name], name))
    side = CELL * len(names)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + side + 10} '
        f'{TOP + side + 10}" font-family="sans-serif" font-size="{FONT}">',
        "<title>Which package imports which</title>",
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for i, name in enumerate(names):
        y, x = TOP + CELL * i, LEFT + CELL * i
        shade = "#f2f5f9" if level[name] % 2 else "#e3e9f1"
        parts += [
            f'<rect x="0" y="{y}" width="{LEFT + side}" height="{CELL}" fill="{shade}"/>',
            f'<text x="{LEFT - 8}" y="{y + 15}" text-anchor="end">{escape(name)}</text>',
            f'<text transform="translate({x + 15} {TOP - 8}) rotate(-60)">{escape(name)}</text>',
            f'<rect x="{x}" y="{y}" width="{CELL}" height="{CELL}" fill="#9fb1c8"/>',
        ]
        parts += [
            f'<circle cx="{LEFT + CELL * j + CELL // 2}" cy="{y + CELL // 2}" r="5" '
            f'fill="#1f4e8c"><title>{escape(name)} imports {escape(other)}</title></circle>'
            for j, other in enumerate(names)
            if other in graph[name]
        ]
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    """Count, or draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=ROOT, metavar="DIR")
    parser.add_argument("--write", action="store_true", help=f"draw {PICTURE.name} anew")
    arguments = parser.parse_args()
    if arguments.write:
        packages = imports_of_packages(imports_of_modules(ROOT), ROOT.name)
        PICTURE.write_text(picture(packages), "utf-8")
    else:
        sys.stdout.write(counts(arguments.root.resolve()) + "\n")


if __name__ == "__main__":
    main()
