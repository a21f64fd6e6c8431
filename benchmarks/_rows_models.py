"""Rows on disk, two models of them, and their posteriors by another way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pymc as pm

import pymc_flows as pmf

COLUMNS, GROUPS = 20, 100
X = [f"x{k}" for k in range(COLUMNS)]
CHUNK, ROW_GROUP = 500_000, 100_000
LOGISTIC, INTERCEPTS = "logistic", "random intercepts"
MODELS = (LOGISTIC, INTERCEPTS)


def data_file(folder: Path, n: int, seed: int = 1) -> Path:
    """A Parquet file of n rows, written in chunks unless it is there.

    Columns are ``x0``, …, ``x19``, a ``group``, and a response for each model.
    """
    path = folder / f"rows-{n}.parquet"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    slopes = rng.normal(0, 0.3, COLUMNS)
    intercepts = rng.normal(-0.5, 0.5, GROUPS)
    part, writer = path.with_suffix(".part"), None
    for begin in range(0, n, CHUNK):
        rows = min(CHUNK, n - begin)
        x = 0.6 * rng.normal(size=(rows, 1)) + 0.8 * rng.normal(size=(rows, COLUMNS))
        group = rng.integers(GROUPS, size=rows)
        chances = 1 / (
            1 + np.exp(-(x @ slopes + np.stack([np.full(rows, 0.2), intercepts[group]])))
        )
        hits = (rng.random(chances.shape) < chances).astype(np.int8)
        columns = dict(zip(X, x.T, strict=True))
        table = pa.table({**columns, "group": group, LOGISTIC: hits[0], INTERCEPTS: hits[1]})
        writer = writer or pq.ParquetWriter(part, table.schema, use_dictionary=["group"])
        writer.write_table(table, row_group_size=ROW_GROUP)
    if writer is not None:
        writer.close()
    part.rename(path)
    return path


def build(name: str, path: Path, batch_size: int) -> tuple[pm.Model, pmf.Rows]:
    """A model and its rows."""
    columns = {"x": X, "group": "group", "y": name}
    if name == LOGISTIC:
        del columns["group"]
    rows = pmf.Rows.parquet(path, columns, batch_size=batch_size)
    with pm.Model() as model:
        slopes = pm.Normal("slopes", 0, 1, shape=COLUMNS)
        if name == LOGISTIC:
            level = pm.Normal("level", 0, 1)
        else:
            mu, tau = pm.Normal("mu", 0, 1), pm.HalfNormal("tau", 1)
            level = pm.Normal("intercepts", mu, tau, shape=GROUPS)[rows["group"]]
        logit = rows["x"] @ slopes + level
        pm.Bernoulli("y", logit_p=logit, observed=rows["y"], total_size=rows.total)
    return model, rows


# ------------------------------------------------------------------ posteriors by another way


def posterior(name: str, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (dim,) of the unconstrained variables, in the model's order.

    The likelihood of so many rows is Gaussian in slopes and intercepts, with mode and curvature by
    Newton's method over all rows. Priors, and for random intercepts a sum over τ, are exact.
    """
    mode, precision = _likelihood(name, path)
    if name == LOGISTIC:
        total = precision + np.eye(len(mode))
        return np.linalg.solve(total, precision @ mode), np.sqrt(np.diag(np.linalg.inv(total)))
    return _over_tau(mode, precision)


def _likelihood(name: str, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Mode and precision of the likelihood of slopes and level, or slopes and intercepts."""
    levels = 1 if name == LOGISTIC else GROUPS
    point = np.zeros(COLUMNS + levels)
    for _ in range(8):
        gradient, precision = np.zeros_like(point), np.zeros((len(point), len(point)))
        for x, group, y in _chunks(name, path):
            chance = 1 / (1 + np.exp(-(x @ point[:COLUMNS] + point[COLUMNS + group])))
            weight, rest = chance * (1 - chance), y - chance
            gradient[:COLUMNS] += x.T @ rest
            gradient[COLUMNS:] += np.bincount(group, rest, levels)
            precision[:COLUMNS, :COLUMNS] += (x * weight[:, None]).T @ x
            sums = [np.bincount(group, weight * column, levels) for column in x.T]
            precision[:COLUMNS, COLUMNS:] += sums
            precision[COLUMNS:, COLUMNS:] += np.diag(np.bincount(group, weight, levels))
        precision[COLUMNS:, :COLUMNS] = precision[:COLUMNS, COLUMNS:].T
        step = np.linalg.solve(precision, gradient)
        point += step
        if gradient @ step < 1e-6:
            return point, precision
    raise RuntimeError(f"Newton's method has not reached a mode of {name}")


def _chunks(name: str, path: Path) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Covariates, groups and responses of one row group after the other."""
    file = pq.ParquetFile(path)
    for k in range(file.num_row_groups):
        table = file.read_row_group(k)
        x = np.column_stack([table[c].to_numpy() for c in X])
        group = table["group"].to_numpy()
        yield x, np.zeros_like(group) if name == LOGISTIC else group, table[name].to_numpy()


def _over_tau(mode: np.ndarray, precision: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Moments of slopes, μ, log τ and intercepts, by a sum over log τ."""
    n, cov = len(mode), np.linalg.inv(precision)
    own = slice(COLUMNS, n)
    spread = np.log(mode[own].std())
    grid = np.linspace(spread - 1, spread + 1, 401)
    logs, means, squares = [], [], []
    for log_tau in grid:
        tau2 = np.exp(2 * log_tau)
        prior = np.eye(n)
        prior[own, own] = tau2 * np.eye(GROUPS) + 1  # μ ~ N(0, 1) is in it
        both = prior + cov
        gain = np.linalg.solve(both, prior).T
        logs.append(
            -0.5 * (mode @ np.linalg.solve(both, mode) + np.linalg.slogdet(both)[1])
            - tau2 / 2  # τ ~ HalfNormal(1), and the density of its logarithm
            + log_tau
        )
        center, left = gain @ mode, prior - gain @ prior
        shrink = np.full(GROUPS, 1 / (GROUPS + tau2))
        mu, mu_var = shrink @ center[own], shrink @ left[own, own] @ shrink + tau2 / (GROUPS + tau2)
        mean = np.concatenate([center[:COLUMNS], [mu, log_tau], center[own]])
        variance = np.diag(left)
        variance = np.concatenate([variance[:COLUMNS], [mu_var, 0.0], variance[own]])
        means.append(mean)
        squares.append(variance + mean**2)
    weights = np.exp(logs - np.max(logs))
    weights /= weights.sum()
    found = weights @ np.array(means)
    return found, np.sqrt(weights @ np.array(squares) - found**2)
