"""Hierarchies on simulated data, and a few that everybody knows.

A hierarchy has groups of rows and one or more terms, an intercept and slopes, each of which varies
between the groups around a fixed effect with a scale of its own. Data have fixed seeds.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import pymc as pm
import pytensor.tensor as pt

NORMAL, POISSON, BERNOULLI = "normal", "poisson", "bernoulli"
NEGATIVE_BINOMIAL = "negative_binomial"
FAMILIES = (NORMAL, POISSON, BERNOULLI, NEGATIVE_BINOMIAL)
CENTRED, NONCENTRED = "centred", "noncentred"
GROUPS, ROWS = (5, 50, 500), (2, 20, 200)
TERMS = {"intercepts": 1, "slopes": 2}

# Priors: fixed effects are normal, scales and noise half normal, the shape of counts is gamma.
FIXED_SD, SCALE_SD, NOISE_SD = 1.0, 1.0, 1.0
SHAPE = (3.0, 0.5)
# Scales between groups of the simulated data; noise has 1.
SMALLEST_SCALE, LARGEST_SCALE = 0.02, 2.0
TRUE_SHAPE = 3.0


@dataclass(frozen=True)
class Cell:
    """One kind of hierarchy.

    Attributes
    ----------
    family : {"normal", "poisson", "bernoulli", "negative_binomial"}
    parametrisation : {"centred", "noncentred"}
    groups, rows : int
        Number of groups, and of rows in each.
    terms : {"intercepts", "slopes"}
        What varies between groups: intercepts, or intercepts and slopes.
    """

    family: str
    parametrisation: str
    groups: int
    rows: int
    terms: str

    @property
    def name(self) -> str:
        """Name, such as ``'poisson-centred-50x20-slopes'``."""
        return f"{self.family}-{self.parametrisation}-{self.groups}x{self.rows}-{self.terms}"

    @property
    def data_name(self) -> str:
        """Name of its data, which both parametrisations share."""
        return f"{self.family}-{self.groups}x{self.rows}-{self.terms}"

    @classmethod
    def parse(cls, name: str) -> Cell:
        """The cell of a name.

        Raises
        ------
        ValueError
            If it is not the name of a cell.
        """
        family, parametrisation, size, terms = name.split("-")
        groups, rows = map(int, size.split("x"))
        if family not in FAMILIES or parametrisation not in (CENTRED, NONCENTRED):
            raise ValueError(f"{name!r} is not the name of a cell of the grid")
        return cls(family, parametrisation, groups, rows, terms)


GRID = tuple(
    Cell(*levels) for levels in product(FAMILIES, (CENTRED, NONCENTRED), GROUPS, ROWS, TERMS)
)


def spread(cells: Sequence[Cell], n: int) -> list[Cell]:
    """Choose n cells so that levels, and pairs of them, are met about equally often.

    The choice is the same every time, and a larger one contains a smaller one.
    """
    order = np.random.default_rng(0).permutation(len(cells))
    left, chosen = [cells[i] for i in order], []
    met: dict[object, int] = {}

    def keys(cell: Cell) -> list[object]:
        levels = list(vars(cell).items())
        pairs = [(a, b) for i, a in enumerate(levels) for b in levels[:i]]
        return [*levels, *pairs]

    while left and len(chosen) < n:
        cell = min(left, key=lambda c: sum(met.get(key, 0) ** 2 for key in keys(c)))
        left.remove(cell)
        chosen.append(cell)
        for key in keys(cell):
            met[key] = met.get(key, 0) + 1
    return chosen


# ------------------------------------------------------------------------------------------ data


@dataclass(frozen=True)
class Truth:
    """What data were simulated with.

    Attributes
    ----------
    fixed, scale : ndarray, shape (terms,)
    effects : ndarray, shape (groups, terms)
        Fixed effects included.
    extra : float
        Noise of normal data, shape of negative binomial ones; else of no meaning.
    """

    fixed: np.ndarray
    scale: np.ndarray
    effects: np.ndarray
    extra: float


@dataclass(frozen=True)
class Data:
    """Simulated data.

    Attributes
    ----------
    family : str
    group : ndarray of int, shape (rows,)
    design : ndarray, shape (rows, terms)
        Ones, then predictors.
    y : ndarray, shape (rows,)
    truth : Truth
    """

    family: str
    group: np.ndarray
    design: np.ndarray
    y: np.ndarray
    truth: Truth


def seeded(cell: Cell, seed: int) -> np.random.Generator:
    """The generator of the data of a cell."""
    return np.random.default_rng([zlib.crc32(cell.data_name.encode()), seed])


def cell_data(cell: Cell, seed: int) -> Data:
    """Data of a cell; even seeds have scales in the lower half of their range, in logarithms."""
    rng = seeded(cell, seed)
    k = TERMS[cell.terms]
    place = (seed % 2 + rng.random(k)) / 2
    scale = SMALLEST_SCALE * (LARGEST_SCALE / SMALLEST_SCALE) ** place
    fixed = rng.normal(0, 0.5, k)
    effects = fixed + scale * rng.standard_normal((cell.groups, k))
    extra = TRUE_SHAPE if cell.family == NEGATIVE_BINOMIAL else 1.0
    return simulate(cell.family, cell.rows, Truth(fixed, scale, effects, extra), rng)


def prior_data(cell: Cell, rng: np.random.Generator) -> Data:
    """Data of a cell whose truth is drawn from the prior."""
    k = TERMS[cell.terms]
    fixed = rng.normal(0, FIXED_SD, k)
    scale = np.abs(rng.normal(0, SCALE_SD, k))
    effects = fixed + scale * rng.standard_normal((cell.groups, k))
    if cell.family == NEGATIVE_BINOMIAL:
        extra = rng.gamma(SHAPE[0], 1 / SHAPE[1])
    else:
        extra = abs(rng.normal(0, NOISE_SD))
    return simulate(cell.family, cell.rows, Truth(fixed, scale, effects, extra), rng)


def simulate(family: str, rows: int, truth: Truth, rng: np.random.Generator) -> Data:
    """Rows for each group, given the truth."""
    groups, k = truth.effects.shape
    group = np.repeat(np.arange(groups), rows)
    design = rng.standard_normal((len(group), k))
    design[:, 0] = 1
    eta = (truth.effects[group] * design).sum(1)
    if family == NORMAL:
        y = eta + truth.extra * rng.standard_normal(len(eta))
    elif family == BERNOULLI:
        y = (rng.random(len(eta)) < 1 / (1 + np.exp(-eta))).astype(int)
    else:
        rate = np.exp(eta)
        if family == NEGATIVE_BINOMIAL:
            rate = rate * rng.gamma(truth.extra, 1 / truth.extra, len(eta))
        y = rng.poisson(rate)
    return Data(family, group, design, y, truth)


# ---------------------------------------------------------------------------------------- models


def hierarchy(data: Data, *, centred: bool, deterministic: bool = True) -> pm.Model:
    """Model of simulated data.

    Parameters
    ----------
    data : Data
    centred : bool
        Whether effects are variables themselves, or fixed + scale * raw.
    deterministic : bool
        Whether effects that are not free variables are recorded.
    """
    groups, k = data.truth.effects.shape
    dims = ("group", "term")
    with pm.Model(coords={"group": np.arange(groups), "term": np.arange(k)}) as model:
        fixed = pm.Normal("fixed", 0, FIXED_SD, dims="term")
        scale = pm.HalfNormal("scale", SCALE_SD, dims="term")
        if centred:
            effects = pm.Normal("effects", fixed, scale, dims=dims)
        else:
            effects = fixed + scale * pm.Normal("raw", dims=dims)
            if deterministic:
                effects = pm.Deterministic("effects", effects, dims=dims)
        if k == 1:
            eta = effects[data.group, 0]
        else:
            eta = (effects[data.group] * data.design).sum(-1)
        observe(data, eta)
    return model


def observe(data: Data, eta: pt.TensorVariable) -> None:
    """Add the likelihood of data to the model in context."""
    if data.family == NORMAL:
        noise = pm.HalfNormal("noise", NOISE_SD)
        pm.Normal("y", eta, noise, observed=data.y)
    elif data.family == POISSON:
        pm.Poisson("y", pt.exp(eta), observed=data.y)
    elif data.family == BERNOULLI:
        pm.Bernoulli("y", logit_p=eta, observed=data.y)
    else:
        shape = pm.Gamma("shape", *SHAPE)
        pm.NegativeBinomial("y", mu=pt.exp(eta), alpha=shape, observed=data.y)


def cell_model(cell: Cell, seed: int) -> pm.Model:
    """Model of a cell, in its parametrisation."""
    data = cell_data(cell, seed)
    return hierarchy(data, centred=cell.parametrisation == CENTRED)


# ----------------------------------------------------------------------------------- regressions


def regression_data(rows: int, predictors: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predictors (rows, predictors), of which the first is 1, binary outcomes, and true weights."""
    rng = np.random.default_rng([11, rows, predictors])
    x = rng.standard_normal((rows, predictors))
    x[:, 0] = 1
    weights = rng.normal(0, 0.5, predictors)
    y = (rng.random(rows) < 1 / (1 + np.exp(-x @ weights))).astype(int)
    return x, y, weights


REGRESSION_SD = 2.0


def logistic(rows: int, predictors: int) -> pm.Model:
    """Logistic regression on all rows."""
    x, y, _ = regression_data(rows, predictors)
    with pm.Model(coords={"predictor": np.arange(predictors)}) as model:
        beta = pm.Normal("beta", 0, REGRESSION_SD, dims="predictor")
        pm.Bernoulli("y", logit_p=x @ beta, observed=y)
    return model


# -------------------------------------------------------------------------------------- classics

# Rubin, J. Educ. Stat. 6(4), 1981.
SCHOOLS_Y = (28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0)
SCHOOLS_SD = (15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0)
# Tarone, Biometrics 38(1), 1982: tumours and rats of 71 experiments.
TUMOURS = (
    "0 0 0 0 0 0 0 0 0 0 0 0 0 0 1 1 1 1 1 1 1 1 2 2 2 2 2 2 2 2 2 1 5 2 5 3 2 7 7 3 3 2 9 10 4 4 "
    "4 4 4 4 4 10 4 4 4 5 11 12 5 5 6 5 6 6 6 6 16 15 15 9 4"
)
RATS = (
    "20 20 20 20 20 20 20 19 19 19 19 18 18 17 20 20 20 20 19 19 18 18 25 24 23 20 20 20 20 20 20 "
    "10 49 19 46 27 17 49 47 20 20 13 48 50 20 20 20 20 20 20 20 48 19 19 19 22 46 49 20 20 23 19 "
    "22 20 20 20 52 46 47 24 14"
)


def eight_schools(*, centred: bool) -> pm.Model:
    """Effects of coaching in eight schools."""
    with pm.Model(coords={"school": list("ABCDEFGH")}) as model:
        mu = pm.Normal("mu", 0, 5)
        tau = pm.HalfCauchy("tau", 5)
        if centred:
            theta = pm.Normal("theta", mu, tau, dims="school")
        else:
            raw = pm.Normal("theta_trans", dims="school")
            theta = pm.Deterministic("theta", mu + tau * raw, dims="school")
        pm.Normal("y", theta, SCHOOLS_SD, observed=SCHOOLS_Y, dims="school")
    return model


def rat_tumours() -> pm.Model:
    """Tumour rates of rats; Gelman et al., Bayesian Data Analysis, 3rd ed., section 5.3."""
    y, n = (np.array(text.split(), dtype=int) for text in (TUMOURS, RATS))
    with pm.Model(coords={"experiment": np.arange(len(y))}) as model:
        a, b = pm.HalfFlat("a"), pm.HalfFlat("b")
        pm.Potential("prior", -2.5 * pt.log(a + b))
        # The tail of a + b is too heavy for moments; these have some.
        pm.Deterministic("mean_rate", a / (a + b))
        pm.Deterministic("log_size", pt.log(a + b))
        rate = pm.Beta("rate", a, b, dims="experiment")
        pm.Binomial("y", n, rate, observed=y, dims="experiment")
    return model


FUNNEL_SCALE, FUNNEL_AXES = 3.0, 9


def funnel() -> pm.Model:
    """Neal's funnel, Annals of Statistics 31(3), 2003; the variances of x are no use as a bar."""
    with pm.Model(coords={"axis": np.arange(FUNNEL_AXES)}) as model:
        v = pm.Normal("v", 0, FUNNEL_SCALE)
        x = pm.Normal("x", 0, pt.exp(v / 2), dims="axis")
        pm.Deterministic("log_x", pt.log(pt.abs(x)), dims="axis")
    return model
