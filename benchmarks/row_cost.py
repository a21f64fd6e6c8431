"""What a row costs: CPU time of a step per row and draw, for 10,000, 100,000 and a million rows.

The step is one of 'scale-loc' with 64 draws, for a likelihood over a linear predictor of 20 columns
or over effects of 50 groups. Each line is measured in a process of its own: one core, one thread,
steps of `NFVI.refine`, the lowest of some repeats. "Whole" is the same step with all rows at once.

The machine's limit is that of the two matrix products that the gradient cannot do without, X b and
rᵀ X, and of one exponential per row and draw, each in tiles that stay in the cache, by NumPy or by
JAX, whichever is faster.
"""

from __future__ import annotations

import json
import math
import resource
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pymc as pm
import pytensor.tensor as pt

from benchmarks._common import Check, Parser, Report, Row, say, stopwatch
from benchmarks._process import SINGLE_THREAD, one_core, run_child
from benchmarks.peers import set_jax_precision
from pymc_flows import NFVI
from pymc_flows.model.tiles import find

SIZES = (10_000, 100_000, 1_000_000)
DRAWS, COLUMNS, GROUPS, CATEGORIES = 64, 20, 50, 4
# Of the cost per row: the dearest size against the cheapest; and the share of the limit on JAX.
FLAT, SHARE = 1.3, 0.5
TILE, ROUNDS = 1024, 100
# Row steps of a repeat.
WORK, LEAST_STEPS = 2_000_000, 3

type Predictor = Any


def _cutpoints() -> Any:
    start = np.arange(CATEGORIES - 1.0)
    ordered = pm.distributions.transforms.ordered
    return pm.Normal("cutpoints", 0, 1, shape=CATEGORIES - 1, transform=ordered, initval=start)


LIKELIHOODS: dict[str, Callable[[Predictor, np.ndarray], Any]] = {
    "Bernoulli": lambda eta, k: pm.Bernoulli("y", logit_p=eta, observed=k > 1),
    "binomial": lambda eta, k: pm.Binomial("y", n=10, logit_p=eta, observed=k),
    "Poisson": lambda eta, k: pm.Poisson("y", mu=pt.exp(eta), observed=k),
    "normal": lambda eta, k: pm.Normal("y", eta, pm.HalfNormal("s", 1.0), observed=1.0 * k),
    "negative binomial": lambda eta, k: pm.NegativeBinomial(
        "y", mu=pt.exp(eta), alpha=pm.Exponential("alpha", 1.0), observed=k
    ),
    "Student-t": lambda eta, k: pm.StudentT(
        "y", nu=pm.Gamma("nu", 2, 0.1), mu=eta, sigma=pm.HalfNormal("s", 1.0), observed=1.0 * k
    ),
    "ordered": lambda eta, k: pm.OrderedLogistic(
        "y", eta=eta, cutpoints=_cutpoints(), observed=k, compute_p=False
    ),
    "categorical": lambda eta, k: pm.Categorical("y", logit_p=eta, observed=k),
}
PREDICTORS = ("linear", "gathered")
MAIN = ("Bernoulli", "linear")


def model_of(likelihood: str, predictor: str, n: int) -> pm.Model:
    """A model of n rows, whose data say nothing."""
    rng = np.random.default_rng(0)
    more = (CATEGORIES,) if likelihood == "categorical" else ()
    with pm.Model() as model:
        if predictor == "linear":
            columns = rng.normal(size=(n, COLUMNS))
            eta = pt.dot(columns, pm.Normal("b", 0, 1, shape=(COLUMNS, *more)))
        else:
            eta = pm.Normal("a", 0, 1, shape=(GROUPS, *more))[rng.integers(GROUPS, size=n)]
        LIKELIHOODS[likelihood](eta, rng.integers(CATEGORIES, size=n))
    return model


def measure(backend: str, likelihood: str, predictor: str, n: int, how: str, repeats: int) -> Row:
    """Nanoseconds of a step per row and draw, and megabytes, in this process."""
    if how == "whole":
        find.MIN_TILES = math.inf
    inference = NFVI("scale-loc", model=model_of(likelihood, predictor, n), random_seed=0)
    inference.fit(2, obj_n_mc=DRAWS, backend=backend, progressbar=False)
    steps = max(LEAST_STEPS, WORK // n)
    seconds = []
    for _ in range(repeats):
        with stopwatch() as one:
            inference.refine(steps, progressbar=False)
        seconds.append(one)
    unit = 1e9 / (steps * n * DRAWS)
    return {
        "CPU ns": unit * min(x.cpu for x in seconds),
        "wall ns": unit * min(x.wall for x in seconds),
        "peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


# ---------------------------------------------------------------------------------------- the limit


def limit(repeats: int) -> Row:
    """Nanoseconds of the products and of an exponential, per row and draw, in this process."""
    rng = np.random.default_rng(0)
    columns = rng.normal(size=(TILE, COLUMNS))
    effects, eta = rng.normal(size=(DRAWS, COLUMNS)), -rng.random((DRAWS, TILE))
    works = {**_works_of_numpy(columns, effects, eta), **_works_of_jax(columns, effects, eta)}
    found = {}
    for name, work in works.items():
        work()
        seconds = []
        for _ in range(repeats):
            with stopwatch() as one:
                work()
            seconds.append(one.cpu)
        found[name] = 1e9 * min(seconds) / (ROUNDS * TILE * DRAWS)
    best = {
        what: min(found[f"{what}, {library}"] for library in ("NumPy", "JAX"))
        for what in ("products", "exponential")
    }
    return {**found, "limit": sum(best.values())}


def _works_of_numpy(
    columns: np.ndarray, effects: np.ndarray, eta: np.ndarray
) -> dict[str, Callable[[], object]]:
    out = np.empty_like(eta)

    def products() -> None:
        for _ in range(ROUNDS):
            np.matmul(effects, columns.T, out=out)
            np.matmul(out, columns)

    def exponential() -> None:
        for _ in range(ROUNDS):
            np.exp(eta, out=out)

    return {"products, NumPy": products, "exponential, NumPy": exponential}


def _works_of_jax(
    columns: np.ndarray, effects: np.ndarray, eta: np.ndarray
) -> dict[str, Callable[[], object]]:
    import jax
    from jax.lax import dot_general, fori_loop

    set_jax_precision()

    @jax.jit
    def products(effects: Any, columns: Any) -> Any:
        def both(_: Any, b: Any) -> Any:
            found = dot_general(b, columns, (((1,), (1,)), ((), ())))
            return 1e-6 * dot_general(found, columns, (((1,), (0,)), ((), ())))

        return fori_loop(0, ROUNDS, both, effects)

    @jax.jit
    def exponential(eta: Any) -> Any:
        return fori_loop(0, ROUNDS, lambda _, x: -jax.numpy.exp(x), eta)

    return {
        "products, JAX": lambda: products(effects, columns).block_until_ready(),
        "exponential, JAX": lambda: exponential(eta).block_until_ready(),
    }


# ----------------------------------------------------------------------------------------- the page


def measure_all(
    backend: str,
    cases: Sequence[tuple[str, str]],
    sizes: Sequence[int],
    hows: Sequence[str],
    n: int,
) -> list[Row]:
    """A line for each likelihood, predictor and way, with a column for each size."""
    rows = []
    for likelihood, predictor in cases:
        for how in hows:
            found = {}
            for size in sizes:
                given = ["--measure", backend, likelihood, predictor, size, how]
                found[size] = run_child("row_cost", [*given, "--repeats", n], SINGLE_THREAD)
                costs = ", ".join(f"{k} {v:.3g}" for k, v in found[size].items())
                say(f"{backend}, {likelihood}, {predictor}, {size:,} rows, {how}: {costs}")
            costs = [found[size]["CPU ns"] for size in sizes]
            rows.append(
                {
                    "backend": backend,
                    "likelihood": likelihood,
                    "predictor": predictor,
                    "rows": how,
                    **{f"{size:,}: ns": found[size]["CPU ns"] for size in sizes},
                    "dearest / cheapest": max(costs) / min(costs),
                    f"peak MB of {sizes[-1]:,}": found[sizes[-1]]["peak MB"],
                }
            )
    return rows


def checks(rows: Sequence[Row], sizes: Sequence[int], best: float) -> list[Check]:
    """The bars, for the likelihood that they are about."""
    found = []
    for row in rows:
        if (row["likelihood"], row["predictor"], row["rows"]) != (*MAIN, "in tiles"):
            continue
        ratio = row["dearest / cheapest"]
        what = f"{row['backend']}: dearest / cheapest cost of a row"
        found.append(Check(what, ratio, f"≤ {FLAT}", ratio <= FLAT))
        if row["backend"] == "jax":
            share = best / max(row[f"{size:,}: ns"] for size in sizes)
            found.append(
                Check("jax: least share of the limit", share, f"≥ {SHARE}", share >= SHARE)
            )
    return found


def main(argv: Sequence[str] | None = None) -> Report | None:
    """Measure and save the report."""
    parser = Parser("row_cost", __doc__)
    parser.add_argument("--backends", nargs="+", default=["jax", "numba"])
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES))
    parser.add_argument("--likelihoods", nargs="+", default=list(LIKELIHOODS), choices=LIKELIHOODS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--measure", nargs="+", help="used inside")
    arguments = parser.read(argv)
    if arguments.measure:
        what, *given = arguments.measure
        if what == "limit":
            found = limit(arguments.repeats)
        else:
            likelihood, predictor, n, how = given
            found = measure(what, likelihood, predictor, int(n), how, arguments.repeats)
        say(json.dumps(found))
        return None
    others = [(x, p) for x in arguments.likelihoods for p in PREDICTORS if (x, p) != MAIN]
    sizes, repeats = arguments.sizes, arguments.repeats
    with one_core() as core:
        machine = run_child("row_cost", ["--measure", "limit", "--repeats", repeats], SINGLE_THREAD)
        rows = []
        for backend in arguments.backends:
            rows += measure_all(backend, [MAIN], sizes, ["in tiles", "whole"], repeats)
        if "jax" in arguments.backends:
            rows += measure_all("jax", others, sizes, ["in tiles", "whole"], repeats)
    report = Report(
        "row_cost",
        f"CPU nanoseconds of a step per row and draw: 'scale-loc', {DRAWS} draws, float64, a "
        f"linear predictor of {COLUMNS} columns or effects of {GROUPS} groups; {CATEGORIES} "
        "categories. One core, one thread, a process for each number, the lowest of the repeats. "
        "Rows are taken in tiles, or all at once (“whole”). The limit is that of the matrix "
        "products X b and rᵀ X and of one exponential per row and draw, in tiles that stay in the "
        "cache, each by the faster of NumPy and JAX; the bars are about the Bernoulli likelihood "
        "of a linear predictor.",
        {"repeats": repeats, "core": core},
        {
            "Nanoseconds per row and draw": rows,
            "The machine's limit, in nanoseconds per row and draw": [machine],
        },
        checks(rows, sizes, machine["limit"]),
    )
    report.save(arguments)
    return report


if __name__ == "__main__":
    main()
