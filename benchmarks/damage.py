"""What becomes of files that were damaged: a clear error or a correct load, and never a crash.

One file of an approximation and one of a fit are damaged at random, over and over: bits are
flipped, ends cut, pieces lost, doubled or overwritten, bytes added; and other netCDF files, some of
them with arrays of ours, take their place. Every copy is loaded, or resumed, in this process.
"""

from __future__ import annotations

import collections
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pymc as pm
import xarray as xr

import pymc_flows as pmf
from benchmarks._common import Check, Parser, Report, Row
from pymc_flows.errors import StorageError
from pymc_flows.io.files import read

KINDS = (
    "a bit flipped",
    "the end cut off",
    "a piece lost",
    "a piece doubled",
    "a piece overwritten",
    "bytes added",
)
OTHER = "another netCDF file"
REFUSED, LOADED, WRONG, CRASH = "clear error", "correct load", "wrong load", "another error"


def mutations(data: bytes, rng: np.random.Generator, n: int) -> Iterator[tuple[str, bytes]]:
    """Make damaged copies, and say what was done to each."""
    for k in range(n):
        damaged = bytearray(data)
        i, j = sorted(int(x) for x in rng.integers(0, len(data), 2))
        match k % len(KINDS):
            case 0:
                damaged[i] ^= 1 << int(rng.integers(8))
            case 1:
                del damaged[i:]
            case 2:
                del damaged[i : j + 1]
            case 3:
                damaged[i:i] = damaged[i : j + 1]
            case 4:
                new = rng.bytes(j + 1 - i)
                damaged[i : j + 1] = new if new != data[i : j + 1] else b""
            case 5:
                damaged += rng.bytes(1 + k % 300)
        yield KINDS[k % len(KINDS)], bytes(damaged)


def model() -> pm.Model:
    """Three variables, one of them transformed."""
    with pm.Model() as built:
        pm.Normal("a")
        pm.HalfNormal("b")
        pm.Normal("c", shape=2)
    return built


def write_originals(folder: Path, backend: str) -> dict[str, Path]:
    """Write a file of an approximation, and one of a fit."""
    inference = pmf.NFVI("scale-planar*2-loc", model=model(), random_seed=1)
    paths = {"approximation": folder / "approximation.nc", "fit": folder / "fit.nc"}
    given = {"obj_n_mc": 4, "backend": backend, "progressbar": False}
    inference.fit(20, checkpoint=paths["fit"], every=10, **given)
    inference.approx.save(paths["approximation"])
    return paths


def others(path: Path, original: Path, rng: np.random.Generator, n: int) -> Iterator[None]:
    """Write other netCDF files to the path, every second with arrays that files of ours have."""
    ours = {f"x{k}": v for k, v in enumerate(read(original).arrays.values())}
    for k in range(n):
        arrays = ours if k % 2 else {"x": rng.standard_normal(1 + k % 7)}
        variables = {
            name: ([f"{name}_{axis}" for axis in range(value.ndim)], value)
            for name, value in arrays.items()
        }
        attrs = {"formula": "loc", "pymc_flows_format": 1} if k % 3 else {}
        xr.Dataset(variables, attrs=attrs).to_netcdf(path, engine="h5netcdf")
        yield


def outcome(open_: Callable[[Path], pmf.NormalizingFlow], path: Path, points: np.ndarray) -> str:
    """What opening a copy comes to; ``points`` are draws with their log densities appended."""
    try:
        found = open_(path)
    except (StorageError, pmf.FormulaError):
        return REFUSED
    except Exception as error:
        return f"{CRASH}: {type(error).__name__}"
    is_same = np.array_equal(found.log_prob(points[:, :-1]), points[:, -1])
    return LOADED if is_same else WRONG


def main(argv: Sequence[str] | None = None) -> Report:
    """Damage, load, count, and save the report."""
    parser = Parser("damage", __doc__)
    parser.add_argument("--files", type=int, default=10_000, help="damaged files (10,000)")
    parser.add_argument("--others", type=int, default=200, help="of them other netCDF files (200)")
    parser.add_argument("--seed", type=int, default=0, help="(0)")
    parser.add_argument("--backend", default="jax", help="of the fit: numba or jax (jax)")
    arguments = parser.read(argv)
    rng = np.random.default_rng(arguments.seed)
    counts: dict[str, collections.Counter[str]] = {}
    with tempfile.TemporaryDirectory() as name:
        originals = write_originals(Path(name), arguments.backend)
        path = Path(name) / "damaged.nc"
        known = model()
        opens: dict[str, Callable[[Path], pmf.NormalizingFlow]] = {
            "approximation": lambda file: pmf.load(file, known),
            "fit": lambda file: pmf.resume(file, known, progressbar=False).approx,
        }
        for what, original in originals.items():
            draws, log_q = opens[what](original).sample_and_log_prob(3, random_seed=1)
            points = np.column_stack([draws, log_q])
            n, n_others = arguments.files // 2, arguments.others // 2
            for kind, data in mutations(original.read_bytes(), rng, n - n_others):
                path.write_bytes(data)
                found = counts.setdefault(kind, collections.Counter())
                found[outcome(opens[what], path, points)] += 1
            for _ in others(path, original, rng, n_others):
                found = counts.setdefault(OTHER, collections.Counter())
                found[outcome(opens[what], path, points)] += 1
    report = Report(
        "damage",
        (__doc__ or "").strip(),
        {"files": f"{arguments.files:,}", "seed": arguments.seed},
        {"Outcomes": rows(counts)},
        checks(counts),
    )
    report.save(arguments)
    return report


def rows(counts: dict[str, collections.Counter[str]]) -> list[Row]:
    """One row for each kind of damage."""
    seen = {status for counter in counts.values() for status in counter}
    columns = [REFUSED, *sorted(seen - {REFUSED})]
    return [
        {"damage": kind, **{status: counter[status] for status in columns}}
        for kind, counter in counts.items()
    ]


def checks(counts: dict[str, collections.Counter[str]]) -> list[Check]:
    """Compare with the bar."""
    total = sum(counts.values(), collections.Counter())
    bad = total.total() - total[REFUSED] - total[LOADED]
    what = f"of {total.total():,} files those that end in a wrong load or an unclear error"
    return [Check(what, bad, "= 0", bad == 0)]


if __name__ == "__main__":
    logging.getLogger("pymc_flows").setLevel(logging.ERROR)
    main()
