"""Restarts and devices: what they cost, that workers do not matter, and rows that are shared out.

Restarts run on processes of a pool and on workers of Dask, some of which are killed (SIGKILL).
Seconds are those of a call after one that compiled. As other work on a machine changes wall time,
there is another measure beside it: the CPU time of this process, which searches for modes and
judges, and that of the busiest worker, one after the other; free cores need about as long. Batches
are compared by their steps alone: those of eight fits in one loop, and those of one fit. Rows are
shared out among eight virtual devices of one CPU, and between two processes.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pymc as pm

import pymc_flows as pmf
from benchmarks import _devices
from benchmarks._common import Check, Parser, Report, Row, say, stopwatch
from benchmarks._process import run_child
from pymc_flows.fitting.restarts.legs import Fits, prepared
from pymc_flows.formula import Formula
from pymc_flows.training.loop import BatchedLoop

RESTARTS, SEED = 8, 1
BAR, BATCH_BAR, CLOSE = 4.6, 3.0, 1e-8
ALONE, HERE, POOL, DASK, KILLED = "one fit", "cores=1", "2 processes", "Dask", "Dask, one killed"
PROBLEMS = ("eight schools", "regression in 50 dimensions")
FORMULAS = ("scale-loc", "planar*8-scale-loc")


def model_of(problem: str) -> pm.Model:
    """Eight schools, not centred, or 200 rows of a regression on 50 predictors."""
    rng = np.random.default_rng(0)
    with pm.Model() as model:
        if problem == PROBLEMS[0]:
            y, error = [28, 8, -3, 7, -1, 1, 18, 12], [15, 10, 16, 11, 9, 11, 10, 18]
            mean, scale = pm.Normal("mean", 0, 5), pm.HalfCauchy("scale", 5)
            effects = mean + scale * pm.Normal("offset", 0, 1, shape=8)
            pm.Normal("y", effects, np.array(error, float), observed=np.array(y, float))
        else:
            x = rng.standard_normal((200, 50))
            slopes = pm.Normal("slopes", 0, 1, shape=50)
            y = x @ rng.standard_normal(50) + rng.standard_normal(200)
            pm.Normal("y", x @ slopes, pm.HalfNormal("sigma", 1), observed=y)
    return model


# ------------------------------------------------------------------------------------------ workers


def digest(approx: pmf.NormalizingFlow) -> list[np.ndarray]:
    """All that a result consists of."""
    runs = [(run.seed, run.weight, run.quality.elbo) for run in approx.restarts.runs]
    return [np.array(runs), *approx.q.arrays().values()]


def same(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> bool:
    """Whether two results have the same bits."""
    return len(one) == len(other) and all(map(np.array_equal, one, other))


def fit(model: pm.Model, formula: str, steps: int, **more: Any) -> pmf.NormalizingFlow:
    """Fit once, or several times with ``restarts=``."""
    given = {"backend": "jax", "progressbar": False, "random_seed": SEED}
    return pmf.fit(steps, model=model, formula=formula, **given, **more)


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def pool() -> Iterator[tuple[Executor, Callable[[], list[int]]]]:
    """Two processes, and a function that lists their ids."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as executor:
        yield executor, lambda: list(executor._processes)


@contextmanager
def dask(kill: float | None = None) -> Iterator[tuple[Executor, Callable[[], list[int]]]]:
    """Two workers of Dask; one is killed so many seconds after it has begun a task."""
    from distributed import Client, LocalCluster

    how = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with LocalCluster(**how) as cluster, Client(cluster) as client:

        def kill_one() -> None:
            nanny = next(iter(cluster.workers.values()))
            while not client.processing().get(nanny.worker_address):
                time.sleep(0.02)
            time.sleep(kill or 0)
            os.kill(nanny.pid, signal.SIGKILL)

        killer = threading.Thread(target=kill_one)
        if kill is not None:
            killer.start()
        yield client.get_executor(), lambda: [w.pid for w in cluster.workers.values()]
        if kill is not None:
            killer.join()


def on_workers(problem: str, formula: str, steps: int) -> list[Row]:
    """Time one fit, and restarts on each kind of workers; the second call of each."""
    model, rows, expected = model_of(problem), list[Row](), list[np.ndarray]()

    def add(way: str, seconds: Any, longest: float, result: list[np.ndarray]) -> None:
        one = rows[0] if rows else {"wall s": seconds.wall, "CPU s, one after the other": longest}
        rows.append(
            {
                "problem": problem,
                "way": way,
                "wall s": seconds.wall,
                "CPU s, one after the other": longest,
                "wall, × one fit": seconds.wall / one["wall s"],
                "CPU, × one fit": longest / one["CPU s, one after the other"],
                "same bits as cores=1": same(result, expected) if len(rows) > 1 else None,
            }
        )
        say(", ".join(f"{k} {v}" for k, v in rows[-1].items()))

    fit(model, formula, steps)
    with stopwatch() as seconds:
        fit(model, formula, steps)
    add(ALONE, seconds, seconds.cpu, [])
    fit(model, formula, 10, restarts=RESTARTS)
    with stopwatch() as seconds:
        expected = digest(fit(model, formula, steps, restarts=RESTARTS))
    add(HERE, seconds, seconds.cpu, expected)
    for way, workers in ((POOL, pool), (DASK, dask)):
        with workers() as (executor, pids):
            fit(model, formula, 10, restarts=RESTARTS, executor=executor)
            before = {pid: cpu_seconds(pid) for pid in pids()}
            with stopwatch() as seconds:
                result = fit(model, formula, steps, restarts=RESTARTS, executor=executor)
            busiest = max(cpu_seconds(pid) - then for pid, then in before.items())
        add(way, seconds, seconds.cpu + busiest, digest(result))
    return rows


def kills(problem: str, formula: str, steps: int, number: int) -> Row:
    """Kill a worker of Dask at a random time of its work, so many times."""
    model, rng = model_of(problem), np.random.default_rng(SEED)
    expected = digest(fit(model, formula, steps, restarts=4))
    same_bits = 0
    for k in range(number):
        after = float(rng.uniform(0, 6))
        with dask(kill=after) as (executor, _):
            result = digest(fit(model, formula, steps, restarts=4, executor=executor))
        same_bits += same(result, expected)
        say(f"kill {k + 1}, {after:.1f} s after a task began: {same_bits} with the same bits")
    return {"problem": problem, "workers killed": number, "the same bits": same_bits}


# ------------------------------------------------------------------------------------------ batches


def as_batch(problem: str, formula: str, draws: int, steps: int) -> Row:
    """Time steps of eight fits in one loop, and of one fit."""
    given = {"backend": "jax", "obj_n_mc": draws}
    fits = Fits(steps, model_of(problem), Formula(formula), given)
    frame = pmf.find_frame(fits.model, dense=False, random_seed=SEED)
    states = [prepared(fits, (seed, frame)).state for seed in range(RESTARTS)]
    loop = BatchedLoop([state.loop for state in states], steps)
    seconds, taken = {}, {}
    # Calls of one loop are as long as they can be, so that none of their steps is skipped.
    for name, each, length in (
        ("one", states[0].loop, states[0].loop.max_chunk),
        ("eight", loop, loop.steps),
    ):
        calls, settings = math.ceil(steps / length), states[0].settings(length)
        each.run(settings)
        with stopwatch() as seconds[name]:
            for _ in range(calls):
                each.run(settings)
        taken[name] = calls * length
    cpu, wall = (
        {name: 1e6 * getattr(seconds[name], kind) / taken[name] for name in taken}
        for kind in ("cpu", "wall")
    )
    return {
        "problem": problem,
        "formula": formula,
        "draws": draws,
        "one fit, CPU µs a step": cpu["one"],
        "eight, CPU µs a step of all": cpu["eight"],
        "CPU, × one fit": cpu["eight"] / cpu["one"],
        "wall, × one fit": wall["eight"] / wall["one"],
    }


# ------------------------------------------------------------------------------------------ devices


def on_devices(rows: int) -> list[Row]:
    """Fit on one device, on eight, and on one each of two processes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = {_devices.EIGHT: "--xla_force_host_platform_device_count=8"}
    found = []
    for name in (_devices.ONE, _devices.EIGHT, _devices.TWO):
        environment = {"XLA_FLAGS": flags.get(name, "")}
        processes = range(2 if name == _devices.TWO else 1)

        def child(process: int, name: str = name, env: dict[str, str] = environment) -> Row:
            return run_child("_devices", [name, rows, port, process], env)

        with ThreadPoolExecutor(2) as threads:
            each = list(threads.map(child, processes))
        losses = np.array(each[0]["losses"])
        first = found[0]["losses"] if found else losses
        found.append(
            {
                "losses": losses,
                "where": name,
                "rows": rows,
                **{k: max(x[k] for x in each) for k in each[0] if k != "losses"},
                "largest difference of a loss": float(np.abs(losses - first).max()),
                "relative": float(np.abs(losses / first - 1).max()),
            }
        )
        say(", ".join(f"{k} {v}" for k, v in found[-1].items() if k != "losses"))
    return [{k: v for k, v in row.items() if k != "losses"} for row in found]


# ------------------------------------------------------------------------------------------- report


def checks(tables: dict[str, list[Row]]) -> list[Check]:
    """Compare with the bars."""
    found = []
    for row in tables["Eight restarts"]:
        what = f"{row['problem']}, {row['way']}"
        if row["same bits as cores=1"] is not None:
            is_same = row["same bits as cores=1"]
            found.append(Check(f"{what}: the bits of cores=1", float(is_same), "= 1", is_same))
        if row["way"] == POOL:
            for measure in ("wall", "CPU"):
                value = row[f"{measure}, × one fit"]
                what_ = f"{what}: {measure} over one fit"
                found.append(Check(what_, value, f"≤ {BAR}", value <= BAR))
    for row in tables["Killed workers"]:
        same_bits = row["the same bits"]
        number = row["workers killed"]
        found.append(
            Check("killed workers, the same bits", same_bits, f"= {number}", same_bits == number)
        )
    for row in tables["Eight fits in one loop"]:
        what = f"batch, {row['problem']}, {row['formula']}, {row['draws']} draws: CPU over one fit"
        value = row["CPU, × one fit"]
        found.append(Check(what, value, f"≤ {BATCH_BAR:g}", value <= BATCH_BAR))
    one, *others = tables["Rows on devices"]
    for row in others:
        value = row["relative"]
        found.append(
            Check(f"{row['where']}: losses, relative to one", value, f"≤ {CLOSE}", value <= CLOSE)
        )
    share = others[-1]["predictors here, MB"] / one["predictors here, MB"]
    found.append(Check("data of each of two processes, share", share, "≤ 0.5", share <= 0.5))
    return found


def main(argv: Sequence[str] | None = None) -> Report:
    """Measure all of it and save the report."""
    parser = Parser("restarts", (__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=10_000, help="of a fit (10,000)")
    parser.add_argument("--kills", type=int, default=20, help="workers killed (20)")
    parser.add_argument("--rows", type=int, default=800_000, help="on devices (800,000)")
    parser.add_argument("--draws", type=int, nargs="+", default=[8, 64], help="of batches")
    arguments = parser.read(argv)
    steps = arguments.steps
    tables: dict[str, list[Row]] = {
        "Rows on devices": on_devices(arguments.rows),
        "Eight fits in one loop": [
            as_batch(problem, formula, draws, max(2, steps // 2))
            for problem in PROBLEMS
            for formula in FORMULAS
            for draws in arguments.draws
        ],
        "Eight restarts": [
            row for problem in PROBLEMS for row in on_workers(problem, FORMULAS[1], steps)
        ],
        "Killed workers": [kills(PROBLEMS[0], FORMULAS[0], steps, arguments.kills)],
    }
    report = Report(
        "restarts",
        (__doc__ or "").split("\n\n")[1].replace("\n", " "),
        {"restarts": RESTARTS, "steps": steps, "formula of restarts": FORMULAS[1], "seed": SEED},
        tables,
        checks(tables),
    )
    report.save(arguments)
    return report


if __name__ == "__main__":
    main()
