"""Fits with a checkpoint that are killed (SIGKILL) at random times, and resumed to the same bits.

A small fit on minibatches writes its checkpoint every few steps. Processes that run it are killed,
and the next one resumes the file, until one gets to the end; then the next fit begins. After each
kill the file must be readable, and at the end of each fit parameters, losses, state of the
optimizer and of all random generators must be those of a fit that was left alone.
"""

from __future__ import annotations

import multiprocessing
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pymc as pm

import pymc_flows as pmf
from benchmarks._common import Check, Parser, Report, say
from pymc_flows.errors import StorageError
from pymc_flows.io.files import Content, read

FORMULA = "planar*2-scale"
STEPS, EVERY, DRAWS = 600, 20, 3
SEED, BACKEND = 5, "numba"
# Share of the kills that come before the first checkpoint of a process.
WHILE_BUILDING = 0.25
DAMAGED = "a file that cannot be read is left"
SAME, OTHER = "the same bits", "other bits"
ENDS = (SAME, OTHER)
# What the file says of a fit and its generators, besides arrays.
STATE = ("i", "n", "done", "failed", "failures", "noise_rng", "model_rngs")

_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["benchmarks._common"])


def model() -> pm.Model:
    """A normal mean and standard deviation, 60 observations in minibatches of 7."""
    with pm.Model() as built:
        batch = pm.Minibatch(np.linspace(-1, 2, 60), batch_size=7)
        x = pm.Normal("x", 0, 1)
        sigma = pm.HalfNormal("sigma", 1)
        pm.Normal("y", x, sigma, observed=batch, total_size=60)
    return built


def begin_or_resume(path: Path) -> None:
    """Begin the fit, or resume it if it has a file."""
    if path.exists():
        pmf.resume(path, model(), progressbar=False)
        return
    inference = pmf.NFVI(FORMULA, model=model(), random_seed=SEED, jitter=0.5)
    inference.fit(
        STEPS,
        obj_n_mc=DRAWS,
        random_seed=SEED,
        backend=BACKEND,
        progressbar=False,
        checkpoint=path,
        every=EVERY,
    )


def run(
    path: Path,
    seconds: float | None,
    *,
    building: bool = True,
    begin: Callable[[Path], object] = begin_or_resume,
) -> tuple[bool, float]:
    """Run the fit in a process of its own, and kill it after so many seconds.

    The process is forked from a server that has imported the libraries, and done nothing else.

    Parameters
    ----------
    path : Path
    seconds : float or None
        None lets it get to its end.
    building : bool
        Whether they count from the start of the process, else from its first checkpoint.
    begin : callable
        Begins a fit whose file this is, or resumes it.

    Returns
    -------
    is_over : bool
        Whether it got to its end.
    waited : float
        Seconds until the first checkpoint, or until they counted.
    """
    before, clock = version(path), time.monotonic()
    process = _PROCESSES.Process(target=begin, args=(path,))
    process.start()
    while process.is_alive() and version(path) == before and not (building and seconds is not None):
        time.sleep(0.002)
    waited = time.monotonic() - clock
    process.join(seconds)
    process.kill()  # one that has ended already does not mind
    process.join()
    if process.exitcode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"a fit ended with {process.exitcode} instead of being killed")
    return process.exitcode == 0, waited


def version(path: Path) -> tuple[int, int] | None:
    """What changes with each checkpoint."""
    if not path.exists():
        return None
    stat = path.stat()
    return stat.st_ino, stat.st_mtime_ns


def same(found: Content, expected: Content) -> bool:
    """Whether two fits have the same parameters, losses, optimizer and generators, to the bit."""
    return (
        found.arrays.keys() == expected.arrays.keys()
        and all(np.array_equal(found.arrays[k], v) for k, v in expected.arrays.items())
        and all(found.record["fit"][k] == expected.record["fit"][k] for k in STATE)
        and found.record["fit"].get("batches") == expected.record["fit"].get("batches")
        and found.record["draws_rng"] == expected.record["draws_rng"]
    )


def state_after_kill(path: Path, before: bytes) -> str:
    """Say what a kill has met, by what it has left in the folder; clear half a file away."""
    parts = list(path.parent.glob(f".{path.name}.*"))
    for part in parts:
        part.unlink()
    if path.exists():
        try:
            read(path)
        except StorageError:
            return DAMAGED
    if parts:
        return "in the middle of writing"
    if not path.exists():
        return "before the first checkpoint"
    if path.read_bytes() == before:
        return "before the first new checkpoint"
    return "between two checkpoints"


def kill_fits(
    kills: int, seed: int, run: Callable[..., tuple[bool, float]]
) -> tuple[Counter[str], Counter[str], float]:
    """Kill so many processes, each of which `run` runs.

    Returns
    -------
    met, ends : Counter
        What the kills met, and how the fits ended.
    whole : float
        Wall time of a fit that is left alone, in seconds.
    """
    rng = np.random.default_rng(seed)
    met: Counter[str] = Counter()
    ends: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        reference = Path(folder) / "reference.nc"
        run(reference, None)  # for numba's cache
        reference.unlink(missing_ok=True)
        clock = time.monotonic()
        _, build = run(reference, None)
        steps = time.monotonic() - clock - build
        expected = read(reference)
        path, done = Path(folder) / "fit.nc", 0
        while done < kills or path.exists():
            before = path.read_bytes() if path.exists() else b""
            building = rng.random() < WHILE_BUILDING
            seconds = rng.uniform(0, build if building else steps) if done < kills else None
            is_over, _ = run(path, seconds, building=building)
            if is_over:
                ends[SAME if same(read(path), expected) else OTHER] += 1
                path.unlink()
                continue
            done += 1
            met[state_after_kill(path, before)] += 1
            if done % 20 == 0:
                say(f"{done} kills: {dict(met)}; ends: {dict(ends)}")
    return met, ends, build + steps


def main(argv: Sequence[str] | None = None) -> Report:
    """Kill fits and save the report."""
    parser = Parser("kills", (__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=200, help="number of kills (200)")
    parser.add_argument("--seed", type=int, default=0, help="of the times of the kills (0)")
    arguments = parser.read(argv)
    met, ends, whole = kill_fits(arguments.kills, arguments.seed, run)
    damaged = met[DAMAGED]
    report = Report(
        "kills",
        f"`{FORMULA}` on minibatches, {STEPS:,} steps, a checkpoint every {EVERY}, on "
        f"{BACKEND}. "
        "Processes are killed (SIGKILL) at random times, "
        f"{WHILE_BUILDING:.0%} of them while they build the loop, the others while they take steps "
        "and write; the next process resumes the file. Compared are all arrays and generators in "
        "the last file with those of a fit that was left alone.",
        {
            "kills": arguments.kills,
            "seed": arguments.seed,
            "wall seconds of a fit that is left alone": f"{whole:.1f}",
        },
        {
            "What the kills met": [{"kill": k, "number": n} for k, n in sorted(met.items())],
            "Fits": [{"ended with": k, "number": ends[k]} for k in ENDS],
        },
        [
            Check("files that cannot be read after a kill", damaged, "= 0", damaged == 0),
            Check("fits that end with other bits", ends[OTHER], "= 0", ends[OTHER] == 0),
            Check("fits resumed to their end", ends[SAME], "≥ 1", ends[SAME] > 0),
        ],
    )
    report.save(arguments)
    return report


if __name__ == "__main__":
    main()
