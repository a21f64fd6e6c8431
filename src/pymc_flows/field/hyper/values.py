"""Weighted values of the hyperparameters, and the distribution that describes them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pymc_flows.field.hyper.flow import HyperFlow
from pymc_flows.field.hyper.proposal import Proposal
from pymc_flows.importance import Quality


@dataclass(frozen=True, eq=False)
class HyperValues:
    """A distribution over hyperparameters, and weighted values of these.

    Attributes
    ----------
    flow : Proposal or HyperFlow
        q(g): a Gaussian or a flow.
    quality : Quality
        Quality of q(g), by weights of its draws against the marginal.
    hyper : ndarray, shape (n, n_hyper)
        Values of all rounds, in random order; the marginal was evaluated or predicted there.
    log_weights : ndarray, shape (n,)
        Logarithms of their normalised and Pareto-smoothed weights.
    overall : Quality
        Quality of these weights; its log evidence is that of the model.
    error : float
        Standard error, in nats, of the corrected marginal itself; the log evidence has it, too.
    """

    flow: Proposal | HyperFlow
    quality: Quality
    hyper: np.ndarray
    log_weights: np.ndarray
    overall: Quality
    error: float
