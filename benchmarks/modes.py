"""Whether restarts find all modes of a posterior, and weigh them right.

Each posterior has modes far apart, whose shares of the mass are known. A run has found all of them
if every share in draws of the result is within 0.02 of the truth and its evidence within 0.05 nats.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pymc as pm
import pytensor.tensor as pt

import pymc_flows as pmf
from benchmarks._common import Check, Parser, Report, Row, say, stopwatch
from pymc_flows.approximation import MixtureState

RADIUS, SHARE_ERROR, EVIDENCE_ERROR, BAR = 15.0, 0.02, 0.05, 0.9
DRAWS = 8_000


@dataclass(frozen=True)
class Problem:
    """A posterior and the modes that it has.

    Attributes
    ----------
    model : pymc.Model
    shares : ndarray, shape (modes,)
    which : callable
        Index of the mode (n,) of points (n, dim) of the unconstrained space.
    log_z : float or None
        In nats, where it is known.
    """

    model: pm.Model
    shares: np.ndarray
    which: Callable[[np.ndarray], np.ndarray]
    log_z: float | None


def eight_gaussians(dim: int, seed: int) -> Problem:
    """Standard Gaussians in random directions; the heaviest has eight times the least mass."""
    means = np.random.default_rng(seed).standard_normal((8, dim))
    if dim == 2:
        angles = np.arange(8) * np.pi / 4
        means = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    means *= RADIUS / np.linalg.norm(means, axis=1)[:, None]
    shares = np.arange(1, 9) / 36
    with pm.Model() as model:
        x = pm.Flat("x", shape=dim)
        logs = -0.5 * pt.sqr(x - means).sum(axis=-1) - dim / 2 * np.log(2 * np.pi)
        pm.Potential("target", pt.logsumexp(logs + np.log(shares)))
    return Problem(
        model,
        shares,
        lambda z: np.square(z[:, None] - means).sum(axis=-1).argmin(axis=1),
        0.0,
    )


def signs(seed: int) -> Problem:
    """A regression that knows two slopes but for their signs: four modes."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((300, 2))
    y = np.abs(1.5 * x[:, 0]) + np.abs(0.8 * x[:, 1]) + 0.3 * rng.standard_normal(300)
    with pm.Model() as model:
        slope = pm.Normal("slope", 0, 2, shape=2)
        sigma = pm.HalfNormal("sigma", 1)
        pm.Normal("y", pt.abs(slope * x).sum(axis=1), sigma, observed=y)
    return Problem(model, np.full(4, 0.25), lambda z: (z[:, :2] > 0) @ [1, 2], None)


def labels(seed: int) -> Problem:
    """A mixture of three Gaussians whose labels can be switched: six modes."""
    rng = np.random.default_rng(seed)
    y = np.concatenate([rng.normal(m, 0.7, size=80) for m in (-4.0, 0.0, 5.0)])
    with pm.Model() as model:
        mu = pm.Normal("mu", 0, 5, shape=3, initval=[-1.0, 0.0, 1.0])
        pm.NormalMixture("y", w=np.full(3, 1 / 3), mu=mu, sigma=0.7, observed=y)

    def which(z: np.ndarray) -> np.ndarray:
        order = np.argsort(z, axis=1)
        _, index = np.unique(np.vstack([PERMUTATIONS, order]), axis=0, return_inverse=True)
        return index.ravel()[6:]  # a column in NumPy 2.0

    return Problem(model, np.full(6, 1 / 6), which, None)


PERMUTATIONS = np.array([[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]])

PROBLEMS: dict[str, Callable[[int], Problem]] = {
    "eight Gaussians, 2 dimensions": lambda seed: eight_gaussians(2, seed),
    "eight Gaussians, 20 dimensions": lambda seed: eight_gaussians(20, seed),
    "signs of two slopes": signs,
    "labels of three parts": labels,
}


def run(name: str, seed: int, arguments: Any) -> Row:
    """Fit, and compare with the truth."""
    problem = PROBLEMS[name](seed)
    with stopwatch() as seconds:
        approx = pmf.fit(
            arguments.steps,
            model=problem.model,
            restarts=arguments.restarts,
            random_seed=seed,
            progressbar=False,
        )
    points, _ = approx.sample_and_log_prob(DRAWS, random_seed=seed)
    counts = np.bincount(problem.which(points), minlength=len(problem.shares))
    error = float(np.abs(counts / DRAWS - problem.shares).max())
    quality = approx.restarts.quality
    off = 0.0 if problem.log_z is None else quality.log_evidence - problem.log_z
    return {
        "posterior": name,
        "seed": seed,
        "modes": int((counts > 0).sum()),
        "of": len(problem.shares),
        "largest error of a share": error,
        "error of log Z": None if problem.log_z is None else off,
        "k-hat": quality.khat,
        "log Z − ELBO": quality.log_evidence - quality.elbo,
        "result": "mixture" if isinstance(approx.q, MixtureState) else "one flow",
        "all": bool(error < SHARE_ERROR and abs(off) < EVIDENCE_ERROR),
        "CPU s": seconds.cpu,
    }


def checks(rows: Sequence[Row]) -> list[Check]:
    """Compare with the bar."""
    found = []
    for name in dict.fromkeys(row["posterior"] for row in rows):
        mine = [row["all"] for row in rows if row["posterior"] == name]
        share = float(np.mean(mine))
        what = f"share of {len(mine)} seeds with all modes in their proportions: {name}"
        found.append(Check(what, share, f"≥ {BAR}", share >= BAR))
    return found


def main(argv: Sequence[str] | None = None) -> Report:
    """Fit all posteriors with all seeds and save the report."""
    parser = Parser("modes", (__doc__ or "").split("\n")[0])
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS), choices=PROBLEMS)
    parser.add_argument("--seeds", type=int, default=10, help="number of seeds, from 0 (10)")
    parser.add_argument("--restarts", type=int, default=8, help="restarts of each fit (8)")
    parser.add_argument("--steps", type=int, default=10_000, help="steps of each fit (10,000)")
    arguments = parser.read(argv)
    rows = []
    for name in arguments.problems:
        for seed in range(arguments.seeds):
            rows.append(run(name, seed, arguments))
            say(", ".join(f"{k} {v}" for k, v in rows[-1].items()))
    report = Report(
        "modes",
        f"`pmf.fit(restarts={arguments.restarts})` on posteriors with modes far apart. All modes "
        f"are found if each share of {DRAWS:,} draws is within {SHARE_ERROR} of the truth and the "
        f"evidence, where it is known, within {EVIDENCE_ERROR} nats.",
        {"seeds": f"0 to {arguments.seeds - 1}", "steps": f"{arguments.steps:,}, where any"},
        {"Runs": rows},
        checks(rows),
    )
    report.save(arguments)
    return report


if __name__ == "__main__":
    logging.getLogger("pymc_flows").setLevel(logging.ERROR)
    main()
