"""A model whose posterior is known exactly, and approximations that are given, not fitted."""

import numpy as np
import pymc as pm

import pymc_flows as pmf
from pymc_flows.flows.frame import Frame


def conjugate(y, sd=2.0):
    """A prior N(0, 3²) and data N(mu, sd²): mean, sd and log evidence of the posterior."""
    n = len(y)
    precision = 1 / 9 + n / sd**2
    mean = y.sum() / sd**2 / precision
    cov = sd**2 * np.eye(n) + 9 * np.ones((n, n))
    _, log_det = np.linalg.slogdet(2 * np.pi * cov)
    return mean, precision**-0.5, -0.5 * (log_det + y @ np.linalg.solve(cov, y))


def conjugate_model(y):
    with pm.Model() as model:
        mu = pm.Normal("mu", 0, 3)
        pm.Normal("y", mu, 2, observed=y)
    return model


def gaussian(model, mean, sd):
    frame = Frame(np.atleast_1d(mean).astype(float), np.atleast_1d(sd).astype(float))
    return pmf.NormalizingFlow("scale-loc", model=model, jitter=0, start=frame, random_seed=1)
