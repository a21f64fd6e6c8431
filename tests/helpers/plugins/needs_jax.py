"""A pytest plugin: mark the tests that need JAX, so that ``-m "not jax"`` leaves them out.

A test needs JAX if its parameters, its code, its fixtures or the helpers of tests that these use
name it, or a library that runs on it. One that is left out by mistake runs where JAX is installed;
one that is not left out by mistake fails where it is missing.
"""

import re
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType, ModuleType

import pytest

ROOT = f"{Path(__file__).parents[2]}/"
LIBRARIES = {"jax", "flowjax", "numpyro", "optax"}  # what runs on JAX
WORD = re.compile(rf"\b(?:{'|'.join(LIBRARIES)})\b", re.IGNORECASE)
PROGRAM = re.compile(r"""import jax\b|["']jax["']""")  # in the text of a child process


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "jax: needs JAX (`needs_jax` of tests/helpers sets it)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and needs_jax(item):
            item.add_marker("jax")


def needs_jax(item: pytest.Function) -> bool:
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    if any((isinstance(x, str) and WORD.search(x)) or _is_jax(x) for x in parameters):
        return True
    fixtures = item._fixtureinfo.name2fixturedefs.values()
    return any(map(_names_jax, [item.function, *(each.func for fix in fixtures for each in fix)]))


@cache
def _names_jax(function: Callable) -> bool:
    """Whether a test or fixture uses JAX: asked once, however many cases a test has."""
    return uses_jax(function, set())


def _is_jax(value: object) -> bool:
    """Whether a value is JAX or its name, or holds it."""
    if isinstance(value, str):
        return value.lower() in LIBRARIES or PROGRAM.search(value) is not None
    if isinstance(value, ModuleType):
        return value.__name__.partition(".")[0] in LIBRARIES
    if isinstance(value, dict):
        return any(map(_is_jax, value.values()))
    return isinstance(value, (tuple, list, set, frozenset)) and any(map(_is_jax, value))


def uses_jax(value: object, seen: set[int]) -> bool:
    """Whether a function or class of the tests names JAX, or uses one that does."""
    if _is_jax(value):
        return True
    if id(value) in seen:
        return False
    seen.add(id(value))
    if isinstance(value, type) and _is_of_tests(sys.modules.get(value.__module__)):
        return any(uses_jax(member, seen) for member in vars(value).values())
    function = getattr(value, "__wrapped__", value)
    if not isinstance(function, FunctionType) or not _is_of_tests(function):
        return False
    defaults = (function.__defaults__ or (), function.__kwdefaults__ or {})
    codes = list(_nested(function.__code__))
    constants = [x for code in codes for x in code.co_consts if x != function.__doc__]
    names = {name for code in codes for name in code.co_names}
    if LIBRARIES & names or any(map(_is_jax, (*defaults, constants))):
        return True
    used = [function.__globals__[name] for name in names & function.__globals__.keys()]
    for module in [x for x in used if isinstance(x, ModuleType) and _is_of_tests(x)]:
        used += [vars(module)[name] for name in names & vars(module).keys()]
    return any(uses_jax(x, seen) for x in used)


def _is_of_tests(value: ModuleType | FunctionType | None) -> bool:
    """Whether a module is a file of the tests, or a function is defined in one."""
    if isinstance(value, FunctionType):
        file = value.__code__.co_filename
    else:
        file = getattr(value, "__file__", None) or "/"
    return file.startswith(ROOT)


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)
