"""How good an approximation is, by importance weights of its own draws."""

from __future__ import annotations

import numpy as np

from pymc_flows.approximation import NormalizingFlow
from pymc_flows.importance import Quality, quality
from pymc_flows.model.log_density import LogDensity
from pymc_flows.support.seeds import RandomState

__all__ = ["Quality", "measure", "quality"]


def measure(
    approx: NormalizingFlow, n_draws: int = 10_000, *, random_seed: RandomState = None
) -> Quality:
    """Measure an approximation by the importance weights of fresh draws.

    The draws are not all held at once.

    Parameters
    ----------
    approx : NormalizingFlow
    n_draws : int
    random_seed : int, Generator, RandomState, optional
    """
    density = LogDensity(approx.density)
    parts = approx.draw_parts(n_draws, random_seed=random_seed)
    return quality(np.concatenate([density.value(points) - log_q for points, log_q in parts]))
