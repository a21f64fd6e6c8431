"""Rows that do not fit into memory: how much memory and time fits take, and what comes out.

Rows with 20 columns of doubles are written to a Parquet file and fitted from there, each fit in a
process of its own: by `fit` without a formula, whose Gaussian comes from passes over all rows, and
by a flow that is trained on batches, in the coordinates of that Gaussian. Throughput is compared
with the same compiled steps on batches that are in memory already, in turns: by the clock, which
counts what else the machine does, and by CPU time, which counts the thread that reads ahead as if
there were no second core. Posteriors are known by Newton's
method over all rows in NumPy, and a sum over the standard deviation of the intercepts. Last, a
small fit is killed (SIGKILL) at random times and resumed, as in `benchmarks.kills`.
"""

from __future__ import annotations

import json
import logging
import resource
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytensor

import pymc_flows as pmf
from benchmarks import _rows_models as models
from benchmarks import kills
from benchmarks._common import Check, Parser, Report, Row, Seconds, say, stopwatch
from benchmarks._process import run_child

ROWS, BATCH, STEPS, DRAWS = 10_000_000, 4096, 1_000, 64
FORMULA = "scale-hh*4-loc"
AUTO, TRAINED = "without a formula", FORMULA
# Steps of one turn, and turns, of the comparison with memory; batches that are held there.
TURN, TURNS, HELD = 200, 5, 32
UNITS = ("wall", "CPU")
MOST_GB, LEAST_SHARE, MOST_SD = 1.5, 0.7, 0.1
KILLED_ROWS, KILLED_STEPS, KILLED_EVERY = 20_000, 400, 20


class Held:
    """Batches that are in memory, again and again."""

    def __init__(self, batches: Any, n: int, shapes: Sequence[np.ndarray]):
        self._batches, self._n = batches, n
        self._arrays = [np.empty((n, *x.shape), x.dtype) for x in shapes]
        batches.fill(0, self._arrays)

    def fill(self, step: int, arrays: Sequence[np.ndarray]) -> None:
        """Copy them."""
        for k in range(len(arrays[0])):
            for array, held in zip(arrays, self._arrays, strict=True):
                array[k] = held[(step + k) % self._n]


def measure(name: str, way: str, path: Path, steps: int) -> dict[str, Any]:
    """Fit a model in this process; what it took, and mean and standard deviation.

    The first way leaves a Gaussian in a file beside, for the second.
    """
    beside = path.with_name(f"{name}.npz")
    given: dict[str, Any] = {"random_seed": 1, "progressbar": False, "backend": "jax"}
    with stopwatch() as seconds:
        model, rows = models.build(name, path, BATCH)
        if way == AUTO:
            approx, inference = pmf.fit(model=model, **given), None
            frame = approx.flow.frame
            np.savez(beside, center=frame.center, scale=frame.scale)
        else:
            inference = pmf.NFVI(
                way, start=pmf.Frame(**np.load(beside)), model=model, random_seed=1
            )
            approx = inference.fit(steps, obj_n_mc=DRAWS, **given)
    found: dict[str, Any] = {
        "wall s": seconds.wall,
        "CPU s": seconds.cpu,
        "steps": len(approx.hist),
        "mean": approx.mean.eval().tolist(),
        "sd": approx.std.eval().tolist(),
        "peak GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
    }
    if inference is not None:
        found |= throughput(inference, rows)
    return found


def throughput(inference: pmf.NFVI, rows: pmf.Rows) -> dict[str, float]:
    """Rows per second from the file and from memory, in turns; medians."""
    loop = inference.state.loop
    from_file = loop._batches
    shapes = [v.get_value() for v in loop.step.batch]
    ways = {"file": from_file, "memory": Held(from_file, HELD, shapes)}
    taken: dict[str, list[Seconds]] = {way: [] for way in ways}
    for _ in range(TURNS):
        for way, batches in ways.items():
            loop._batches = batches
            with stopwatch() as seconds:
                inference.refine(TURN, progressbar=False)
            taken[way].append(seconds)
    loop._batches = from_file
    done = TURN * rows.batch_size
    return {
        f"rows/{unit} s, {way}": done / float(np.median([getattr(x, unit.lower()) for x in found]))
        for unit in UNITS
        for way, found in taken.items()
    }


def begin_or_resume(data: Path, path: Path) -> None:
    """Begin a small fit, or resume it if it has a file."""
    model, _ = models.build(models.LOGISTIC, data, 64)
    if path.exists():
        pmf.resume(path, model, progressbar=False)
        return
    frame = pmf.find_frame(model, random_seed=1)
    pmf.NFVI("scale-loc", model=model, start=frame, random_seed=1).fit(
        KILLED_STEPS,
        obj_n_mc=4,
        random_seed=1,
        backend="numba",
        progressbar=False,
        checkpoint=path,
        every=KILLED_EVERY,
    )


def kill(folder: Path, n: int) -> Row:
    """Kill small fits so many times; how they ended."""
    data = models.data_file(folder, KILLED_ROWS)
    run = partial(kills.run, begin=partial(begin_or_resume, data))
    met, ends, _ = kills.kill_fits(n, 0, run)
    return {"kills": n, "damaged files": met[kills.DAMAGED], **{k: ends[k] for k in kills.ENDS}}


def compare(found: dict[str, Any], expected: tuple[np.ndarray, np.ndarray]) -> Row:
    """A row of the table, with errors in posterior standard deviations."""
    mean, sd = expected
    own = {k: found[k] for k in ("wall s", "CPU s", "steps", "peak GB")}
    errors = np.abs(np.array(found["mean"]) - mean) / sd
    return {
        **own,
        "largest error of a mean, sd": float(errors.max()),
        "of a sd, %": 100 * float(np.abs(np.array(found["sd"]) / sd - 1).max()),
    }


def shares(found: dict[str, Any]) -> Row:
    """A row of the table of throughput."""
    rates = {k: v for k, v in found.items() if k.startswith("rows/")}
    return rates | {
        f"share by {unit} time": rates[f"rows/{unit} s, file"] / rates[f"rows/{unit} s, memory"]
        for unit in UNITS
    }


def checks(rows: Sequence[Row], rates: Sequence[Row], killed: Row) -> list[Check]:
    """Compare with the bars."""
    found = []
    for row in rows:
        what = f"{row['model']}, {row['way']}"
        peak, error = row["peak GB"], row["largest error of a mean, sd"]
        found.append(Check(f"{what}: peak memory, GB", peak, f"≤ {MOST_GB}", peak <= MOST_GB))
        found.append(Check(f"{what}: error of a mean, sd", error, f"≤ {MOST_SD}", error <= MOST_SD))
    for row in rates:
        for unit in UNITS:
            share, bar = row[f"share by {unit} time"], f"≥ {LEAST_SHARE}"
            what = f"{row['model']}: throughput over that from memory, by {unit} time"
            found.append(Check(what, share, bar, share >= LEAST_SHARE))
    other = killed[kills.OTHER] + killed["damaged files"]
    found.append(Check("kills that changed a fit", other, "= 0", other == 0))
    return found


def main(argv: Sequence[str] | None = None) -> Report | None:
    """Measure all and save the report."""
    parser = Parser("rows", (__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, default=ROWS, help="in the file (10,000,000)")
    parser.add_argument("--steps", type=int, default=STEPS, help="of the flow (1,000)")
    parser.add_argument("--kills", type=int, default=20, help="number of kills (20)")
    parser.add_argument("--models", nargs="+", default=list(models.MODELS))
    parser.add_argument("--folder", help="where the file is kept; by default it is not")
    parser.add_argument("--measure", nargs=3, help="one fit: model, way and file")
    arguments = parser.read(argv)
    parser.refuse_unknown(arguments.models, models.MODELS)
    if arguments.measure:
        name, way, path = arguments.measure
        say(json.dumps(measure(name, way, Path(path), arguments.steps)))
        return None
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.folder or temporary)
        path = models.data_file(folder, arguments.rows)
        found, rates = [], []
        for name in arguments.models:
            expected = models.posterior(name, path)
            for way in (AUTO, TRAINED):
                child = ["--steps", arguments.steps, "--measure", name, way, path]
                measured = run_child("rows", child, {})
                found.append({"model": name, "way": way, **compare(measured, expected)})
                if way == TRAINED:
                    rates.append({"model": name, **shares(measured)})
                say(", ".join(f"{k} {v}" for k, v in found[-1].items()))
        killed = kill(folder, arguments.kills)
        size = path.stat().st_size / 1e9
    report = Report(
        "rows",
        (__doc__ or "").split("\n\n", 1)[1].strip().replace("\n", " "),
        {
            "rows": f"{arguments.rows:,}, {size:.2f} GB of Parquet",
            "batch": BATCH,
            "draws in a step": DRAWS,
            "floats": pytensor.config.floatX,
        },
        {"Fits": found, "Throughput": rates, "Kills": [killed]},
        checks(found, rates, killed),
    )
    report.save(arguments)
    return report


if __name__ == "__main__":
    logging.getLogger("pymc_flows").setLevel(logging.ERROR)
    main()
