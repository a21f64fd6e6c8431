"""Steps per second of the compiled loop, against calling one compiled step from Python.

Both sides run the same updates of the same optimizer on pot1, planar*2, one draw per step. The
single step is called with ``trust_input=True`` and gets its noise from NumPy, drawn beforehand. The
loop is what a user runs: `NFVI.refine`, with its bookkeeping. Repeats of both sides take turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt

from benchmarks._common import Check, Parser, Report, Row, Seconds, stopwatch
from pymc_flows import NFVI, NormalizingFlow
from pymc_flows.backends.modes import training_mode
from pymc_flows.model.backend import layer_loop
from pymc_flows.model.examine import DrawPlan
from pymc_flows.targets import POTENTIALS
from pymc_flows.training.objectives.loss import loss_and_gradients

FORMULA = "planar*2"
TARGET = POTENTIALS[0]
BAR = 10
OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "adagrad_window": partial(pm.adagrad_window, learning_rate=0.01),
    "adam": partial(pm.adam, learning_rate=0.01),
}

# A clock of CPU time that has not ticked says no more than this, in seconds.
TICK = time.get_clock_info("process_time").resolution


def single_step(optimizer: Callable[..., Any], backend: str) -> Callable[[int], None]:
    """Compile one optimizer step; return what calls it a number of times."""
    approx = NormalizingFlow(FORMULA, model=TARGET.model(), random_seed=0)
    problem = approx.problem()
    noise = pt.matrix("noise", shape=(1, TARGET.dim))
    loss, grads, _ = loss_and_gradients(problem, noise, DrawPlan(None), loop=layer_loop(backend))
    step = pytensor.function(
        [noise],
        loss,
        updates=optimizer(grads, problem.q.params),
        mode=training_mode(backend),
        trust_input=True,
    )
    rng = np.random.default_rng(0)

    def run(n: int) -> None:
        losses = [step(z0) for z0 in rng.standard_normal((n, 1, TARGET.dim))]
        if not np.isfinite([float(losses[0]), float(losses[-1])]).all():
            raise FloatingPointError("the single steps diverged")

    return run


def compiled_loop(optimizer: Callable[..., Any], backend: str) -> Callable[[int], None]:
    """Compile the loop by a first fit; return what runs a number of steps."""
    inference = NFVI(FORMULA, model=TARGET.model(), random_seed=0)
    inference.fit(
        20_000,
        obj_n_mc=1,
        obj_optimizer=optimizer,
        backend=backend,
        gradient="total",
        progressbar=False,
        random_seed=0,
    )
    return lambda n: inference.refine(n, progressbar=False)


def compare(
    name: str, backend: str, *, loop_steps: int, single_steps: int, repeats: int
) -> tuple[Row, Row]:
    """Time both sides in turn; return the line of the table and all single times."""
    sides = {
        "loop": (compiled_loop(OPTIMIZERS[name](), backend), loop_steps),
        "single": (single_step(OPTIMIZERS[name](), backend), single_steps),
    }
    for run, steps in sides.values():
        run(steps)  # the first calls compile and warm up
    times: dict[str, list[Seconds]] = {side: [] for side in sides}
    for _ in range(repeats):
        for side, (run, steps) in sides.items():
            with stopwatch() as seconds:
                run(steps)
            times[side].append(seconds)
    wall = {s: np.array([steps / t.wall for t in times[s]]) for s, (_, steps) in sides.items()}
    cpu = {
        s: np.array([steps / max(t.cpu, TICK) for t in times[s]]) for s, (_, steps) in sides.items()
    }
    row = {
        "backend": backend,
        "optimizer": name,
        "loop, steps/s": np.median(wall["loop"]),
        "single steps/s": np.median(wall["single"]),
        "ratio": np.median(wall["loop"]) / np.median(wall["single"]),
        "lowest ratio of a repeat": (wall["loop"] / wall["single"]).min(),
        "loop, steps per CPU s": np.median(cpu["loop"]),
        "single steps per CPU s": np.median(cpu["single"]),
        "ratio by CPU": np.median(cpu["loop"]) / np.median(cpu["single"]),
    }
    steps_per_second = {"wall": {s: list(v) for s, v in wall.items()}}
    steps_per_second["cpu"] = {s: list(v) for s, v in cpu.items()}
    return row, {"backend": backend, "optimizer": name, **steps_per_second}


def main(argv: Sequence[str] | None = None) -> Report:
    """Compare on both backends and save the report."""
    parser = Parser("loop", __doc__)
    parser.add_argument("--backends", nargs="+", default=["numba", "jax"])
    parser.add_argument("--optimizers", nargs="+", default=list(OPTIMIZERS), choices=OPTIMIZERS)
    parser.add_argument("--loop-steps", type=int, default=200_000)
    parser.add_argument("--single-steps", type=int, default=5_000)
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.read(argv)
    rows, details = [], []
    for backend in arguments.backends:
        for name in arguments.optimizers:
            row, detail = compare(
                name,
                backend,
                loop_steps=arguments.loop_steps,
                single_steps=arguments.single_steps,
                repeats=arguments.repeats,
            )
            rows.append(row)
            details.append(detail)
    checks = [
        Check(f"{r['backend']}, {r['optimizer']}: ratio", r["ratio"], f"≥ {BAR}", r["ratio"] >= BAR)
        for r in rows
    ]
    report = Report(
        "loop",
        "Steps per second of the compiled training loop (`NFVI.refine`, end to end) and of the "
        "same compiled step called from Python with trust_input=True: pot1, "
        f"{FORMULA}, one draw per step. Both sides take turns; medians over the repeats.",
        {
            "repeats": arguments.repeats,
            "steps per repeat, loop": arguments.loop_steps,
            "steps per repeat, single": arguments.single_steps,
            "seeds": 0,
        },
        {"Steps per second": rows},
        checks,
        {"repeats": details},
    )
    report.save(arguments)
    return report


if __name__ == "__main__":
    main()
