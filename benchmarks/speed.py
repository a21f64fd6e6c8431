"""Steps per second of whole fits, on both backends and with other libraries.

Every workload has a process of its own, on one core with one thread and empty caches, in which all
peers take turns. The library's fits go through `NFVI.refine` after a first fit: what a user runs.
`benchmarks.speed_bars` has the bars.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytensor

from benchmarks._common import (
    PEER_PACKAGES,
    Parser,
    Report,
    Row,
    Seconds,
    package_versions,
    say,
    stopwatch,
)
from benchmarks._process import SINGLE_THREAD, empty_caches, one_core, run_child
from benchmarks.peers import PEERS, Fit, set_jax_precision
from benchmarks.speed_bars import Rates, all_checks, compared_elsewhere
from benchmarks.workloads import WORKLOADS, Workload
from pymc_flows import NormalizingFlow
from pymc_flows.model.backend import choose_backend

# ------------------------------------------------------------------------------- in the child


def measure(workload: Workload, names: Sequence[str], seconds: float, repeats: int) -> Row:
    """Time the peers that can do the workload, in turn.

    Returns
    -------
    dict
        ``first``: wall and CPU seconds of each peer's first steps, compilation included;
        ``rates``: steps per second by clock, peer and repeat; ``chosen``: what the library takes
        by default; ``gemm``: floating-point operations per second of a product of matrices.
    """
    set_jax_precision()
    fits: dict[str, Fit] = {}
    first: dict[str, Row] = {}
    for name in names:
        with stopwatch() as elapsed:
            fits[name] = PEERS[name].fit(workload)
            fits[name].run(1)
        first[name] = vars(elapsed)
    steps = {name: calibrate(fit, seconds) for name, fit in fits.items()}
    rates: dict[str, dict[str, list[float]]] = {
        clock: {name: [] for name in fits} for clock in ("wall", "cpu")
    }
    for _ in range(repeats):
        for name, fit in fits.items():
            taken, elapsed = _timed(fit, steps[name])
            rates["wall"][name].append(taken / elapsed.wall)
            rates["cpu"][name].append(taken / elapsed.cpu)
    return {"first": first, "rates": rates, "chosen": chosen(workload), "gemm": gemm_rate()}


def calibrate(fit: Fit, seconds: float) -> int:
    """Warm a fit up; return the number of steps that takes about so many seconds."""
    steps = 1
    while True:
        taken, elapsed = _timed(fit, steps)
        if elapsed.cpu > min(0.1, seconds):
            break
        steps = 4 * max(taken, 1)
    fit.settle(taken / elapsed.cpu)
    fit.run(1)
    steps = max(1, int(seconds * taken / elapsed.cpu))
    taken, elapsed = _timed(fit, steps)
    return max(1, int(seconds * taken / elapsed.cpu))


def _timed(fit: Fit, steps: int) -> tuple[int, Seconds]:
    with stopwatch() as elapsed:
        taken = fit.run(steps)
    return taken, elapsed


def chosen(workload: Workload) -> str:
    """The backend of a fit that names none."""
    approx = NormalizingFlow(workload.formula, model=workload.model(), random_seed=0)
    backend = choose_backend(None, approx.chain, approx.density, workload.draws)
    return {"jax": "JAX"}.get(backend, backend)


def gemm_rate(n: int = 500, repeats: int = 5) -> float:
    """The most floating-point operations per CPU second that NumPy reaches on matrices (n, n)."""
    a = np.random.default_rng(0).standard_normal((n, n)).astype(pytensor.config.floatX)
    best = 0.0
    for _ in range(repeats):
        with stopwatch() as elapsed:
            for _ in range(4):
                a @ a
        best = max(best, 4 * 2 * n**3 / elapsed.cpu)
    return best


# --------------------------------------------------------------------------------- tables


def rate_rows(runs: Mapping[str, Row], names: Sequence[str], clock: str) -> list[Row]:
    """Median rates by workload and peer."""
    return [
        {"workload": label}
        | {name: _median(run["rates"][clock].get(name)) for name in names}
        | {"by default": run["chosen"]}
        for label, run in runs.items()
    ]


def first_rows(runs: Mapping[str, Row], names: Sequence[str]) -> list[Row]:
    """CPU seconds of first fits by workload and peer."""
    return [
        {"workload": label} | {name: run["first"].get(name, {}).get("cpu") for name in names}
        for label, run in runs.items()
    ]


def gemm_rows(
    runs: Mapping[str, Row], workloads: Sequence[Workload], names: Sequence[str]
) -> list[Row]:
    """Share of each peer's time that the products with the predictors take at the full rate."""
    rows: list[Row] = []
    for workload in workloads:
        if workload.group != "W6 5000x50":
            continue
        run = runs[workload.label]
        # X @ z and Xᵀ @ g, one multiplication and one addition each.
        operations = 4 * np.prod(workload.shape) * workload.draws
        rows.append(
            {"workload": workload.label, "gemm, GFLOP per CPU s": run["gemm"] / 1e9}
            | {
                name: median and median * operations / run["gemm"]
                for name in names
                for median in [_median(run["rates"]["cpu"].get(name))]
            }
        )
    return rows


def _median(values: Sequence[float] | None) -> float | None:
    return float(np.median(values)) if values else None


# ----------------------------------------------------------------------------------- the run


def run_all(
    workloads: Sequence[Workload], arguments: Any, precision: str, environment: Mapping[str, str]
) -> dict[str, Row]:
    """Measure each workload in a process of its own."""
    runs = {}
    for workload in workloads:
        names = [
            name
            for name in arguments.peers
            if PEERS[name].is_installed and PEERS[name].fits(workload)
        ]
        if not names:
            continue
        with empty_caches() as caches:
            flags = f"{caches['PYTENSOR_FLAGS']},floatX={precision}"
            child = ["--measure", workload.label, "--peers", *names]
            child += ["--seconds", arguments.seconds, "--repeats", arguments.repeats]
            run = run_child("speed", child, {**environment, **caches, "PYTENSOR_FLAGS": flags})
        runs[workload.label] = run
        rates = (f"{k} {np.median(v):,.0f}" for k, v in run["rates"]["cpu"].items())
        say(f"{precision} {workload.label}: {', '.join(rates)} steps per CPU s")
    return runs


def selected(groups: Sequence[str]) -> list[Workload]:
    """Workloads whose labels begin so."""
    return [w for w in WORKLOADS if any(w.label.startswith(group) for group in groups)]


def main(argv: Sequence[str] | None = None) -> Report | None:
    """Measure all workloads and save the report."""
    parser = Parser("speed", __doc__)
    parser.add_argument(
        "--workloads", nargs="+", default=["W"], help="beginnings of labels, such as W1 'W6 500'"
    )
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=PEERS)
    parser.add_argument("--precisions", nargs="+", default=["float64"])
    parser.add_argument("--seconds", type=float, default=2.0, help="CPU seconds per measurement")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--measure", metavar="LABEL", help="used inside")
    arguments = parser.read(argv)
    if arguments.measure:
        [workload] = [w for w in WORKLOADS if w.label == arguments.measure]
        found = measure(workload, arguments.peers, arguments.seconds, arguments.repeats)
        say(json.dumps(found))
        return None
    workloads = selected(arguments.workloads)
    if not workloads:
        parser.error(f"no such workloads: {arguments.workloads}")
    missing = [name for name in arguments.peers if not PEERS[name].is_installed]
    with one_core() as core:
        runs = {
            precision: run_all(workloads, arguments, precision, SINGLE_THREAD)
            for precision in arguments.precisions
        }
    # A run without double precision has no bars, and does not replace the page of one that has.
    precisions = [] if "float64" in arguments.precisions else arguments.precisions
    report = Report(
        "_".join(["speed", *precisions]),
        "Optimizer steps per second, adam at step size .01, no callbacks; JAX and numba are this "
        "library's backends, “by hand” is JAX with optax in a scan over steps. All on one core "
        "with one thread. Medians over repeats in which the peers take turns, by process CPU time, "
        "which hardly depends on other load; ratios are medians of those of single repeats. "
        "A peer without an entry does not have the workload. First fits start with empty caches."
        + " In single precision, other libraries' fits that diverge begin anew."
        * (arguments.precisions != ["float64"])
        + f" Not installed: {', '.join(missing)}." * bool(missing),
        {
            "core": core,
            "seconds per measurement": arguments.seconds,
            "repeats": arguments.repeats,
            "seeds": 0,
            **package_versions(PEER_PACKAGES),
        },
        tables(runs, workloads, arguments.peers),
        all_checks(workloads, _rates(runs), _chosen(runs)),
        {"runs": runs},
    )
    report.save(arguments)
    return report


def tables(
    runs: Mapping[str, Mapping[str, Row]], workloads: Sequence[Workload], names: Sequence[str]
) -> dict[str, Sequence[Row]]:
    """Tables of the report, by heading."""
    found: dict[str, Sequence[Row]] = {}
    for precision, of in runs.items():
        found[f"Steps per CPU second, {precision}"] = rate_rows(of, names, "cpu")
        found[f"Steps per second of wall time, {precision}"] = rate_rows(of, names, "wall")
        found[f"CPU seconds of the first steps, {precision}"] = first_rows(of, names)
        measured = [w for w in workloads if w.label in of]
        share = f"Share of the time that matrix products need, {precision}"
        if rows := gemm_rows(of, measured, names):
            found[share] = rows
    if rows := compared_elsewhere(workloads, _rates(runs)):
        found["Peers against hand-written JAX, here and on another machine"] = rows
    return found


def _rates(runs: Mapping[str, Mapping[str, Row]]) -> Rates:
    """The rates that bars apply to: double precision, CPU time."""
    of = runs.get("float64", {})
    return {
        label: {name: np.array(x) for name, x in run["rates"]["cpu"].items()}
        for label, run in of.items()
    }


def _chosen(runs: Mapping[str, Mapping[str, Row]]) -> dict[str, str]:
    return {label: run["chosen"] for label, run in runs.get("float64", {}).items()}


if __name__ == "__main__":
    main()
