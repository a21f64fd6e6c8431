"""How close flows come to the potentials with the settings of the normalizing-flows notebook.

KL(q ‖ p) on fresh draws, for every seed, from two laws of start parameters: PyMC3's, under which
those settings were chosen, and this library's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pymc as pm

from benchmarks._common import FRESH_DRAWS, Check, Parser, Report, Row, divergence, say, stopwatch
from pymc_flows import NFVI
from pymc_flows.flows import build_chain
from pymc_flows.formula import Formula
from pymc_flows.targets import POTENTIALS, Target

OWN_JITTER = 0.01
# A half plane with a smaller share of the draws than this has lost its mode: pot1 has half of its
# mass in each, and losing one costs log 2 = 0.69 nats.
LOST = 0.05
# Fit and fresh draws must not share noise.
DRAW_SEED = 1_000_000


@dataclass(frozen=True)
class Case:
    """One line of the notebook.

    Attributes
    ----------
    target, formula, draws, steps
        What is fitted to what, with how many draws per step.
    jitter : float
        The notebook's.
    optimizer : callable
    bar : float or None
        Upper bound of the median KL over seeds.
    """

    target: Target
    formula: str
    draws: int
    steps: int
    jitter: float
    optimizer: Callable[..., Any]
    bar: float | None = None


_ADAM = partial(pm.adam, learning_rate=0.01)
_POT = {target.name: target for target in POTENTIALS}
CASES = (
    Case(_POT["pot1"], "planar*8", 100, 25_000, 1.0, _ADAM, 0.22),
    Case(_POT["pot4"], "planar*10", 10, 25_000, 0.1, _ADAM, 1.3),
    Case(_POT["pot1"], "planar*2", 1, 30_000, 1.0, partial(pm.adagrad_window, learning_rate=0.01)),
    Case(_POT["pot1"], "planar*32", 10, 25_000, 1.0, _ADAM),
    Case(_POT["pot4"], "planar*32", 10, 25_000, 0.1, _ADAM),
)


def pymc3_start(
    formula: str, dim: int, jitter: float, rng: np.random.Generator
) -> dict[int, dict[str, np.ndarray]]:
    """Draw start values by PyMC3's law: every raw parameter is jitter · N(0, 1).

    PyMC3 had no reference values. Its planar flow is parametrised as ours, so raw values mean
    the same; for other layers they do not.

    Parameters
    ----------
    formula : str
        Planar layers only.
    dim : int
    jitter : float
    rng : numpy.random.Generator

    Returns
    -------
    dict of int to dict of str to ndarray
        By layer, for `NFVI`'s ``params``.
    """
    chain = build_chain(Formula(formula), dim)
    if {block.layer.word for block in chain.blocks} != {"planar"}:
        raise ValueError(f"expected planar layers only, got {formula!r}")
    layers = (block.layer for block in chain.blocks for _ in range(block.count))
    return {
        i: {
            name: jitter * rng.standard_normal(shape)
            for name, shape in layer.param_shapes(dim).items()
        }
        for i, layer in enumerate(layers)
    }


def fit_once(case: Case, start: str, seed: int, steps: int | None = None) -> Row:
    """Fit with one seed and return its line."""
    target = case.target
    params, jitter = None, OWN_JITTER
    if start == "PyMC3":
        rng = np.random.default_rng([seed, len(case.formula)])
        params = pymc3_start(case.formula, target.dim, case.jitter, rng)
    elif start == "own, notebook's jitter":
        jitter = case.jitter
    inference = NFVI(
        case.formula, model=target.model(), jitter=jitter, params=params, random_seed=seed
    )
    with stopwatch() as seconds:
        inference.fit(
            steps or case.steps,
            obj_n_mc=case.draws,
            obj_optimizer=case.optimizer(),
            backend="jax",
            progressbar=False,
        )
    found = divergence(inference.approx, target, DRAW_SEED + seed)
    right = float((found.points[:, 0] > 0).mean())
    return {
        "seed": seed,
        "kl": found.kl,
        "standard_error": found.standard_error,
        "largest": found.largest,
        "share_right": right,
        "lost_mode": target.name == "pot1" and min(right, 1 - right) < LOST,
        "cpu_seconds": seconds.cpu,
    }


STARTS = ("PyMC3", "own, notebook's jitter", "own, default jitter")


def summary(case: Case, start: str, rows: Sequence[Row]) -> Row:
    """Condense the seeds of one case and start."""
    kl = np.array([row["kl"] for row in rows])
    return {
        "target": case.target.name,
        "formula": case.formula,
        "draws": case.draws,
        "start": start,
        "jitter": OWN_JITTER if start == "own, default jitter" else case.jitter,
        "median KL": float(np.median(kl)),
        "best": kl.min(),
        "worst": kl.max(),
        "lost a mode": f"{sum(row['lost_mode'] for row in rows)} of {len(rows)}",
        "median standard error": float(np.median([row["standard_error"] for row in rows])),
        "CPU s per fit": float(np.median([row["cpu_seconds"] for row in rows])),
    }


def difference(ours: Sequence[Row], theirs: Sequence[Row]) -> tuple[float, float, float]:
    """Difference of the medians over seeds, with a 95 % bootstrap interval."""
    rng = np.random.default_rng(0)
    samples = [np.array([row["kl"] for row in rows]) for rows in (ours, theirs)]
    a, b = (np.median(rng.choice(x, (10_000, len(x))), axis=1) for x in samples)
    low, high = np.quantile(a - b, [0.025, 0.975])
    return float(np.median(samples[0]) - np.median(samples[1])), float(low), float(high)


def main(argv: Sequence[str] | None = None) -> Report:
    """Run all cases and save the report."""
    parser = Parser("notebook_quality", __doc__)
    parser.add_argument("--seeds", type=int, default=20, help="number of seeds, from 0 (20)")
    parser.add_argument("--steps", type=int, help="other number of steps, to try the script")
    parser.add_argument("--cases", type=int, default=len(CASES), help="only the first so many")
    arguments = parser.read(argv)
    summaries, differences, checks, details = [], [], [], []
    for case in CASES[: arguments.cases]:
        by_start = {}
        for start in STARTS:
            rows = [fit_once(case, start, s, arguments.steps) for s in range(arguments.seeds)]
            by_start[start] = rows
            line = summary(case, start, rows)
            summaries.append(line)
            say(", ".join(f"{k} {v}" for k, v in line.items()))
            details.append({**line, "seeds": rows})
            if case.bar is not None:
                what = f"{case.target.name} {case.formula}, start {start}: median KL"
                median = line["median KL"]
                checks.append(Check(what, median, f"≤ {case.bar}", median <= case.bar))
        for start in STARTS[1:]:
            change, low, high = difference(by_start[start], by_start["PyMC3"])
            differences.append(
                {
                    "target": case.target.name,
                    "formula": case.formula,
                    "start": start,
                    "median KL minus PyMC3 start's": change,
                    "95 % interval": f"{low:.3f} … {high:.3f}",
                }
            )
    seeds = [
        {
            "target": line["target"],
            "formula": line["formula"],
            "start": line["start"],
            "KL of seeds 0, 1, … (* lost a mode)": ", ".join(
                f"{row['kl']:.3f}{'*' if row['lost_mode'] else ''}" for row in line["seeds"]
            ),
        }
        for line in details
    ]
    report = Report(
        "notebook_quality",
        f"KL(q ‖ p) in nats on {FRESH_DRAWS:,} fresh draws, with the notebook's steps, draws and "
        "optimizers (constant step size .01; adagrad_window for planar*2, adam else), JAX. "
        "Start PyMC3: every raw parameter jitter · N(0, 1), as PyMC3 drew them.",
        {"seeds": f"0 to {arguments.seeds - 1}", "steps": arguments.steps or "the notebook's"},
        {
            "Summary over seeds": summaries,
            "Own starts against PyMC3's (negative: own is better)": differences,
            "All seeds": seeds,
        },
        checks,
        {"runs": details},
    )
    report.save(arguments)
    return report


if __name__ == "__main__":
    main()
