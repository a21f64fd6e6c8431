"""Hierarchies whose truth is known: a very large one, ever larger ones, and many small ones."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pymc as pm

from benchmarks import _hierarchy_fits as fits
from benchmarks import _hierarchy_models as models
from benchmarks._common import Row, stopwatch
from benchmarks._compile_clock import compile_clock
from benchmarks._hierarchy_models import BERNOULLI, NONCENTRED, POISSON, Cell, Data, Truth
from benchmarks._posteriors import Draws
from benchmarks.scaling import peak_memory

LEVEL = 0.9
# Of the million rows: groups, rows in each, and slopes beside the intercept.
MILLION_GROUPS, MILLION_ROWS, MILLION_SLOPES = 100_000, 10, 20
MILLION_DRAWS = 400
# Groups whose draws are kept for intervals by quantiles.
KEPT_GROUPS = 1_000
COST_GROUPS = (100, 1_000, 10_000, 100_000)
COST_ROWS = 10
# Small hierarchies for calibration; two binary rows a group are far from Gaussian.
CALIBRATED = {
    "poisson": Cell(POISSON, NONCENTRED, 20, 5, "intercepts"),
    "bernoulli": Cell(BERNOULLI, NONCENTRED, 20, 2, "intercepts"),
}
RANKED_DRAWS = 999
STUDY_COLUMNS = ("wall s", "worst distance", "beyond 2 sds", "hyperparameters", "coverage")


def cost_model(groups: int) -> pm.Model:
    """Poisson counts with intercepts and slopes by group."""
    return models.cell_model(Cell(POISSON, NONCENTRED, groups, COST_ROWS, "slopes"), 1)


def million_data(groups: int) -> Data:
    """Binary rows of groups with an intercept and many slopes each."""
    rng = np.random.default_rng([12, groups])
    k = 1 + MILLION_SLOPES
    fixed = rng.normal(0, 0.5, k)
    scale = rng.uniform(0.1, 0.6, k)
    effects = fixed + scale * rng.standard_normal((groups, k))
    return models.simulate(BERNOULLI, MILLION_ROWS, Truth(fixed, scale, effects, 1.0), rng)


def _begun(name: str, seed: int) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys((*fits.COLUMNS, *STUDY_COLUMNS))
    row |= {"posterior": name, "method": fits.OURS, "seed": seed, "source": 0}
    fits.import_all()
    row["GB at the start"] = peak_memory() / 1e9
    return row


def _groups(name: str) -> int:
    return int(name.rpartition("-")[2])


def measure_cost(name: str, seed: int, settings: fits.Settings) -> Row:
    """Seconds and memory of a default fit of so many groups as the name ends with, no draws."""
    groups = _groups(name)
    row = _begun(name, seed) | {"groups": groups}
    model = cost_model(groups)
    with warnings.catch_warnings(), compile_clock() as clock, fits.noted(row, settings):
        warnings.simplefilter("ignore")
        fits.fit_ours(model, seed, settings, clock, row)
    return row


def measure_million(name: str, seed: int, settings: fits.Settings) -> Row:
    """Fit the very large hierarchy, of so many groups as the name ends with, against the truth."""
    groups = _groups(name)
    data = million_data(groups)
    row = _begun(name, seed) | {"groups": groups, "rows": len(data.y)}
    model = models.hierarchy(data, centred=False)
    with warnings.catch_warnings(), compile_clock() as clock, fits.noted(row, settings):
        warnings.simplefilter("ignore")
        with stopwatch() as seconds:
            approx = fits.fit_ours(model, seed, settings, clock, row)
        row["wall s"] = seconds.wall
        with fits.limited(settings.limit):
            kept = min(KEPT_GROUPS, groups)
            with stopwatch() as drawing:
                draws = _kept_draws(approx, seed, kept)
            row["draws CPU s"] = drawing.cpu
            row |= against_truth(draws, data.truth, kept)
            row["peak GB"] = peak_memory() / 1e9
            fits.add_report(approx, seed, row)
    return row


def _kept_draws(approx: Any, seed: int, groups: int) -> Draws:
    """Draws of hyperparameters, and of the effects of the first groups."""
    parts: dict[str, list[np.ndarray]] = {"fixed": [], "scale": [], "effects": []}
    for part in fits.draw_parts(approx, MILLION_DRAWS, seed):
        for name, kept in parts.items():
            kept.append(part[name][:, :groups].copy() if name == "effects" else part[name])
    return {name: np.concatenate(kept) for name, kept in parts.items()}


def against_truth(draws: Draws, truth: Truth, groups: int) -> Row:
    """Distances of hyperparameters in posterior standard deviations, and coverage of effects."""
    names = ("fixed", "scale")
    found = np.concatenate([draws[name] for name in names], axis=1)
    exact = np.concatenate([getattr(truth, name) for name in names])
    distance = np.abs(found.mean(0) - exact) / found.std(0, ddof=1)
    return {
        "worst distance": float(distance.max()),
        "beyond 2 sds": int((distance > 2).sum()),
        "hyperparameters": len(exact),
        "coverage": coverage(draws["effects"], truth.effects[:groups]),
    }


def coverage(draws: np.ndarray, truth: np.ndarray) -> float:
    """Share of true values inside of the central intervals of draws (draw, ...)."""
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return float(((truth >= low) & (truth <= high)).mean())


# ----------------------------------------------------------------------------------- calibration


def calibrate(name: str, datasets: Sequence[int], settings: fits.Settings) -> list[Row]:
    """Fit data sets whose truth is drawn from the prior, and rank it among draws.

    Talts, Betancourt, Simpson, Vehtari & Gelman, arXiv:1804.06788. All fits are in this process.

    Returns
    -------
    list of Row
        For each data set the ranks of the truth by quantity, between 0 and 1, of a group the
        first; coverage over all groups; status of the report.
    """
    rows = []
    for number in datasets:
        row = _begun(name, number) | {"ranks": {}}
        data = models.prior_data(CALIBRATED[name], np.random.default_rng([13, number]))
        with warnings.catch_warnings(), compile_clock() as clock, fits.noted(row, settings):
            warnings.simplefilter("ignore")
            model = models.hierarchy(data, centred=False)
            approx = fits.fit_ours(model, number, settings, clock, row)
            with fits.limited(settings.limit):
                [draws] = fits.draw_parts(approx, RANKED_DRAWS, number)
                row["ranks"] = ranks(draws, data)
                row["coverage"] = coverage(draws["effects"], data.truth.effects)
                fits.add_report(approx, number, row)
        rows.append(row)
    return rows


def ranks(draws: Draws, data: Data) -> Mapping[str, float]:
    """Shares of draws that are below the truth."""
    truth = data.truth
    values = {
        "fixed": (draws["fixed"][:, 0], truth.fixed[0]),
        "scale": (draws["scale"][:, 0], truth.scale[0]),
        "effect": (draws["effects"][:, 0, 0], truth.effects[0, 0]),
    }
    return {name: float((x < exact).mean()) for name, (x, exact) in values.items()}


def uniformity(shares: Sequence[float], bins: int = 10) -> float:
    """p-value of the chi-squared test that ranks are uniform."""
    from scipy.stats import chisquare

    counts = np.histogram(shares, bins=bins, range=(0, 1))[0]
    return float(chisquare(counts).pvalue)
