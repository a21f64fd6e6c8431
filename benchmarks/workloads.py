"""What `benchmarks.speed` fits: models for PyMC, and their data for the peers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import pymc as pm

from pymc_flows.targets import POTENTIALS, Gaussian, gaussian

type Data = Mapping[str, np.ndarray]

SCHOOLS = {
    "y": np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]),
    "sigma": np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]),
}
GAUSSIAN_DIM = 100


@dataclass(frozen=True)
class Workload:
    """One model, flow and number of draws.

    Attributes
    ----------
    group : str
        What its bars are listed under.
    kind : {"pot1", "pot4", "gaussian", "logistic", "schools"}
    formula : str
    draws : int
        Per step.
    shape : tuple of int
        Rows and predictors of a regression.
    """

    group: str
    kind: str
    formula: str
    draws: int
    shape: tuple[int, ...] = ()

    @property
    def label(self) -> str:
        """What no other workload is called."""
        return f"{self.group} {self.formula}, {self.draws} draw{'s' * (self.draws > 1)}"

    @property
    def is_mean_field(self) -> bool:
        """Whether the flow is the family of ADVI."""
        return self.formula == "scale-loc"

    def data(self) -> Data:
        """Arrays that the model conditions on, or is made of."""
        return _DATA.get(self.kind, _no_data)(*self.shape)

    def model(self) -> pm.Model:
        """The model as a PyMC user writes it."""
        return _MODELS[self.kind](self.data())


def _no_data() -> Data:
    return {}


@cache
def logistic_data(rows: int, predictors: int) -> Data:
    """Predictors X (rows, predictors), standard normal, and outcomes y (rows,) of 0 and 1."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, predictors))
    logit = x @ rng.normal(0, 0.5, predictors)
    return {"x": x, "y": (rng.uniform(size=rows) < 1 / (1 + np.exp(-logit))).astype(np.int64)}


@cache
def _gaussian_target() -> Gaussian:
    """A correlation of 0.5 between neighbours, as of an autoregressive series."""
    lag = np.subtract.outer(np.arange(GAUSSIAN_DIM), np.arange(GAUSSIAN_DIM))
    return gaussian(np.zeros(GAUSSIAN_DIM), 0.5 ** np.abs(lag))


def gaussian_data() -> Data:
    """The matrix that makes the Gaussian's coordinates white: log p(z) = −½ ‖z @ whiten‖²."""
    cov = np.array(_gaussian_target().cov)
    return {"whiten": np.linalg.inv(np.linalg.cholesky(cov)).T}


def logistic(data: Data) -> pm.Model:
    """Logistic regression without an intercept."""
    with pm.Model() as model:
        beta = pm.Normal("beta", 0, 1, shape=data["x"].shape[1])
        pm.Bernoulli("y", logit_p=data["x"] @ beta, observed=data["y"])
    return model


def schools(data: Data) -> pm.Model:
    """Eight schools, non-centred."""
    with pm.Model() as model:
        mu = pm.Normal("mu", 0, 5)
        tau = pm.HalfCauchy("tau", 5)
        raw = pm.Normal("raw", 0, 1, shape=8)
        theta = pm.Deterministic("theta", mu + tau * raw)
        pm.Normal("y", theta, data["sigma"], observed=data["y"])
    return model


_DATA: dict[str, Callable[..., Data]] = {
    "gaussian": gaussian_data,
    "logistic": logistic_data,
    "schools": lambda: SCHOOLS,
}
_MODELS: dict[str, Callable[[Data], pm.Model]] = {
    "pot1": lambda _: POTENTIALS[0].model(),
    "pot4": lambda _: POTENTIALS[3].model(),
    "gaussian": lambda _: _gaussian_target().model(),
    "logistic": logistic,
    "schools": schools,
}

WORKLOADS = (
    Workload("W1", "pot1", "planar*2", 1),
    Workload("W2", "pot1", "planar*8", 100),
    Workload("W3", "pot4", "planar*10", 10),
    Workload("W4", "pot1", "planar*32", 10),
    *(
        Workload("W5", "gaussian", formula, draws)
        for formula in ("scale-loc", "scale-hh*10-loc")
        for draws in (1, 100)
    ),
    *(
        Workload(f"W6 {rows}x{predictors}", "logistic", "scale-loc", draws, (rows, predictors))
        for rows, predictors in ((500, 10), (5000, 50))
        for draws in (1, 10, 100)
    ),
    *(
        Workload("W7", "schools", formula, draws)
        for formula in ("scale-loc", "scale-hh*4-loc")
        for draws in (1, 10, 100)
    ),
)
