"""Checks of shapes and counts."""

import numpy as np
import pytensor.tensor as pt
from pytensor.tensor import TensorVariable

from pymc_flows.errors import FlowShapeError

__all__ = ["check_positive_int", "with_shape"]


def with_shape(what: str, value: TensorVariable, shape: tuple[int | None, ...]) -> TensorVariable:
    """Refuse a value that cannot have the shape; make the graph check what is not known yet."""
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
    """Refuse what is no integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise FlowShapeError(f"{what} must be an integer of at least 1, got {value!r}")
