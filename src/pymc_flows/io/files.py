"""netCDF files that end in a digest of their content, written whole or not at all.

After the bytes of the netCDF file come `MARK`, the SHA-256 of these bytes in hexadecimal digits,
and a line feed. HDF5 ignores what follows the end of its data, so ``xarray.open_dataset`` reads
such a file. `read` compares the digest before HDF5 reads anything: it detects damage, not forgery.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from pymc_flows.errors import StorageError
from pymc_flows.formula import MAX_CHARACTERS
from pymc_flows.io.growing import Growing, read_growing

MARK = b"\npymc-flows sha256 "
_END = re.compile(re.escape(MARK) + rb"([0-9a-f]{64})\n")
_END_BYTES = len(MARK) + 65
FORMAT = 1
# Key of the record for an array that is in a second file.
BESIDE = "beside"


@dataclass(frozen=True)
class Content:
    """The content of a file.

    Attributes
    ----------
    formula : str
    arrays : dict of str to ndarray
        Real or integer arrays.
    record : dict
        Everything else, as JSON.
    """

    formula: str
    arrays: Mapping[str, np.ndarray]
    record: Mapping[str, Any]

    def array(self, name: str, shape: tuple[int | None, ...], dtype: Any = float) -> np.ndarray:
        """Return an array of this shape (None: any length) and dtype, or raise `StorageError`."""
        found = self.arrays.get(name)
        if found is None:
            raise StorageError(f"the file has no {name!r}")
        fits = len(shape) == found.ndim and all(
            n in (None, m) for n, m in zip(shape, found.shape, strict=True)
        )
        stored = _stored_dtype(np.dtype(dtype))
        if not fits or found.dtype != stored:
            raise StorageError(
                f"{name!r} in the file does not fit\n"
                f"expected {shape} {stored}, got {found.shape} {found.dtype}"
            )
        return found.astype(dtype)


def require_netcdf() -> None:
    """Raise if the libraries for netCDF files are missing."""
    try:
        import h5netcdf  # noqa: F401
        import h5py  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name not in ("h5netcdf", "h5py"):
            raise
        raise ModuleNotFoundError(
            f"files need {error.name}, which is not installed\ninstall h5netcdf and h5py",
            name=error.name,
        ) from None


def check_target(path: str | os.PathLike[str]) -> Path:
    """Return the real path of a file to be written, whose folder must exist.

    Raises
    ------
    ModuleNotFoundError
        If a library is missing.
    FileNotFoundError
        If there is no such folder.
    IsADirectoryError
        If the path is that of a folder.
    """
    require_netcdf()
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(
            f"the folder of {os.fspath(path)!r} does not exist: {os.fspath(target.parent)!r}\n"
            "Make it first, or give another path."
        )
    if target.is_dir():
        raise IsADirectoryError(
            f"{os.fspath(path)!r} is a folder\nGive the path of a file in it, such as "
            f"{os.path.join(path, 'fit.nc')!r}."
        )
    return target


def write(path: str | os.PathLike[str], content: Content, growing: Growing | None = None) -> None:
    """Write a file completely, or leave the old one as it is.

    The bytes go to a hidden file in the same folder, which replaces the old file once all of them
    are on the disk. A process that is killed meanwhile leaves the hidden file behind.

    Parameters
    ----------
    path : str or path-like
    content : Content
    growing : Growing, optional
        Keeps one of the arrays in a second file, if it is long.

    Raises
    ------
    ModuleNotFoundError, FileNotFoundError, IsADirectoryError
        As `check_target`.
    """
    target = check_target(path)
    said = growing and growing.extend(content.arrays[growing.name])
    if growing is not None and said is not None:
        arrays = {k: v for k, v in content.arrays.items() if k != growing.name}
        content = replace(content, arrays=arrays, record={**content.record, BESIDE: said})
    part = target.with_name(f".{target.name[:64]}.{secrets.token_hex(4)}.tmp")
    try:
        _dataset(content).to_netcdf(part, engine="h5netcdf")
        with part.open("r+b") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0, os.SEEK_END)
            file.write(MARK + digest.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    if os.name == "posix":  # other systems cannot open a folder
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _dataset(content: Content) -> xr.Dataset:
    variables: dict[str, xr.Variable] = {}
    for name, array in content.arrays.items():
        dims = [f"{name}_{axis}" for axis in range(array.ndim)]
        stored = array.astype(_stored_dtype(array.dtype))
        variables[name] = xr.Variable(dims, stored, encoding={"_FillValue": None})
    variables["record"] = xr.Variable((), json.dumps(content.record, indent=1))
    return xr.Dataset(variables, attrs={"pymc_flows_format": FORMAT, "formula": content.formula})


def _stored_dtype(dtype: np.dtype) -> np.dtype:
    return np.dtype("u1") if dtype.kind == "b" else dtype


def read(path: str | os.PathLike[str]) -> Content:
    """Read a file that `write` has written.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    StorageError
        If `write` has not written it, or it has changed since.
    """
    with Path(path).open("rb") as file:
        require_netcdf()
        size = max(0, file.seek(0, os.SEEK_END) - _END_BYTES)
        file.seek(size)
        end = _END.fullmatch(file.read(_END_BYTES))
        file.seek(0)
        data = file.read(size) if end else b""
    if end is None:
        raise StorageError(
            f"{os.fspath(path)!r} does not end in a digest: it was not written by pymc-flows, or "
            "is cut off or damaged"
        )
    if hashlib.sha256(data).hexdigest().encode() != end[1]:
        raise StorageError(
            f"{os.fspath(path)!r} is damaged: its content does not have the digest at its end"
        )
    try:
        content = _content(data)
        said = content.record.get(BESIDE)
        if said is None:
            return content
        return replace(
            content, arrays={**content.arrays, str(said["name"]): read_growing(path, said)}
        )
    except StorageError:
        raise
    # Anything that HDF5 and its readers raise: only for files that were forged, since the digest is
    # right.
    except Exception as error:
        raise StorageError(f"{os.fspath(path)!r} is malformed: {error}") from error


def _content(data: bytes) -> Content:
    dataset = xr.open_dataset(
        io.BytesIO(data), engine="h5netcdf", decode_cf=False, cache=False, chunks=None
    )
    with dataset:
        version = dataset.attrs["pymc_flows_format"]
        if version != FORMAT:
            raise StorageError(
                f"the file has format {version!r}, this version of pymc-flows reads {FORMAT}"
            )
        # `write` compresses nothing, so a larger variable is a trap.
        if dataset.nbytes > 4 * len(data):
            raise StorageError("the file declares more data than it holds")
        formula, text = dataset.attrs["formula"], dataset["record"].values.item()
        if not isinstance(formula, str) or len(formula) > MAX_CHARACTERS:
            raise StorageError("the formula in the file is not text, or is too long")
        record = json.loads(text)
        if not isinstance(record, dict):
            raise StorageError("the record in the file is no table")
        arrays = {str(k): np.array(v.values) for k, v in dataset.items() if k != "record"}
    for name, array in arrays.items():
        if array.dtype.kind not in "fiu":
            raise StorageError(f"{name!r} in the file is not numeric")
    return Content(formula, arrays, record)
