"""The standard deviation of a conjugate posterior, fitted with the defaults.

mu ~ N(0, 1), y_i ~ N(mu, 1), 10 observations: the posterior is N(Σy/11, 1/11), which `pmf.fit`'s
default flow contains. PyMC's ADVI with its own defaults stands beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pymc as pm
import pytensor

import pymc_flows as pmf
from benchmarks._common import Check, Parser, Report, Row, stopwatch
from pymc_flows.backends.modes import NUMPY

N_OBSERVED = 10
MEAN_BAR, WORST_BAR = 0.01, 0.03


def conjugate_model() -> tuple[pm.Model, float, float]:
    """Return the model with its exact posterior mean and standard deviation."""
    y = np.random.default_rng(0).normal(1.0, 1.0, N_OBSERVED)
    with pm.Model() as model:
        mu = pm.Normal("mu", 0.0, 1.0)
        pm.Normal("y", mu, 1.0, observed=y)
    return model, y.sum() / (N_OBSERVED + 1), (N_OBSERVED + 1) ** -0.5


def fit_flow(model: pm.Model, seed: int, steps: int | None) -> pm.Approximation:
    """Fit with this library's defaults."""
    given = {} if steps is None else {"n": steps}
    return pmf.fit(model=model, random_seed=seed, progressbar=False, **given)


def fit_advi(model: pm.Model, seed: int, steps: int | None) -> pm.Approximation:
    """Fit with PyMC's defaults."""
    given = {} if steps is None else {"n": steps}
    return pm.fit(model=model, random_seed=seed, progressbar=False, **given)


METHODS: dict[str, Callable[[pm.Model, int, int | None], pm.Approximation]] = {
    "pmf.fit()": fit_flow,
    "pm.fit(), ADVI": fit_advi,
}


def fit_once(method: str, seed: int, steps: int | None) -> Row:
    """Fit with one seed; errors relative to the exact posterior."""
    model, mean, sd = conjugate_model()
    with stopwatch() as seconds:
        approx = METHODS[method](model, seed, steps)
    found_mean, found_sd = pytensor.function([], [approx.mean, approx.std], mode=NUMPY)()
    return {
        "seed": seed,
        "mean_error": float((found_mean[0] - mean) / sd),
        "sd_error": float(found_sd[0] / sd - 1),
        "cpu_seconds": seconds.cpu,
    }


def summary(method: str, rows: Sequence[Row]) -> Row:
    """Condense the seeds of one method."""
    sd = np.array([row["sd_error"] for row in rows])
    mean = np.array([row["mean_error"] for row in rows])
    return {
        "method": method,
        "mean of sd/exact − 1": sd.mean(),
        "lowest": sd.min(),
        "highest": sd.max(),
        "largest error of the mean, in sd": np.abs(mean).max(),
        "CPU s per fit": float(np.median([row["cpu_seconds"] for row in rows])),
    }


def main(argv: Sequence[str] | None = None) -> Report:
    """Fit with all seeds and save the report."""
    parser = Parser("conjugate", __doc__)
    parser.add_argument("--seeds", type=int, default=20, help="number of seeds, from 0 (20)")
    parser.add_argument("--steps", type=int, help="other number of steps, to try the script")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    arguments = parser.read(argv)
    runs = {
        method: [fit_once(method, seed, arguments.steps) for seed in range(arguments.seeds)]
        for method in arguments.methods
    }
    checks = []
    if "pmf.fit()" in runs:
        error = np.array([row["sd_error"] for row in runs["pmf.fit()"]])
        mean, worst = abs(error.mean()), np.abs(error).max()
        checks = [
            Check("|mean over seeds of sd/exact − 1|", mean, f"< {MEAN_BAR}", mean < MEAN_BAR),
            Check("worst seed, |sd/exact − 1|", worst, f"< {WORST_BAR}", worst < WORST_BAR),
        ]
    seeds = [
        {
            "method": method,
            "sd/exact − 1 of seeds 0, 1, …": ", ".join(f"{row['sd_error']:+.4f}" for row in rows),
        }
        for method, rows in runs.items()
    ]
    report = Report(
        "conjugate",
        f"Posterior of a normal mean, {N_OBSERVED} observations, exact answer N(Σy/11, 1/11); "
        "defaults throughout.",
        {"seeds": f"0 to {arguments.seeds - 1}", "steps": arguments.steps or "the defaults"},
        {
            "Summary over seeds": [summary(method, rows) for method, rows in runs.items()],
            "All seeds": seeds,
        },
        checks,
        {"runs": runs},
    )
    report.save(arguments)
    return report


if __name__ == "__main__":
    main()
