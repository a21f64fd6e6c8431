"""Fit flows to four hard densities and to a real posterior; print a table and draw a picture.

    python examples/demo.py [--picture FILE] [--steps N]

Every target has an answer that is known without flows: the normalising constants of the four
potentials are exact, and the evidence of the eight schools follows from a two-dimensional integral.
So KL(q ‖ p), the distance from the truth in nats, can be estimated from draws of each fit.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pymc as pm
from scipy import stats

import pymc_flows as pmf

SEED = 1
DRAWS = 20_000
STEPS = {"pot1": 40_000, "pot2": 20_000, "pot3": 40_000, "pot4": 60_000, "eight schools": 20_000}
# The softplus of it is 1: a `scale` of 1, and a `planar` that starts as the identity.
UNIT = np.log(np.expm1(1.0))


@dataclass
class Result:
    """One fit, and how far from the truth it is."""

    target: str
    formula: str
    approx: pmf.NormalizingFlow
    kl: float
    error: float
    remark: str
    compile_seconds: float
    fit_seconds: float
    steps_per_second: float


def fit(
    target: str,
    formula: str,
    model: pm.Model,
    log_density: Callable[[np.ndarray], np.ndarray],
    remark: Callable[[np.ndarray], str],
    *,
    steps: int,
    params: dict | None = None,
) -> Result:
    """Fit a formula to a model; judge it with its normalised log density."""
    inference = pmf.NFVI(formula, model=model, jitter=0.1, params=params, random_seed=SEED)
    started = time.perf_counter()
    inference.fit(steps, obj_n_mc=128, backend="jax", progressbar=False)
    fitted = time.perf_counter()
    # Nothing is compiled any more, so this tells how fast a step is.
    more = max(steps // 5, 1)
    inference.refine(more, progressbar=False)
    refined = time.perf_counter()

    z, log_q = inference.approx.sample_and_log_prob(DRAWS, random_seed=SEED)
    log_ratio = log_q - log_density(z)
    speed = more / (refined - fitted)
    result = Result(
        target,
        formula,
        inference.approx,
        kl=log_ratio.mean(),
        error=log_ratio.std() / np.sqrt(DRAWS),
        remark=remark(z),
        compile_seconds=max(fitted - started - steps / speed, 0),
        fit_seconds=(steps + more) / speed,
        steps_per_second=speed,
    )
    print(row(result), flush=True)
    return result


def row(result: Result) -> str:
    """One line of the table."""
    return (
        f"{result.target:<14}{result.formula:<21}{result.kl:6.3f} ± {result.error:.3f}"
        f"{result.compile_seconds:11.1f}{result.fit_seconds:7.1f}{result.steps_per_second:9,.0f}"
        f"  {verdict(result.kl)}: {result.remark}"
    )


HEADER = (
    f"{'target':<14}{'formula':<21}{'KL (nats)':>14}{'compile s':>11}{'fit s':>7}{'steps/s':>9}"
    "  remark"
)


def verdict(kl: float) -> str:
    """The KL in words."""
    for bound, word in [(0.02, "very close"), (0.1, "close"), (0.3, "rough"), (1, "poor")]:
        if kl < bound:
            return word
    return "wrong"


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


def fit_potential(target: pmf.targets.Target, max_steps: int) -> Result:
    """Fit one of the four potentials."""
    is_ring = target is pmf.targets.pot1
    truth = shares(target, target.sample(1_000_000, random_seed=SEED))
    return fit(
        target.name,
        "scale-planar*32" if is_ring else "scale-planar*64",
        target.model(),
        lambda z: target.log_density(z) - target.log_z,
        lambda z: ", ".join(
            f"{part} {share:.0%} (truth {truth[part]:.0%})"
            for part, share in shares(target, z).items()
        ),
        params=None if is_ring else wide_start(64),
        steps=min(max_steps, STEPS[target.name]),
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


def fit_eight_schools(formula: str, max_steps: int) -> Result:
    """Fit the eight schools with one formula."""
    log_tau, density, log_evidence = exact_tau()
    low, high = np.exp(np.interp([0.05, 0.95], density.cumsum() / density.sum(), log_tau))

    def remark(z: np.ndarray) -> str:
        q_low, q_high = np.exp(np.quantile(z[:, 1], [0.05, 0.95]))
        return f"90 % of tau in {q_low:.2f} to {q_high:.1f} (truth {low:.2f} to {high:.1f})"

    return fit(
        "eight schools",
        formula,
        eight_schools(),
        lambda z: log_posterior(z, log_evidence),
        remark,
        steps=min(max_steps, STEPS["eight schools"]),
    )


# ---------------------------------------------------------------------- the picture


def draw(potentials: list[Result], schools: list[Result], path: Path) -> None:
    """Targets above draws from the fits; beside them tau of the eight schools."""
    figure = plt.figure(figsize=(17, 6.4), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[4, 1.25])
    axes = left.subplots(2, len(potentials))
    for (above, below), target, result in zip(
        axes.T, pmf.targets.POTENTIALS, potentials, strict=True
    ):
        limits = (-4, 4) if target is pmf.targets.pot1 else ((-11, 11), (-6, 4))
        pmf.plots.density_contour(target, above, limits=limits)
        draws = result.approx.sample(4_000, random_seed=SEED)
        title = f"{result.formula}, KL {result.kl:.3f}"
        pmf.plots.draws(draws, below, limits=limits, title=title, alpha=0.2)

    ax = right.subplots()
    log_tau, density, _ = exact_tau()
    ax.fill_between(log_tau, density, color="lightgrey", label="exact")
    for result in schools:
        tau = result.approx.sample(DRAWS, random_seed=SEED).posterior["tau"].values.ravel()
        ax.hist(
            np.log(tau),
            np.linspace(-4, 4, 81),
            density=True,
            histtype="step",
            linewidth=1.4,
            label=f"{result.formula}, KL {result.kl:.3f}",
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
    arguments = parser.parse_args()

    mpl.use("Agg")
    started = time.perf_counter()
    print(HEADER)
    potentials = [fit_potential(target, arguments.steps) for target in pmf.targets.POTENTIALS]
    schools = [
        fit_eight_schools(formula, arguments.steps)
        for formula in ("scale-loc", "scale-hh*4-loc", "scale-planar*16-loc")
    ]
    draw(potentials, schools, arguments.picture)
    print(
        "\nKL(q ‖ p) of 0 is exact, ± its standard error; losing one of two equal modes costs 0.69."
        f"\npicture: {arguments.picture}\ntotal: {time.perf_counter() - started:.0f} s"
    )


if __name__ == "__main__":
    main()
