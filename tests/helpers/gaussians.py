"""Mixtures of Gaussians with modes that are far apart."""

import numpy as np
import pymc as pm
import pytensor.tensor as pt


def gaussians(means, shares):
    """A mixture of standard normal distributions; its evidence is 1."""
    means, dim = np.asarray(means, float), len(means[0])
    with pm.Model(coords={"axis": [f"a{i}" for i in range(dim)]}) as model:
        x = pm.Flat("x", dims="axis")
        logs = -0.5 * pt.sqr(x - means).sum(axis=-1) - dim / 2 * np.log(2 * np.pi)
        pm.Potential("target", pt.logsumexp(logs + np.log(shares)))
    return model


def eight(dim):
    """Means and shares of eight."""
    rng = np.random.default_rng(dim)
    means = rng.standard_normal((8, dim))
    if dim == 2:
        angles = np.arange(8) * np.pi / 4
        means = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return 15 * means / np.linalg.norm(means, axis=1)[:, None], np.arange(1, 9) / 36
