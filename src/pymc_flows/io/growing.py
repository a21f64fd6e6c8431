"""An array that grows during a fit, appended to a file of its own instead of written anew.

The file beside ``fit.nc`` is called ``fit.nc.hist-`` and eight hexadecimal digits. The main file
has the digits, the number of values and their SHA-256. Values are on the disk before the main file
that counts them, and values that it does not count are ignored, so a crash may cut off either file.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pymc_flows.errors import StorageError

# A shorter array stays in the main file, which costs less than a second file.
MOST_INSIDE = 100_000
_DTYPE = np.dtype("<f8")
_TOKEN = re.compile("[0-9a-f]{8}")
_DIGEST = re.compile("[0-9a-f]{64}")


class Growing:
    """Writes the new values of an array.

    Parameters
    ----------
    path : str or path-like
        The main file.
    name : str
        Name of the array.
    """

    def __init__(self, path: str | os.PathLike[str], name: str):
        self.name = name
        self._main = Path(os.path.realpath(path))
        self._token = secrets.token_hex(4)
        self._count, self._digest = 0, hashlib.sha256()

    def extend(self, values: np.ndarray) -> dict[str, Any] | None:
        """Append the new ones of the values (n,); return the record of them for the main file.

        None for few values, which go into the main file themselves.
        """
        if len(values) <= MOST_INSIDE:
            return None
        new = np.ascontiguousarray(values[self._count :], _DTYPE).tobytes()
        with _beside(self._main, self.name, self._token).open("ab") as file:
            file.write(new)
            file.flush()
            os.fsync(file.fileno())
        self._digest.update(new)
        self._count = len(values)
        digest = self._digest.hexdigest()
        return {"name": self.name, "file": self._token, "count": self._count, "sha256": digest}

    def remove(self) -> None:
        """Remove all such files beside the main file, once that has the array itself."""
        prefix = _beside(self._main, self.name, "").name
        for path in self._main.parent.iterdir():
            if path.name.startswith(prefix) and _TOKEN.fullmatch(path.name.removeprefix(prefix)):
                path.unlink(missing_ok=True)


def read_growing(path: str | os.PathLike[str], said: Mapping[str, Any]) -> np.ndarray:
    """Return the array that the record ``said`` of the main file at ``path`` describes.

    Raises
    ------
    StorageError
        If the second file is missing, damaged or too short, or the record is malformed.
    """
    name, token, count, digest = (said.get(k) for k in ("name", "file", "count", "sha256"))
    if (
        not isinstance(name, str)
        or not name.isidentifier()
        or not isinstance(token, str)
        or not _TOKEN.fullmatch(token)
        or not isinstance(digest, str)
        or not _DIGEST.fullmatch(digest)
        or isinstance(count, bool)
        or not isinstance(count, int)
        or count < 0
    ):
        raise StorageError("the file is malformed: its record of a second file makes no sense")
    beside = _beside(Path(os.path.realpath(path)), name, token)
    size = count * _DTYPE.itemsize
    try:
        with beside.open("rb") as file:
            if file.seek(0, os.SEEK_END) < size:
                raise StorageError(
                    f"{os.fspath(beside)!r} is cut off: it should have {count} values"
                )
            file.seek(0)
            data = file.read(size)
    except FileNotFoundError:
        raise StorageError(
            f"{os.fspath(path)!r} is of a fit that has not ended, and the file of its losses, "
            f"{os.fspath(beside)!r}, is missing\nCopy and rename both files together."
        ) from None
    if hashlib.sha256(data).hexdigest() != digest:
        raise StorageError(f"{os.fspath(beside)!r} is damaged: its content has another digest")
    return np.frombuffer(data, _DTYPE).astype(float)


def _beside(main: Path, name: str, token: str) -> Path:
    return main.with_name(f"{main.name}.{name}-{token}")
