"""NUTS in the coordinates of a flow against NUTS in a model's own: Neal's funnel, eight schools.

The funnel, with 10 dimensions and a standard deviation of 3 for v, is sampled by plain NUTS and by
`pmf.sample`, the fit's seconds counted, both by one sampler with equally many draws. Its flow is
one autoregressive layer: given v all other coordinates are normal with log-scale v / 2, and that is
what the layer has to learn from the first coordinate. Log-scales go beyond ±5 in the tails of v, so
they are clipped at 20 instead of 2, and hidden units are silu: a difference of two is linear, and
smooth where relu has kinks, at which NUTS diverges.

Eight schools are written with their effects centred, where plain NUTS diverges in the neck, and
does not see much of it. Three things let their flow reach down there. The spline bends the
logarithm of tau, whose left tail is exponential. The layer after it shifts before it scales: a
shift of its own would have to be smaller than tau, whatever tau is. And the coordinates, a frame,
are mu, the logarithm of tau, and the differences of the effects from mu, which are what the neck
makes small.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import arviz as az
import numpy as np
import pymc as pm
from xarray import DataTree

import pymc_flows as pmf
from benchmarks._common import Check, Parser, Report, Row, stopwatch

EFFECT = (28, 8, -3, 7, -1, 1, 18, 12)
ERROR = (15, 10, 16, 11, 9, 11, 10, 18)
FORMULAS = {
    "funnel": "iaf(activation=silu, clip=20)-scale-loc",
    "eight schools, centred": (
        "spline(bins=16, bound=10)-iaf(activation=silu, clip=20, shift=before)"
    ),
}
SPEED_BAR, SD_BAR = 3.0, 0.05


def centred_schools() -> pm.Model:
    """Eight schools, the effects themselves as variables."""
    with pm.Model() as model:
        mu = pm.Normal("mu", 0, 5)
        tau = pm.HalfCauchy("tau", 5)
        theta = pm.Normal("theta", mu, tau, shape=8)
        pm.Normal("y", theta, ERROR, observed=EFFECT)
    return model


def around_mu() -> pmf.Frame:
    """Coordinates mu / 5, log tau and (theta - mu) / 5 of the eight schools."""
    scale = np.diag(np.repeat([5.0, 1.0, 5.0], [1, 1, 8]))
    scale[2:, 0] = 5.0
    return pmf.Frame(np.zeros(10), scale)


# Without a frame, `pmf.fit` finds its own.
FITS: dict[str, dict[str, Any]] = {
    "funnel": {},
    "eight schools, centred": {"start": around_mu(), "obj_n_mc": 100, "gradient": "switch"},
}
MODELS: dict[str, Callable[[], pm.Model]] = {
    "funnel": pmf.targets.funnel.model,
    "eight schools, centred": centred_schools,
}


def plain(problem: str, model: pm.Model, run: Mapping[str, Any]) -> DataTree:
    """NUTS in the model's own coordinates, at the acceptance rate that is PyMC's default."""
    ours = ("sampler", "steps", "target_accept")
    given = {name: value for name, value in run.items() if name not in ours}
    nuts = {"chain_method": "sequential"} if run["sampler"] == "numpyro" else {}
    return pm.sample(model=model, nuts_sampler=run["sampler"], nuts=nuts, **given)


def by_flow(problem: str, model: pm.Model, run: Mapping[str, Any]) -> DataTree:
    """A fit, and NUTS in its coordinates."""
    approx = pmf.fit(
        run["steps"],
        formula=FORMULAS[problem],
        model=model,
        random_seed=run["random_seed"],
        progressbar=run["progressbar"],
        **FITS[problem],
    )
    given = {name: value for name, value in run.items() if name != "steps"}
    return pmf.sample(approx, model=model, **given)


PLAIN, OURS = "NUTS", "flow and NUTS"
METHODS = {PLAIN: plain, OURS: by_flow}


def measured(problem: str, method: str, run: Mapping[str, Any]) -> Row:
    """Sample once; the sampler's own time to compile counts, too."""
    model = MODELS[problem]()
    with stopwatch() as seconds:
        tree = METHODS[method](problem, model, run)
    posterior = tree["posterior"].to_dataset()
    ess = min(float(x.min()) for x in az.ess(posterior, method="bulk").data_vars.values())
    watched = posterior["funnel"][..., 0] if problem == "funnel" else np.log(posterior["tau"])
    return {
        "problem": problem,
        "method": method,
        "seed": run["random_seed"],
        "divergences": int(tree["sample_stats"]["diverging"].sum()),
        "smallest bulk ESS": ess,
        "CPU s": seconds.cpu,
        "wall s": seconds.wall,
        "ESS per CPU s": ess / seconds.cpu,
        "steps per draw": float(tree["sample_stats"]["n_steps"].mean()),
        "mean of v or ln tau": float(watched.mean()),
        "sd of v or ln tau": float(watched.std()),
    }


def checks(rows: Sequence[Row]) -> list[Check]:
    """What NUTS in the coordinates of a flow must reach, in its worst run."""

    def of(problem: str, method: str, column: str) -> np.ndarray:
        found = [r[column] for r in rows if (r["problem"], r["method"]) == (problem, method)]
        return np.array(found, dtype=float)

    found = []
    for problem in FORMULAS:
        count = of(problem, OURS, "divergences")
        if len(count):
            worst = int(count.max())
            found.append(Check(f"{problem}: divergences", worst, "= 0", worst == 0))
    sd = of("funnel", OURS, "sd of v or ln tau")
    if len(sd):
        error = float(np.abs(sd / pmf.targets.funnel.scale - 1).max())
        what = "funnel: |sd of v / 3 − 1|"
        found.append(Check(what, error, f"≤ {SD_BAR}", error <= SD_BAR))
    speed = of("funnel", OURS, "ESS per CPU s"), of("funnel", PLAIN, "ESS per CPU s")
    if all(map(len, speed)):
        ratio = float((speed[0] / speed[1]).min())
        what = "funnel: smallest bulk ESS per second, fit included, over that of plain NUTS"
        found.append(Check(what, ratio, f"≥ {SPEED_BAR}", ratio >= SPEED_BAR))
    return found


def main(argv: Sequence[str] | None = None) -> Report:
    """Sample with all seeds and save the report."""
    parser = Parser("neutra", __doc__)
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 1 (3)")
    parser.add_argument("--steps", type=int, default=20_000, help="steps of a fit (20,000)")
    parser.add_argument("--draws", type=int, default=1_000, help="draws per chain (1,000)")
    parser.add_argument("--tune", type=int, default=1_000, help="steps of adaptation (1,000)")
    parser.add_argument("--chains", type=int, default=4, help="number of chains (4)")
    samplers = ("nutpie", "numpyro", "pymc")
    parser.add_argument("--sampler", default="numpyro", choices=samplers, help="(numpyro)")
    parser.add_argument("--target-accept", type=float, default=0.98, help="of pmf.sample (0.98)")
    parser.add_argument("--problems", nargs="+", default=list(MODELS), choices=MODELS)
    arguments = parser.read(argv)
    names = ("steps", "draws", "tune", "chains", "sampler", "target_accept")
    settings = {name: getattr(arguments, name) for name in names}
    quiet = {"progressbar": False, "compute_convergence_checks": False, "quiet": True}
    rows = [
        measured(problem, method, {**settings, **quiet, "random_seed": seed})
        for problem in arguments.problems
        for seed in range(1, arguments.seeds + 1)
        for method in METHODS
    ]
    about = (
        "NUTS in a model's own coordinates, and in those of a flow that is fitted first. The "
        "seconds include the fit and all that is compiled; one process, so that what depends on no "
        "model is compiled once, by plain NUTS, which comes first. v is the funnel's first "
        "coordinate, normal with standard deviation 3."
    )
    formulas = {f"flow of {problem}": FORMULAS[problem] for problem in arguments.problems}
    report = Report(
        "neutra",
        about,
        {"seeds": f"1 to {arguments.seeds}", **settings, **formulas},
        {"All runs": rows},
        checks(rows),
    )
    report.save(arguments)
    return report


if __name__ == "__main__":
    logging.getLogger("pymc_flows").setLevel(logging.ERROR)
    main()
