"""Seconds to the end of the first steps of a fit in a fresh process.

pot1, planar*8, 100 draws, adam at step size .01. What is timed starts at the call of `fit`, after
everything is imported, and, apart from that, at the start of the process. One core, one thread,
caches empty but for the second process on numba. `benchmarks.compile_time` compares formulas.
"""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks._common import (
    PEER_PACKAGES,
    Check,
    Parser,
    Report,
    Row,
    package_versions,
    say,
    stopwatch,
)
from benchmarks._process import SINGLE_THREAD, empty_caches, one_core, run_child

WORKLOAD = "W2 planar*8, 100 draws"
# Rows of the table; both of numba share their caches.
SIDES = {"JAX": "JAX", "by hand": "by hand", "numba": "numba", "numba, warm cache": "numba"}
JAX_FACTOR, JAX_SECONDS = 1.3, 2.0
NUMBA_COLD, NUMBA_WARM = 12.0, 2.0
CLOCKS = ("CPU", "wall")


def measure(peer: str, started: float) -> Row:
    """Fit once in this process, which must not have compiled anything before.

    Parameters
    ----------
    peer : {"JAX", "numba", "by hand"}
    started : float
        When the process was started, as `time.time` counts.
    """
    from benchmarks.peers import PEERS, set_jax_precision
    from benchmarks.workloads import WORKLOADS

    [workload] = [w for w in WORKLOADS if w.label == WORKLOAD]
    workload.model()
    for module in {"JAX": ["jax"], "by hand": ["benchmarks.jax_by_hand"]}.get(peer, [peer]):
        importlib.import_module(module)
    if peer == "by hand":
        set_jax_precision()
    with stopwatch() as first:
        PEERS[peer].fit(workload).run(1)
    return {
        "CPU": first.cpu,
        "wall": first.wall,
        "process, CPU": time.process_time(),
        "process, wall": time.time() - started,
    }


def is_installed(side: str) -> bool:
    """Whether the packages that a side needs are there."""
    from benchmarks.peers import PEERS

    return PEERS[SIDES[side]].is_installed


def measure_sides(sides: Sequence[str]) -> dict[str, Row]:
    """Measure each side in a process of its own."""
    found = {}
    with empty_caches() as caches:
        for side in sides:
            arguments = ["--measure", SIDES[side], time.time()]
            found[side] = run_child("first_step", arguments, {**SINGLE_THREAD, **caches})
            say(f"{side}: {', '.join(f'{k} {v:.2f} s' for k, v in found[side].items())}")
    return found


def checks(medians: Mapping[str, Row]) -> list[Check]:
    """Compare the medians with the bars."""
    found = []
    for clock in CLOCKS:
        bars = {"numba": NUMBA_COLD, "numba, warm cache": NUMBA_WARM}
        if "by hand" in medians:
            bars["JAX"] = round(JAX_FACTOR * medians["by hand"][clock] + JAX_SECONDS, 2)
        for side, bar in bars.items():
            if side not in medians:
                continue
            why = f" ({JAX_FACTOR} × by hand + {JAX_SECONDS:g} s)" if side == "JAX" else ""
            value = medians[side][clock]
            found.append(Check(f"{side}, {clock} s", value, f"≤ {bar:g}{why}", value <= bar))
    return found


def main(argv: Sequence[str] | None = None) -> Report | None:
    """Measure all sides and save the report."""
    parser = Parser("first_step", __doc__)
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=SIDES)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--measure", nargs=2, metavar=("PEER", "STARTED"), help="used inside")
    arguments = parser.read(argv)
    if arguments.measure:
        peer, started = arguments.measure
        say(json.dumps(measure(peer, float(started))))
        return None
    sides = [side for side in arguments.sides if is_installed(side)]
    with one_core() as core:
        runs = [measure_sides(sides) for _ in range(arguments.repeats)]
    medians = {
        side: {key: float(np.median([run[side][key] for run in runs])) for key in runs[0][side]}
        for side in sides
    }
    rows = [
        {
            "side": side,
            "CPU s": m["CPU"],
            "wall s": m["wall"],
            "CPU s from the start of the process": m["process, CPU"],
            "wall s from the start of the process": m["process, wall"],
        }
        for side, m in medians.items()
    ]
    report = Report(
        "first_step",
        f"{WORKLOAD} on pot1, adam at step size .01, float64: seconds from the call of `fit` to "
        "the end of the first steps, in a fresh process with empty caches, one core. “by hand” is "
        "JAX with optax. Medians over repeats in which the sides take turns. What counts from the "
        "start of the process contains the imports, for every side those of PyMC.",
        {"repeats": arguments.repeats, "core": core, **package_versions(PEER_PACKAGES)},
        {"Seconds": rows},
        checks(medians),
        {"repeats": runs},
    )
    report.save(arguments)
    return report


if __name__ == "__main__":
    main()
