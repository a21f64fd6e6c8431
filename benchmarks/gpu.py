"""Numbers and speed of the same fits on JAX's default device and on its CPU.

Run it where JAX finds a GPU. Without one both sides are the CPU, and the report says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import numpy as np
import pymc as pm

from benchmarks._common import Check, Parser, Report, Row, say, stopwatch
from benchmarks.workloads import WORKLOADS
from pymc_flows import NFVI

LABELS = ("W2 planar*8, 100 draws", "W6 5000x50 scale-loc, 100 draws")
LARGE_DIM, LARGE_DRAWS = 10_000, 10
# Rounding grows from step to step, so only the first losses can agree.
COMPARED, TOLERANCE = 5, 1e-6


def cases(dim: int) -> dict[str, tuple[pm.Model, str, int]]:
    """Model, formula and draws by name; ``dim`` is that of the large case."""
    found = {w.label: (w.model(), w.formula, w.draws) for w in WORKLOADS if w.label in LABELS}
    with pm.Model() as large:
        pm.Normal("x", np.linspace(-1, 1, dim), np.linspace(0.5, 2, dim))
    name = f"{dim:,} normals scale-hh*10-loc, {LARGE_DRAWS} draws"
    return {**found, name: (large, "scale-hh*10-loc", LARGE_DRAWS)}


def fit(model: pm.Model, formula: str, draws: int, device: Any, steps: int) -> Row:
    """Fit on a device of JAX; return the losses and the rates."""
    import jax

    # On both devices as on an accelerator, so that both get the same noise.
    with (
        jax.default_device(device),
        patch("pymc_flows.training.loop.noise.is_on_accelerator", return_value=True),
    ):
        inference = NFVI(formula, model=model, random_seed=0)
        with stopwatch() as first:
            inference.fit(
                COMPARED,
                obj_n_mc=draws,
                obj_optimizer=pm.adam(learning_rate=0.01),
                backend="jax",
                gradient="total",
                progressbar=False,
                random_seed=0,
            )
        inference.refine(steps, progressbar=False)
        with stopwatch() as elapsed:
            inference.refine(steps, progressbar=False)
    return {
        "losses": inference.hist[:COMPARED].tolist(),
        "first": first.wall,
        "rate": steps / elapsed.wall,
    }


def main(argv: Sequence[str] | None = None) -> Report:
    """Compare on all cases and save the report."""
    import jax

    parser = Parser("gpu", __doc__)
    parser.add_argument("--cases", type=int, default=3, help="only the first so many")
    parser.add_argument("--steps", type=int, default=1000, help="steps of a measurement")
    parser.add_argument("--dim", type=int, default=LARGE_DIM, help="other size, to try the script")
    arguments = parser.read(argv)
    device, cpu = jax.devices()[0], jax.devices("cpu")[0]
    is_gpu = device.platform != "cpu"
    where = f"{device.platform} ({device.device_kind})"
    note = f"Device: {where}."
    if not is_gpu:
        note = "NOT RUN ON A GPU: JAX found none. Both sides are its CPU, which proves nothing."
    say(note)
    rows, checks, runs = [], [], {}
    for name, case in list(cases(arguments.dim).items())[: arguments.cases]:
        here = fit(*case, device, arguments.steps)
        there = fit(*case, cpu, arguments.steps)
        runs[name] = {"device": here, "cpu": there}
        a, b = np.array(here["losses"]), np.array(there["losses"])
        difference = float((np.abs(a - b) / np.abs(b)).max())
        if is_gpu:
            what = f"{name}: largest relative difference of the first {COMPARED} losses"
            checks.append(Check(what, difference, f"≤ {TOLERANCE:g}", difference <= TOLERANCE))
        rows.append(
            {
                "fit": name,
                "default device, steps/s": here["rate"],
                "CPU, steps/s": there["rate"],
                "ratio": here["rate"] / there["rate"],
                "first steps on the default device, wall s": here["first"],
                f"largest relative difference of the first {COMPARED} losses": difference,
            }
        )
    report = Report(
        "gpu",
        f"{note} Fits on JAX's default device and on its CPU, adam at step size .01, "
        f"{arguments.steps:,} steps by `NFVI.refine` after a first fit, wall time. Each device "
        "draws the base noise itself, from the same keys.",
        {"default device": where, "run on a GPU": "yes" if is_gpu else "NO", "seeds": 0},
        {"Default device and CPU": rows},
        checks,
        {"runs": runs},
    )
    report.save(arguments)
    return report


if __name__ == "__main__":
    main()
