"""Two bars of accuracy and speed on targets that this script makes itself.

A logistic regression with 100,000 rows, against NUTS; and a normal posterior in 100 dimensions
with condition number 10,000, against full-rank ADVI.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pymc as pm

import pymc_flows as pmf
from benchmarks._accuracy_tables import NUTS, OURS, Bars, of, seconds_to_bars
from benchmarks._common import Check, Parser, Report, Row, say, stopwatch
from benchmarks._compile_clock import compile_clock
from benchmarks._methods import by_variable, moments
from benchmarks._posteriors import Collection, Draws, Reference, score, summarized
from benchmarks.accuracy import fit_once
from pymc_flows.targets import Gaussian, gaussian

TARGETS = CORRELATED, LOGISTIC = "correlated", "logistic"
ROWS, PREDICTORS = 100_000, 50
# Draws of importance sampling behind the reference of the logistic regression.
WEIGHTED = 10_000
# As many draws as nutpie tunes for by default: enough to see when the bars are reached.
NUTS_DRAWS = 400
DIM, CONDITION = 100, 1e4
SD_BAR = 0.03
TIME_BAR = 3.0
SD_DRAWS = 100_000
FORMULAS = ("auto", "tril-loc")
# Full-rank ADVI goes on by so many steps until it is as accurate, up to so many in all.
ADVI_PART, ADVI_STEPS = 10_000, 200_000
ADVI_OPTIMIZERS = {"its default": None, "adam(0.01)": 0.01}
KEPT = (
    *("posterior", "method", "seed", "dim", "worst mean error"),
    *("lowest sd ratio", "highest sd ratio", "k-hat"),
    *("run CPU s", "run wall s", "compile CPU s", "share of run", "is good", "note"),
)
ABOUT = (
    "Two targets that the script makes. The normal has condition number "
    f"{CONDITION:,.0f} and axes that no coordinate follows; errors of standard deviations are by "
    f"{SD_DRAWS:,} draws (full-rank ADVI: exact), and full-rank ADVI goes on until it is as "
    f"accurate as the bar asks, for {ADVI_STEPS:,} steps at most. The logistic regression is "
    "scored against importance sampling from its Laplace approximation, whose weights are nearly "
    f"equal; NUTS is nutpie's, with {NUTS_DRAWS} draws and as many to tune, of which *share of "
    "run* was needed. CPU seconds, compiling apart."
)


class Logistic(Collection):
    """A logistic regression whose posterior is known by importance sampling.

    With so many rows the posterior is nearly its Laplace approximation, so that the weights of
    draws of the latter are nearly equal; neither contender has a part in it.
    """

    def __init__(self, rows: int = ROWS, predictors: int = PREDICTORS):
        rng = np.random.default_rng(1)
        self.names = (f"logistic {rows:,} × {predictors}",)
        x = rng.standard_normal((rows, predictors))
        x[:, 1:] += 0.5 * x[:, :-1]
        x[:, 0] = 1
        weights = rng.normal(0, 0.3, predictors)
        self._x, self._y = x, rng.random(rows) < 1 / (1 + np.exp(-x @ weights))

    def model(self, name: str) -> pm.Model:
        """Build the model."""
        with pm.Model() as model:
            beta = pm.Normal("beta", 0, 2, shape=self._x.shape[1])
            pm.Bernoulli("y", logit_p=self._x @ beta, observed=self._y.astype(int))
        return model

    def reference(self, name: str) -> Reference:
        """Moments and draws."""
        return self._reference

    def score(self, draws: Draws, reference: Reference) -> Mapping[str, Any]:
        """Score as described for `Collection.score`."""
        return score(draws, reference)

    def log_density(self, beta: np.ndarray) -> np.ndarray:
        """Unnormalised log posterior (n,) at (n, predictors), in nats."""
        logits = self._x @ beta.T
        return self._y @ logits - np.logaddexp(0, logits).sum(0) - (beta**2).sum(1) / 8

    @cached_property
    def _reference(self) -> Reference:
        mode, precision = self._laplace()
        root = np.linalg.inv(np.linalg.cholesky(precision)).T
        half = np.random.default_rng(2).standard_normal((WEIGHTED // 2, len(mode)))
        noise = np.concatenate([half, -half])
        beta = mode + noise @ root.T
        parts = np.array_split(beta, max(1, len(beta) // 50))
        log_weights = np.concatenate([self.log_density(part) for part in parts])
        log_weights += 0.5 * (noise**2).sum(1)
        weights = np.exp(log_weights - log_weights.max())
        weights /= weights.sum()
        if 1 / (weights**2).sum() < WEIGHTED / 2:
            raise RuntimeError("the Laplace approximation is too far off to be a reference")
        mean = weights @ beta
        chosen = np.random.default_rng(3).choice(len(beta), 1_000, p=weights)
        return summarized({"beta": beta[chosen]}) | {
            "mean": {"beta": mean},
            "sd": {"beta": np.sqrt(weights @ (beta - mean) ** 2)},
        }

    def _laplace(self) -> tuple[np.ndarray, np.ndarray]:
        """Mode (dim,) and negative Hessian there (dim, dim), by Newton's method."""
        beta = np.zeros(self._x.shape[1])
        for _ in range(20):
            p = 1 / (1 + np.exp(-self._x @ beta))
            precision = (self._x * (p * (1 - p))[:, None]).T @ self._x + np.eye(len(beta)) / 4
            step = np.linalg.solve(precision, self._x.T @ (self._y - p) - beta / 4)
            beta = beta + step
            if np.abs(step).max() < 1e-10:
                return beta, precision
        raise RuntimeError("Newton's method did not converge")


def correlated_normal(dim: int = DIM) -> Gaussian:
    """A normal whose correlations no axis follows, with the condition number of the bar."""
    rng = np.random.default_rng(4)
    rotation, _ = np.linalg.qr(rng.standard_normal((dim, dim)))
    values = np.geomspace(1, CONDITION, dim)
    cov = (rotation * values) @ rotation.T
    return gaussian(rng.standard_normal(dim), (cov + cov.T) / 2, name="x")


def sd_error(sds: np.ndarray, target: Gaussian) -> float:
    """Largest relative error of standard deviations (dim,)."""
    return float(np.abs(sds / np.sqrt(np.diagonal(np.array(target.cov))) - 1).max())


def our_fit(target: Gaussian, formula: str, seed: int, steps: int | None) -> Row:
    """Fit with defaults, and measure standard deviations by fresh draws."""
    given = {} if steps is None else {"n": steps}
    with compile_clock() as clock, stopwatch() as seconds:
        approx = pmf.fit(
            formula=formula, model=target.model(), random_seed=seed, progressbar=False, **given
        )
    draws = by_variable(approx.sample(SD_DRAWS, random_seed=seed))[target.name]
    return {
        "method": formula,
        "seed": seed,
        "largest sd error": sd_error(draws.std(0), target),
        "run CPU s": seconds.cpu - clock.seconds.cpu,
        "compile CPU s": clock.seconds.cpu,
        "note": str(approx.formula),
    }


def full_rank_advi(target: Gaussian, optimizer: str, seed: int, steps: int) -> Row:
    """Let full-rank ADVI go on until it is as accurate as the bar asks, or for so many steps."""
    rate = ADVI_OPTIMIZERS[optimizer]
    given = {} if rate is None else {"obj_optimizer": pm.adam(learning_rate=rate)}
    taken, error = 0, np.inf
    with target.model():
        inference = pm.FullRankADVI(random_seed=seed)
    run, compiling = 0.0, 0.0
    while taken < steps and not error < SD_BAR:
        part = min(ADVI_PART, steps - taken)
        with compile_clock() as clock, stopwatch() as seconds:
            if taken:
                inference.refine(part, progressbar=False)
            else:
                inference.fit(part, progressbar=False, **given)
        taken += part
        run += seconds.cpu - clock.seconds.cpu
        compiling += clock.seconds.cpu
        _, cov = moments(inference.approx)
        error = sd_error(np.sqrt(np.diagonal(cov)), target)
    return {
        "method": f"full-rank ADVI, {optimizer}",
        "seed": seed,
        "largest sd error": error,
        "run CPU s": run,
        "compile CPU s": compiling,
        "note": f"{taken:,} steps",
    }


def correlated_rows(dim: int, seeds: int, steps: int | None) -> list[Row]:
    """All fits of the correlated normal."""
    target = correlated_normal(dim)
    rows = [our_fit(target, f, seed, steps) for f in FORMULAS for seed in range(seeds)]
    return rows + [full_rank_advi(target, name, 0, steps or ADVI_STEPS) for name in ADVI_OPTIMIZERS]


def correlated_checks(rows: Sequence[Row]) -> list[Check]:
    """Accuracy, and time beside the faster of the runs of full-rank ADVI."""
    rivals = [r for r in rows if r["method"] not in FORMULAS]
    accurate = [r for r in rivals if r["largest sd error"] < SD_BAR]
    other = min(r["run CPU s"] for r in accurate or rivals)
    until = "until as accurate" if accurate else "which never was as accurate"
    found = []
    for formula in FORMULAS:
        own = of(rows, method=formula)
        error = max(r["largest sd error"] for r in own)
        ratio = float(np.median([r["run CPU s"] for r in own])) / other
        what = f"correlated normal, {formula}"
        found += [
            Check(f"{what}: largest error of a standard deviation", error, f"< {SD_BAR}",
                  error < SD_BAR),
            Check(f"{what}: CPU seconds : full-rank ADVI, {until}", ratio, f"≤ {TIME_BAR:g}",
                  ratio <= TIME_BAR),
        ]  # fmt: skip
    return found


def logistic_rows(collection: Logistic, methods: Sequence[str], seeds: int) -> list[Row]:
    """All fits of the logistic regression."""
    [name] = collection.names
    lengths = {NUTS: NUTS_DRAWS}
    rows = []
    for method in methods:
        for seed in range(seeds):
            rows.append(fit_once(collection, name, method, seed, lengths.get(method), Bars()))
            say(", ".join(f"{k} {v}" for k, v in rows[-1].items()))
    return rows


def logistic_checks(rows: Sequence[Row]) -> list[Check]:
    """Seconds until good, beside NUTS."""
    own, other = (seconds_to_bars(of(rows, method=m)) for m in (OURS, NUTS))
    ratio = math.nan if own is None or other is None else own / other
    what = f"logistic regression: CPU seconds until good, {OURS} : {NUTS}"
    return [Check(what, ratio, "< 1", own is not None and (other is None or own < other))]


def main(argv: Sequence[str] | None = None) -> Report:
    """Fit both targets, and save the report."""
    parser = Parser("accuracy_bars", (__doc__ or "").split("\n")[0])
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--methods", nargs="+", default=[OURS, NUTS], help="of the regression")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds, from 0 (1)")
    parser.add_argument("--rows", type=int, default=ROWS, help="of the regression")
    parser.add_argument("--dim", type=int, default=DIM, help="of the normal")
    parser.add_argument("--steps", type=int, help="of fits of the normal, to try the script")
    arguments = parser.read(argv)
    tables: dict[str, Sequence[Row]] = {}
    checks = []
    if CORRELATED in arguments.targets:
        rows = correlated_rows(arguments.dim, arguments.seeds, arguments.steps)
        tables["Correlated normal"] = rows
        checks += correlated_checks(rows)
    if LOGISTIC in arguments.targets:
        rows = logistic_rows(Logistic(arguments.rows), arguments.methods, arguments.seeds)
        tables["Logistic regression"] = [{k: row[k] for k in KEPT} for row in rows]
        checks += logistic_checks(rows)
    report = Report(
        "accuracy_bars",
        ABOUT,
        {"seeds": f"0 to {arguments.seeds - 1}", "rows": arguments.rows, "dim": arguments.dim},
        tables,
        checks,
    )
    report.save(arguments)
    return report


if __name__ == "__main__":
    main()
