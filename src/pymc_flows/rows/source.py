"""The contract of a source of rows: columns, and blocks that are read one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pytensor

from pymc_flows.errors import ArgumentError

# Size of a block, where a source has no blocks of its own.
BLOCK_BYTES = 2**20

type Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Column:
    """One column of a source, of numbers or of arrays.

    Attributes
    ----------
    shape : tuple of int
        Shape of the value of one row: () for a number, (20,) for 20 numbers.
    dtype : str
        Type of the values as a model gets them.
    """

    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Bytes of one row."""
        return int(np.prod(self.shape, dtype=int)) * np.dtype(self.dtype).itemsize


class Source(Protocol):
    """Rows in blocks, each of which is read as a whole."""

    @property
    def columns(self) -> Mapping[str, Column]:
        """Columns by name."""

    @property
    def lengths(self) -> Sequence[int]:
        """Rows of each block."""

    @property
    def label(self) -> str:
        """Its name in texts."""

    def read(self, block: int, out: Arrays) -> None:
        """Put a block into arrays (rows of the block, *shape of the column) by name."""

    def where(self, block: int) -> str:
        """The place of a block, in words."""


def dtype_of(given: Any, what: str) -> str:
    """The dtype in which a model gets numbers of a dtype: real numbers in PyTensor's ``floatX``.

    Raises
    ------
    ArgumentError
        If it is not a type of real or integer numbers.
    """
    dtype = np.dtype(given)
    if dtype.kind == "f":
        return str(pytensor.config.floatX)
    if dtype.kind == "b":
        return "int8"
    if dtype.kind not in "iu" or dtype == np.uint64:
        raise no_number(given, what)
    return dtype.newbyteorder("=").name


def no_number(given: Any, what: str) -> ArgumentError:
    """The error for columns of another type."""
    return ArgumentError(
        f"{what} has type {given}, expected real numbers, integers or booleans\n"
        "Convert it first: text to integer codes, times to numbers."
    )


def check_block(arrays: Arrays, source: Source, block: int) -> None:
    """Refuse NaN, which would make the loss of every step NaN.

    Raises
    ------
    ArgumentError
        With the place of the first NaN.
    """
    for name, array in arrays.items():
        if array.dtype.kind == "f" and np.isnan(array.sum()) and np.isnan(array).any():
            at = int(np.argwhere(np.isnan(array))[0][0])
            raise ArgumentError(
                f"{name!r} has NaN in row {at} of {source.where(block)}\n"
                "Leave out rows with missing values, or fill them in, before the fit."
            )
