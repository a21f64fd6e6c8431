"""Checks of shapes, counts and options of layers."""

from collections.abc import Sequence

import numpy as np
import pytensor.tensor as pt
from pytensor.tensor import TensorVariable

from pymc_flows.errors import ArgumentError, FlowShapeError


def with_shape(what: str, value: TensorVariable, shape: tuple[int | None, ...]) -> TensorVariable:
    """Raise unless a value can have the shape; unknown lengths are checked in the graph."""
    value = pt.as_tensor_variable(value)
    known = value.type.shape
    if len(known) != len(shape) or any(
        None not in (have, want) and have != want for have, want in zip(known, shape, strict=True)
    ):
        raise FlowShapeError(f"{what} must have shape {_text(shape)}, got {_text(known)}")
    return value if known == shape else pt.specify_shape(value, shape)


def _text(shape: tuple[int | None, ...]) -> str:
    inside = ", ".join("?" if length is None else str(length) for length in shape)
    return f"({inside},)" if len(shape) == 1 else f"({inside})"


def check_positive_int(what: str, value: int) -> None:
    """Raise unless the value is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise FlowShapeError(f"{what} must be an integer of at least 1, got {value!r}")


def check_int(word: str, option: str, value: int, low: int, high: int) -> None:
    """Raise unless the option is an integer from ``low`` to ``high``."""
    fits = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not fits or not low <= value <= high:
        limits = f"from {low} to {high:,}"
        raise ArgumentError(f"{option} of {word} must be an integer {limits}, got {value!r}")


def check_positive(word: str, option: str, value: float) -> None:
    """Raise unless the option is a positive finite number."""
    if not 0 < value < np.inf:
        raise ArgumentError(f"{option} of {word} must be positive and finite, got {value!r}")


def check_choice(word: str, option: str, value: str, choices: Sequence[str]) -> None:
    """Raise unless the option is one of the choices."""
    if value not in choices:
        expected = ", ".join(choices)
        raise ArgumentError(f"{option} of {word} must be one of {expected}, got {value!r}")
