"""References of `benchmarks.hierarchies`: long runs of NUTS, and importance sampling."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pymc as pm
from scipy.special import expit

from benchmarks._common import say, stopwatch
from benchmarks._hierarchy_models import REGRESSION_SD, regression_data
from benchmarks._hierarchy_scores import MAX_RHAT, MIN_ESS, SEPARATOR
from benchmarks._posteriors import Draws

CHAINS, TUNE, LENGTH, TARGET_ACCEPT = 4, 1_000, 1_500, 0.9
# A run whose chains do not agree is repeated with so many times the draws.
LONGER = (1, 4)
# Points of importance sampling, and how many at once.
POINTS, AT_ONCE = 4_000, 100
DEGREES_OF_FREEDOM = 10
NEWTON_STEPS = 30

type Arrays = dict[str, np.ndarray]
type Derive = Callable[[Draws], Draws]


def keep(path: Path, arrays: Arrays) -> None:
    """Write a reference; a file that is there is a whole one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.stem}.part.npz")
    np.savez_compressed(part, allow_pickle=False, **arrays)
    part.replace(path)


def long_run(model: pm.Model, derive: Derive, name: str) -> Arrays:
    """Run NUTS until its chains agree, and summarize all variables.

    Returns
    -------
    dict of str to ndarray
        ``NAME|mean``, ``NAME|sd``, ``NAME|ess``, ``NAME|rhat``, ``NAME|mcse_mean`` and
        ``NAME|mcse_sd`` by variable, and facts of the run: ``cpu`` in seconds without compiling,
        ``draws``, ``divergences``. The longest run is kept if no run is long enough.
    """
    import nutpie

    found: Arrays = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = nutpie.compile_pymc_model(model)
        for times in LONGER:
            with stopwatch() as seconds:
                idata = nutpie.sample(
                    compiled,
                    chains=CHAINS,
                    cores=1,
                    tune=TUNE,
                    draws=times * LENGTH,
                    target_accept=TARGET_ACCEPT,
                    save_warmup=False,
                    seed=1,
                    progress_bar=False,
                )
            draws = {str(k): v.values for k, v in idata["posterior"].dataset.items()}
            found = summary(derive(draws)) | {
                "cpu": np.array(seconds.cpu),
                "draws": np.array(CHAINS * times * LENGTH),
                "divergences": np.array(int(idata["sample_stats"]["diverging"].sum())),
            }
            worst = worst_agreement(found)
            say(
                f"{name}: smallest ESS {worst[0]:,.0f}, largest R-hat {worst[1]:.3f}, "
                f"{found['divergences']} divergences, {seconds.cpu:,.0f} CPU s"
            )
            if worst[0] >= MIN_ESS and worst[1] <= MAX_RHAT:
                break
    return found


def summary(draws: Draws) -> Arrays:
    """Moments and agreement of draws (chain, draw, ...) by variable."""
    import arviz as az
    from xarray import DataArray, Dataset

    def array(x: np.ndarray) -> DataArray:
        return DataArray(x, dims=("chain", "draw", *(f"axis{i}" for i in range(x.ndim - 2))))

    found = {}
    for name, x in draws.items():
        data = Dataset({"x": array(x)})
        columns = {
            "mean": x.mean((0, 1)),
            "sd": x.std((0, 1), ddof=1),
            "ess": az.ess(data, method="bulk")["x"].values,
            "rhat": az.rhat(data)["x"].values,
            "mcse_mean": az.mcse(data, method="mean")["x"].values,
            "mcse_sd": az.mcse(data, method="sd")["x"].values,
        }
        found |= {f"{name}{SEPARATOR}{k}": np.asarray(v) for k, v in columns.items()}
    return found


def worst_agreement(found: Arrays) -> tuple[float, float]:
    """Smallest effective sample size and largest R-hat; constants do not count."""
    ends = {kind: SEPARATOR + kind for kind in ("ess", "rhat")}
    ess, rhat = (
        np.concatenate([np.ravel(x) for name, x in found.items() if name.endswith(end)])
        for end in ends.values()
    )
    return float(np.nanmin(ess)), float(np.nanmax(rhat))


def regression_reference(rows: int, predictors: int) -> Arrays:
    """Moments of a logistic regression by importance sampling from a t around the mode.

    With many rows the posterior is almost normal and the weights almost equal; their effective
    number is kept as ``ess``. No line of it is shared with the library that it judges.
    """
    x, y, _ = regression_data(rows, predictors)
    mode, hessian = _mode(x, y)
    factor = np.linalg.inv(np.linalg.cholesky(hessian))  # its transpose maps noise to the posterior
    rng = np.random.default_rng(1)
    noise = rng.standard_normal((POINTS, predictors))
    stretch = DEGREES_OF_FREEDOM / rng.chisquare(DEGREES_OF_FREEDOM, (POINTS, 1))
    z = noise * np.sqrt(stretch)
    beta = mode + z @ factor
    log_q = -0.5 * (DEGREES_OF_FREEDOM + predictors) * np.log1p((z**2).sum(1) / DEGREES_OF_FREEDOM)
    log_p = np.concatenate(
        [_log_posterior(x, y, beta[i : i + AT_ONCE]) for i in range(0, POINTS, AT_ONCE)]
    )
    weights = np.exp(log_p - log_q - (log_p - log_q).max())
    weights /= weights.sum()
    mean = weights @ beta
    sd = np.sqrt(weights @ (beta - mean) ** 2)
    ess = np.full(predictors, 1 / (weights**2).sum())
    return {f"beta{SEPARATOR}{k}": v for k, v in {"mean": mean, "sd": sd, "ess": ess}.items()}


def _mode(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    prior = REGRESSION_SD**-2
    beta: Any = np.zeros(x.shape[1])
    for _ in range(NEWTON_STEPS):
        p = expit(x @ beta)
        hessian = (x * (p * (1 - p))[:, None]).T @ x + prior * np.eye(len(beta))
        step = np.linalg.solve(hessian, x.T @ (y - p) - prior * beta)
        beta = beta + step
        if np.abs(step).max() < 1e-10:
            break
    return beta, hessian


def _log_posterior(x: np.ndarray, y: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """Of points (points, predictors), up to a constant."""
    eta = x @ beta.T
    likelihood = y @ eta - np.logaddexp(0, eta).sum(0)
    return likelihood - 0.5 * (beta**2).sum(1) / REGRESSION_SD**2
