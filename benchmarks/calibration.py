"""Simulation-based calibration of the default call, on six models of different kinds.

Parameters are drawn from the prior and data given them; draws of fits by the defaults then rank the
true values. Ranks are uniform where fits are exact (Talts et al., arXiv:1804.06788). Of each model
the scalar with the smallest p-value is shown; among many, one below 1 % is no surprise, so that all
scalars of a model are tested together (Bonferroni). Unreliable fits are those that a report does
not call good.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np
import pymc as pm
import pytensor.tensor as pt

import pymc_flows as pmf
from benchmarks._common import Check, Parser, Report, Row, say, stopwatch
from pymc_flows.many import ManyFits

DRAWS, ALPHA = 500, 0.01
# k-hats of few draws that no report would object to.
SMALL = 0.5
RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 3))
GROUPS = {"normal hierarchy": (10, 20), "Poisson hierarchy": (8, 3), "Bernoulli hierarchy": (30, 2)}


def normal() -> pm.Model:
    """Mean and scale of 20 observations."""
    with pm.Model() as model:
        mu, sigma = pm.Normal("mu", 0, 2), pm.HalfNormal("sigma", 1)
        pm.Normal("y", mu, sigma, observed=np.zeros(20))
    return model


def logistic() -> pm.Model:
    """Logistic regression of 60 rows on three predictors."""
    with pm.Model() as model:
        a, b = pm.Normal("a", 0, 1.5), pm.Normal("b", 0, 1, shape=3)
        pm.Bernoulli("y", logit_p=a + X @ b, observed=np.zeros(len(X), int))
    return model


def student() -> pm.Model:
    """Regression of 60 rows with heavy tails."""
    with pm.Model() as model:
        a, b = pm.Normal("a", 0, 2), pm.Normal("b", 0, 1, shape=3)
        sigma = pm.HalfNormal("sigma", 1)
        pm.StudentT("y", nu=4, mu=a + X @ b, sigma=sigma, observed=np.zeros(len(X)))
    return model


def hierarchy(name: str) -> pm.Model:
    """Intercepts of groups, not centred."""
    groups, rows = GROUPS[name]
    group = np.repeat(np.arange(groups), rows)
    with pm.Model() as model:
        mu, tau = pm.Normal("mu", 0, 1), pm.HalfNormal("tau", 1)
        level = mu + tau * pm.Normal("offset", 0, 1, shape=groups)[group]
        if name.startswith("normal"):
            sigma = pm.HalfNormal("sigma", 1)
            pm.Normal("y", level, sigma, observed=np.zeros(len(group)))
        elif name.startswith("Poisson"):
            pm.Poisson("y", pt.exp(level), observed=np.zeros(len(group), int))
        else:
            pm.Bernoulli("y", logit_p=level, observed=np.zeros(len(group), int))
    return model


MODELS: dict[str, Callable[[], pm.Model]] = {
    "normal": normal,
    "logistic regression": logistic,
    "t regression": student,
    **{name: lambda name=name: hierarchy(name) for name in GROUPS},
}


def measure(name: str, n: int) -> Row:
    """Calibrate the default call of one model by n simulations."""
    with stopwatch() as seconds:
        found = pmf.calibrate(MODELS[name](), n, draws=DRAWS, random_seed=1, progressbar=False)
    p = found.p_values()
    worst = min(p, key=lambda scalar: p[scalar])
    uniform = found.scalars()[worst]
    return {
        "model": name,
        "simulations": found.n,
        "without a result": len(found.fits.errors),
        "unreliable": _unreliable(found.fits),
        "scalars": len(p),
        "smallest p": p[worst],
        "of": worst,
        "its mean u": float(uniform.mean()),
        "its spread": float(np.abs(2 * uniform - 1).mean()),
        "p of all": min(1.0, len(p) * p[worst]),
        "in 80 % intervals": float(
            np.mean([np.mean(np.abs(2 * u - 1) <= 0.8) for u in found.scalars().values()])
        ),
        "CPU s each": seconds.cpu / n,
    }


def _unreliable(fits: ManyFits) -> int:
    """Fits that a report does not call good; those with small k-hats need none."""
    khat = fits.tree["fit_stats"].to_dataset()["khat"].values
    doubtful = np.flatnonzero(khat > SMALL).tolist()
    return sum(pmf.report(fits[k], random_seed=1).status != "good" for k in doubtful)


def checks(rows: Sequence[Row]) -> list[Check]:
    """Compare with the bar: uniform ranks, or reports that say no."""
    return [
        Check(
            f"{row['model']}: p of all scalars together",
            row["p of all"],
            f"> {ALPHA}, or most fits unreliable",
            row["p of all"] > ALPHA or 2 * row["unreliable"] > row["simulations"],
        )
        for row in rows
    ]


def main(argv: Sequence[str] | None = None) -> Report | None:
    """Calibrate all models and save the report."""
    parser = Parser("calibration", (__doc__ or "").split("\n")[0])
    parser.add_argument("--simulations", type=int, default=200, help="of each model (200)")
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    arguments = parser.read(argv)
    parser.refuse_unknown(arguments.models, list(MODELS))
    rows: list[Row] = []
    report = None
    for name in arguments.models:
        rows.append(measure(name, arguments.simulations))
        say(", ".join(f"{k} {v}" for k, v in rows[-1].items()))
        report = Report(
            "calibration",
            (__doc__ or "").split("\n\n")[1].replace("\n", " "),
            {"draws": DRAWS, "groups, rows of each": {k: list(v) for k, v in GROUPS.items()}},
            {"Models": rows},
            checks(rows),
        )
        report.save(arguments, show=name == arguments.models[-1])  # a model takes minutes
    return report


if __name__ == "__main__":
    logging.getLogger("pymc_flows").setLevel(logging.ERROR)
    main()
