"""A fit whose rows are on one device, on several, or on those of two processes; one process of it.

``python -m benchmarks._devices NAME ROWS PORT PROCESS`` prints losses, and what memory was needed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from benchmarks._common import say

COLUMNS, STEPS, DRAWS = 20, 100, 4
# Rows come in so many blocks, each with a seed of its own, so that a process makes its own alone.
BLOCKS = 8
ONE, EIGHT, TWO = "one device", "eight devices", "two processes"


def rows(n: int, blocks: range) -> tuple[np.ndarray, np.ndarray]:
    """Predictors (rows, columns) and responses (rows,) of some blocks of n rows altogether."""
    parts = [np.random.default_rng(block) for block in blocks]
    x = np.concatenate([rng.standard_normal((n // BLOCKS, COLUMNS)) for rng in parts])
    noise = np.concatenate([rng.random(n // BLOCKS) for rng in parts])
    slopes = np.linspace(-1, 1, COLUMNS)
    return x, (noise < 1 / (1 + np.exp(-x @ slopes))).astype(int)


def memory(what: str) -> float:
    """Resident memory of this process now (``VmRSS``) or at most so far (``VmHWM``), in MB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    [line] = [line for line in lines if line.startswith(f"{what}:")]
    return int(line.split()[1]) / 1024


def measure(name: str, n: int, port: int, process: int) -> dict[str, object]:
    """Fit, and look at losses and memory."""
    import jax

    if name == TWO:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=process)
    import pymc as pm

    import pymc_flows as pmf

    def fit(x: np.ndarray, y: np.ndarray, **more: object) -> pmf.NFVI:
        with pm.Model() as model:
            slopes = pm.Normal("slopes", 0, 1, shape=COLUMNS)
            pm.Bernoulli("y", logit_p=pm.Data("x", x) @ slopes, observed=y)
        inference = pmf.NFVI("scale-loc", model=model, random_seed=1)
        inference.fit(
            STEPS, obj_n_mc=DRAWS, random_seed=2, backend="jax", progressbar=False, **more
        )
        return inference

    half = BLOCKS // 2
    mine = range(process * half, (process + 1) * half) if name == TWO else range(BLOCKS)
    devices = {ONE: None, EIGHT: 8, TWO: 2}[name]
    before = memory("VmRSS")
    inference = fit(*rows(n, mine), devices=devices)
    data = inference.state.loop.function.arguments()
    here = max(sum(s.data.nbytes for s in x.addressable_shards) for x in data)
    largest = max(max(s.data.nbytes for s in x.addressable_shards) for x in data)
    return {
        "losses": list(inference.hist),
        "predictors here, MB": here / 2**20,
        "on a device, MB": largest / 2**20,
        "largest growth of memory, MB": memory("VmHWM") - before,
    }


if __name__ == "__main__":
    name, n, port, process = sys.argv[1:]
    say(json.dumps(measure(name, int(n), int(port), int(process))))
