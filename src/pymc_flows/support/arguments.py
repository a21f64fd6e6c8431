"""Checks of arguments."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pymc as pm

from pymc_flows.errors import ArgumentError


def check_integer(name: str, value: object, *, minimum: int = 1) -> int:
    """Return the value as an int, or raise `ArgumentError`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < minimum:
        raise ArgumentError(f"{name} must be an integer of at least {minimum}, got {value!r}")
    return int(value)


def check_positive(name: str, value: Any) -> float:
    """Return the value as a float, or raise `ArgumentError`."""
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not is_number or not 0 < float(value) < math.inf:
        raise ArgumentError(f"{name} must be a positive number, got {value!r}")
    return float(value)


def as_count(value: object) -> int:
    """Return a number of steps that a file has, or raise `ValueError`."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**62:
        raise ValueError(f"{value!r} is not a number of steps")
    return value


def check_list(name: str, value: Any) -> list[Any]:
    """Return a list or tuple as a list, None as an empty one, or raise `ArgumentError`."""
    if value is None:
        return []
    if not isinstance(value, list | tuple):
        raise ArgumentError(f"{name} must be a list, got {value!r}\nWrite {name}=[...].")
    return list(value)


def renamed(
    fn_kwargs: Mapping[str, Any] | None,
    compile_kwargs: Mapping[str, Any] | None,
    *,
    stacklevel: int,
) -> dict[str, Any]:
    """Return ``compile_kwargs``, or what comes under their old name ``fn_kwargs``."""
    if fn_kwargs is None:
        return dict(compile_kwargs or {})
    warnings.warn(
        "fn_kwargs is deprecated, please use compile_kwargs instead",
        DeprecationWarning,
        stacklevel=stacklevel,
    )
    return dict(fn_kwargs)


def warn_unused(*, stacklevel: int, **given: object) -> None:
    """Warn of arguments that PyMC's inferences with test functions have."""
    for name, value in given.items():
        if value is not None:
            text = f"`{name}` is not used for NFVI and ignored"
            warnings.warn(text, UserWarning, stacklevel=stacklevel)


def model_or_context(model: pm.Model | None) -> pm.Model:
    """Return the model, or the one on the context stack.

    Raises
    ------
    TypeError
        As PyMC does, if there is neither.
    ArgumentError
        If it is not a model.
    """
    if model is not None and not isinstance(model, pm.Model):
        raise ArgumentError(
            f"model must be a pymc.Model, got {type(model).__name__}\n"
            "Pass model=…, or call this inside `with model:`."
        )
    if model is None and pm.Model.get_context(error_if_none=False) is None:
        raise TypeError(
            "No model on context stack.\nPass model=…, or call this inside `with model:`."
        )
    return pm.modelcontext(model)
