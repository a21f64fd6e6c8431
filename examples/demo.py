"""Fit flows to four hard densities and to a real posterior; print a table and draw a picture.

    python examples/demo.py [--picture FILE] [--steps N] [--default TARGET ...] [--cores N]

Each target is fitted with formulas of planar flows, as in the notebook, and by `pymc_flows.fit()`
alone. Every target has an answer that is known without flows: the normalising constants of the four
potentials are exact, and the evidence of the eight schools follows from a two-dimensional integral.
So KL(q ‖ p), the distance from the truth in nats, can be estimated from draws of each fit. Where
`sample` resamples draws by their importance weights, it is not their KL that counts but what their
weights miss: the error of the log evidence that they give.
"""

import argparse
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pymc as pm
from scipy import stats

import pymc_flows as pmf

SEED = 1
DRAWS = 20_000
SHOWN = 4_000
SCHOOLS_NAME = "eight schools"
TARGETS = (*(target.name for target in pmf.targets.POTENTIALS), SCHOOLS_NAME)
STEPS = {"pot1": 40_000, "pot2": 20_000, "pot3": 20_000, "pot4": 30_000, SCHOOLS_NAME: 20_000}
PLANAR = {
    "pot1": ["scale-planar*32"],
    "pot2": ["scale-planar*64"],
    "pot3": ["scale-planar*64"],
    "pot4": ["scale-planar*64"],
    SCHOOLS_NAME: ["scale-loc", "scale-planar*16-loc"],
}
# The softplus of it is 1: a `scale` of 1, and a `planar` that starts as the identity.
UNIT = np.log(np.expm1(1.0))


@dataclass(frozen=True)
class Task:
    """One fit to do: of a formula, or with all defaults where there is none."""

    target: str
    formula: str | None
    max_steps: int


@dataclass
class Problem:
    """A target: its model, what is known of it, and what to say of draws."""

    model: pm.Model
    log_density: Callable[[np.ndarray], np.ndarray]
    remark: Callable[[np.ndarray], str]
    params: dict[int, dict[str, object]] | None = None
    variable: str = "z"


@dataclass
class Result:
    """One fit, how far from the truth it is, and draws of it to show.

    ``off`` is KL(q ‖ p), or the error of the log evidence if draws are resampled.
    """

    target: str
    call: str
    formula: str
    draws: np.ndarray
    off: float
    error: float
    remark: str
    seconds: float
    is_resampled: bool

    @property
    def measure(self) -> str:
        """What is off, and by how much."""
        return f"{'log Z off by' if self.is_resampled else 'KL'} {self.off:.3f}"


def fit(task: Task) -> Result:
    """Fit a target; judge the fit with the normalised log density."""
    problem = PROBLEMS[task.target]()
    started = time.process_time()
    if task.formula is None:
        approx = pmf.fit(
            min(task.max_steps, 10_000),
            model=problem.model,
            backend="jax",
            progressbar=False,
            random_seed=SEED,
        )
    else:
        inference = pmf.NFVI(
            task.formula,
            model=problem.model,
            jitter=0.1,
            params=problem.params,
            random_seed=SEED,
        )
        steps = min(task.max_steps, STEPS[task.target])
        approx = inference.fit(steps, obj_n_mc=128, backend="jax", progressbar=False)
    seconds = time.process_time() - started

    # More draws of a field given hyperparameters would share the values of these.
    n = 1_000 if approx.formula.conditional else DRAWS
    z, log_q = approx.sample_and_log_prob(n, random_seed=SEED)
    log_ratio = log_q - problem.log_density(z)
    off, error = log_ratio.mean(), log_ratio.std() / np.sqrt(n)
    is_resampled = approx.correction == "resample" and not approx.formula.conditional
    if is_resampled:
        weights = np.exp(-log_ratio)
        off, error = abs(np.log(weights.mean())), weights.std() / weights.mean() / np.sqrt(n)
    # What a user gets, corrected where the family can do that.
    sampled = approx.sample(DRAWS, random_seed=SEED).posterior[problem.variable].values[0]
    return Result(
        task.target,
        task.formula or "pmf.fit()",
        task.formula or approx.q.label.replace("'", ""),
        sampled,
        off=off,
        error=error,
        remark=problem.remark(sampled),
        seconds=seconds,
        is_resampled=is_resampled,
    )


def row(result: Result) -> str:
    """One line of the table."""
    return (
        f"{result.target:<14}{result.call:<20}{'log Z' if result.is_resampled else 'KL':<6}"
        f"{result.off:5.3f} ± {result.error:.3f}"
        f"{result.seconds:7.1f}  {verdict(result.off)}: {result.remark}"
    )


HEADER = f"{'target':<14}{'fit':<20}{'off by (nats)':<19}{'CPU s':>7}  remark"


def verdict(off: float) -> str:
    """The distance in words."""
    for bound, word in [(0.02, "very close"), (0.1, "close"), (0.3, "rough"), (1, "poor")]:
        if off < bound:
            return word
    return "wrong"


def fit_all(tasks: Sequence[Task], cores: int) -> Iterable[Result]:
    """Fit all, so many at a time, each on one core."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault(
        "XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    )
    if cores == 1:
        yield from map(fit, tasks)
        return
    # The slowest first, so that no core waits for the other in the end.
    first = sorted(range(len(tasks)), key=lambda i: (tasks[i].formula is not None, i))
    with ProcessPoolExecutor(cores, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting = {i: pool.submit(fit, tasks[i]) for i in first}
        for i in range(len(tasks)):
            yield waiting[i].result()


# ---------------------------------------------------------------------- the four potentials


def wide_start(n_planar: int) -> dict[int, dict[str, object]]:
    """Start parameters of ``scale-planar*n`` for long, wavy ridges along the first coordinate.

    The ridges of pot2 to pot4 reach out to |z[0]| of 40 and more, and each bend takes a layer. From
    the default start all layers bend the ridge near the origin. Here the base is stretched along
    the ridge, and the bends are spread over it.
    """
    rng = np.random.default_rng(SEED)
    params: dict[int, dict[str, object]] = {0: {"rho": [10, 3]}}
    for layer in range(1, n_planar + 1):
        w = np.array([rng.choice([-1, 1]), rng.normal(0, 0.5)])
        # At u = UNIT w / ‖w‖² the layer is the identity.
        u = UNIT * w / (w @ w) + rng.normal(0, 0.5, 2)
        params[layer] = {"w": w, "u": u, "b": rng.uniform(-25, 25)}
    return params


def shares(target: pmf.targets.Target, z: np.ndarray) -> dict[str, float]:
    """Parts of the density that a fit may miss, and the share of the draws in each."""
    if isinstance(target, pmf.targets.SplitRing):
        return {"right side": np.mean(z[:, 0] > 0)}
    found = {"|z[0]| > 20": np.mean(np.abs(z[:, 0]) > 20)}
    if len(target.ridges) > 1:
        drop = target.ridges[1].drop(z[:, 0], np)
        middle = np.sin(np.pi * z[:, 0] / 2) - drop / 2
        found["lower ridge"] = np.mean((drop > 1) & (z[:, 1] < middle))
    return found


def potential(target: pmf.targets.Target) -> Problem:
    """One of the four potentials."""
    truth = shares(target, target.sample(1_000_000, random_seed=SEED))
    return Problem(
        target.model(),
        lambda z: target.log_density(z) - target.log_z,
        lambda z: ", ".join(
            f"{part} {share:.0%} (truth {truth[part]:.0%})"
            for part, share in shares(target, z).items()
        ),
        params=None if target is pmf.targets.pot1 else wide_start(64),
        variable=target.model().free_RVs[0].name,
    )


# ---------------------------------------------------------------------- eight schools

SCHOOLS = ["Choate", "Deerfield", "Andover", "Exeter", "Hotchkiss", "Lawrenceville", "St. Paul's",
           "Mt. Hermon"]  # fmt: skip
EFFECT = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
STANDARD_ERROR = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def eight_schools() -> pm.Model:
    """The eight schools of Rubin (1981), non-centred."""
    with pm.Model(coords={"school": SCHOOLS}) as model:
        mu = pm.Normal("mu", 0, 5)
        tau = pm.HalfCauchy("tau", 5)
        offset = pm.Normal("offset", dims="school")
        theta = pm.Deterministic("theta", mu + tau * offset, dims="school")
        pm.Normal("y", theta, STANDARD_ERROR, observed=EFFECT, dims="school")
    return model


def exact_tau() -> tuple[np.ndarray, np.ndarray, float]:
    """Density of log tau on a grid, and the log evidence, by quadrature over mu and log tau.

    Given mu and tau the effects of the schools integrate out: y ~ N(mu, standard error² + tau²).
    """
    mu = np.linspace(-40, 40, 801)[:, None]
    log_tau = np.linspace(-12, 8, 2_001)
    tau = np.exp(log_tau)
    log_joint = stats.norm.logpdf(mu, 0, 5) + stats.halfcauchy.logpdf(tau, 0, 5) + log_tau
    for effect, error in zip(EFFECT, STANDARD_ERROR, strict=True):
        log_joint = log_joint + stats.norm.logpdf(effect, mu, np.hypot(error, tau))
    joint = np.exp(log_joint) * (mu[1, 0] - mu[0, 0])
    density = joint.sum(0)
    evidence = density.sum() * (log_tau[1] - log_tau[0])
    return log_tau, density / evidence, float(np.log(evidence))


def log_posterior(z: np.ndarray, log_evidence: float) -> np.ndarray:
    """Log density of points in the unconstrained space: mu, log tau, then the offsets."""
    mu, log_tau, offset = z[:, 0], z[:, 1], z[:, 2:]
    theta = mu[:, None] + np.exp(log_tau)[:, None] * offset
    prior = stats.norm.logpdf(mu, 0, 5) + stats.halfcauchy.logpdf(np.exp(log_tau), 0, 5) + log_tau
    of_schools = stats.norm.logpdf(offset) + stats.norm.logpdf(EFFECT, theta, STANDARD_ERROR)
    return prior + of_schools.sum(-1) - log_evidence


def schools() -> Problem:
    """The eight schools, and the exact quantiles of tau."""
    log_tau, density, log_evidence = exact_tau()
    low, high = np.exp(np.interp([0.05, 0.95], density.cumsum() / density.sum(), log_tau))

    def remark(tau: np.ndarray) -> str:
        q_low, q_high = np.quantile(tau, [0.05, 0.95])
        return f"90 % of tau in {q_low:.2f} to {q_high:.1f} (truth {low:.2f} to {high:.1f})"

    return Problem(
        eight_schools(), lambda z: log_posterior(z, log_evidence), remark, variable="tau"
    )


PROBLEMS: Mapping[str, Callable[[], Problem]] = {
    **{target.name: partial(potential, target) for target in pmf.targets.POTENTIALS},
    SCHOOLS_NAME: schools,
}


# ---------------------------------------------------------------------- the picture


def draw(results: Sequence[Result], path: Path) -> None:
    """Targets above draws from the fits; beside them tau of the eight schools."""
    figure = plt.figure(figsize=(17, 9), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[4, 1.25])
    columns = left.subplots(3, len(pmf.targets.POTENTIALS)).T
    for column, target in zip(columns, pmf.targets.POTENTIALS, strict=True):
        limits = (-4, 4) if target is pmf.targets.pot1 else ((-11, 11), (-6, 4))
        pmf.plots.density_contour(target, column[0], limits=limits)
        fits = [result for result in results if result.target == target.name]
        for ax, result in zip(column[1:], fits, strict=False):
            title = f"{result.call}, {result.measure}"
            pmf.plots.draws(result.draws[:SHOWN], ax, limits=limits, title=title, alpha=0.2)
        for ax in column[1 + len(fits) :]:
            ax.set_axis_off()

    ax = right.subplots()
    log_tau, density, _ = exact_tau()
    ax.fill_between(log_tau, density, color="lightgrey", label="exact")
    for result in results:
        if result.target == SCHOOLS_NAME:
            ax.hist(
                np.log(result.draws),
                np.linspace(-4, 4, 81),
                density=True,
                histtype="step",
                linewidth=1.4,
                label=f"{result.call}, {result.measure}",
            )
    ax.set(xlim=(-4, 4), ylim=(0, 0.7), title="eight schools", xlabel="log tau", ylabel="density")
    ax.legend(loc="upper left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=70)
    plt.close(figure)


def main() -> None:
    """Run everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--picture", type=Path, default=Path("build/demo.png"), metavar="FILE")
    parser.add_argument("--steps", type=int, default=100_000, metavar="N", help="at most so many")
    parser.add_argument(
        "--default",
        nargs="*",
        choices=TARGETS,
        default=TARGETS,
        metavar="TARGET",
        help="targets for pymc_flows.fit() without a formula",
    )
    parser.add_argument("--cores", type=int, default=2, metavar="N", help="fits at a time (2)")
    arguments = parser.parse_args()

    mpl.use("Agg")
    started = time.perf_counter()
    if arguments.cores > 1:
        print("The slowest fits come first, so the first row takes a minute or two.\n")
    print(HEADER, flush=True)
    tasks = [
        Task(target, formula, arguments.steps)
        for target in TARGETS
        for formula in (*PLANAR[target], *([None] if target in arguments.default else []))
    ]
    results = []
    for result in fit_all(tasks, arguments.cores):
        results.append(result)
        print(row(result), flush=True)
    draw(results, arguments.picture)
    formulas = "\n".join(
        f"  {result.target:<14}{result.formula}"
        for result in results
        if result.call != result.formula
    )
    print(
        f"\npmf.fit() has chosen:\n{formulas}\n"
        "\nKL(q ‖ p) of 0 is exact, ± its standard error; losing one of two equal modes costs 0.69."
        "\nlog Z: draws are resampled, and their weights miss the log evidence by that much."
        f"\npicture: {arguments.picture}\ntotal: {time.perf_counter() - started:.0f} s"
    )


if __name__ == "__main__":
    main()
