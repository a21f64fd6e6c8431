"""The flows that a formula can name.

`FLOWS` is the only list of them: messages, tables and documentation derive theirs from it.
"""

import dataclasses
import math
import re
from typing import Any

from pymc_flows.errors import RegistrationError

type OptionType = type[bool] | type[float] | type[int] | type[str]

FLOWS: dict[str, type[Any]] = {}
"""Registered layer classes by their word in a formula."""

WORD = re.compile(r"(?!(?:true|false)\Z)[a-z][a-z0-9_]*")
"""Pattern of names of flows and options, and of values of options of type str."""

# Members of a layer class that the package uses; `pymc_flows.flows.Flow` documents them.
_CONTRACT = (
    "constrain",
    "equation",
    "forward_and_log_det",
    "forward_and_score",
    "has_inverse",
    "inverse_and_log_det",
    "is_affine",
    "is_elementwise",
    "is_volume_preserving",
    "note",
    "param_shapes",
    "period",
    "reference_params",
)
_OPTION_TYPES: dict[str, OptionType] = {"bool": bool, "float": float, "int": int, "str": str}


def register_flow[T: type[Any]](cls: T) -> T:
    """Make a layer class available to formulas under its ``word``.

    Parameters
    ----------
    cls : type
        A frozen dataclass with the contract of `pymc_flows.flows.Flow`. Its fields are the options
        that a formula can set, as in ``word(hidden=32)``: each has a lower-case name, one of the
        annotations int, float, bool and str, and a default.

    Returns
    -------
    type
        ``cls``, so that the function works as a decorator.

    Raises
    ------
    RegistrationError
        If the class does not fulfil the contract, or its word belongs to another class. A class
        with the module and qualified name of the registered one replaces it, so that a notebook
        cell can be run again.
    """
    if not isinstance(cls, type):
        raise RegistrationError(f"register_flow expects a class, got {cls!r}")
    name = _qualified_name(cls)
    word = getattr(cls, "word", None)
    if not isinstance(word, str) or not WORD.fullmatch(word):
        raise RegistrationError(
            f"the word of {name} must be a lower-case name such as 'planar', got {word!r}"
        )
    missing = [member for member in _CONTRACT if getattr(cls, member, None) is None]
    if missing:
        raise RegistrationError(f"{name} lacks {', '.join(missing)} of the contract of a flow")
    if not _is_frozen_dataclass(cls):
        raise RegistrationError(f"{name} must be a dataclass with frozen=True and eq=True")
    for field in dataclasses.fields(cls):
        _check_option(name, field)
    try:
        cls()
    except Exception as error:
        raise RegistrationError(f"{name}() fails with its default options: {error}") from error
    owner = _qualified_name(FLOWS.get(word, cls))
    if owner != name:
        raise RegistrationError(f"the word {word!r} of {name} belongs to {owner}")
    FLOWS[word] = cls
    return cls


def option_types(cls: type[Any]) -> dict[str, OptionType]:
    """Type of each option of a registered layer class, in the order of its fields."""
    return {field.name: _OPTION_TYPES[_annotation(field)] for field in dataclasses.fields(cls)}


def _qualified_name(cls: type[Any]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _is_frozen_dataclass(cls: type[Any]) -> bool:
    # Looked up on the class itself, since an undecorated subclass would lose its own fields.
    params = vars(cls).get("__dataclass_params__")
    return params is not None and params.frozen and params.eq


def _annotation(field: dataclasses.Field[Any]) -> str:
    # Under `from __future__ import annotations` the type of a field is its source text.
    return field.type if isinstance(field.type, str) else getattr(field.type, "__name__", "")


def _check_option(owner: str, field: dataclasses.Field[Any]) -> None:
    """Raise if a formula could not set a field or write its default."""
    option = f"option {field.name!r} of {owner}"
    if not WORD.fullmatch(field.name):
        raise RegistrationError(f"{option} must have a lower-case name")
    if not field.init:
        raise RegistrationError(f"{option} must be a parameter of the constructor (init=True)")
    kind = _OPTION_TYPES.get(_annotation(field))
    if kind is None:
        raise RegistrationError(
            f"{option} must be annotated with one of {', '.join(_OPTION_TYPES)}, got {field.type!r}"
        )
    if field.default is dataclasses.MISSING:
        raise RegistrationError(f"{option} must have a default")
    fits = type(field.default) is kind or (kind is float and type(field.default) is int)
    if kind is float:
        fits = fits and math.isfinite(field.default)
    if kind is str:
        fits = fits and WORD.fullmatch(field.default) is not None
    if not fits:
        expected = {float: "a finite float", str: "a lower-case word"}.get(kind, kind.__name__)
        got = repr(field.default)
        raise RegistrationError(f"the default of {option} must be {expected}, got {got}")
