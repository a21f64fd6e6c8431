"""All modes of a posterior that a search from many starting points finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pymc as pm
from numpy.typing import ArrayLike

from pymc_flows.flows.frame import Frame
from pymc_flows.model.layout import sizes
from pymc_flows.model.logp import density_of
from pymc_flows.model.streams import stream_of
from pymc_flows.start.options import SEARCH
from pymc_flows.start.passes import on_all_rows
from pymc_flows.start.point import find_start
from pymc_flows.start.search import Seeker
from pymc_flows.start.target import Target
from pymc_flows.support.deadline import Deadline
from pymc_flows.support.interrupts import Interrupts
from pymc_flows.support.seeds import RandomState, integer_seed

# No restart begins at a mode with less than this share of the mass of the largest. ELBOs of
# Gaussians estimate mass roughly: for a skewed mode they may be a few nats too small.
MIN_SHARE_OF_RESTART = 1e-4

# Starting points are further away than in the search for a start: near ones lead to known modes.
SPREADS, MULTIPLES = (1.0, 3.0, 10.0), (10.0, 30.0)


def find_modes(
    model: pm.Model,
    *,
    start: Mapping[str, ArrayLike] | None = None,
    dense: bool = True,
    n_starts: int,
    random_seed: RandomState = None,
    deadline: Deadline | None = None,
) -> list[Frame]:
    """Find the modes of a posterior from many starting points, with a Gaussian at each.

    Parameters
    ----------
    model, start, dense, random_seed
        As for `find_frame`.
    n_starts : int
        Number of starting points.
    deadline : Deadline, optional
        When it has passed, no further starting point is tried.

    Returns
    -------
    list of Frame
        By decreasing mass, estimated by ELBOs; modes with next to no mass are left out.

    Raises
    ------
    ModelError
        As `find_frame`.
    """
    options = replace(
        SEARCH,
        n_starts=n_starts,
        n_starts_in_many=n_starts,
        same_in_a_row=n_starts,
        spreads=SPREADS,
        multiples=MULTIPLES,
        max_curvatures=SEARCH.max_curvatures * max(1, n_starts // SEARCH.n_starts),
        max_gradients=SEARCH.max_gradients * max(1, n_starts // SEARCH.n_starts),
        min_share=MIN_SHARE_OF_RESTART,
    )
    with Interrupts(deferred=False):
        density = density_of(model)
        rng = np.random.default_rng(integer_seed(random_seed))
        center = find_start(density, start, rng)
        seeker = Seeker(
            Target.of(density, center, None), rng, options, deadline or Deadline(), dense=dense
        )
        seeker.from_start(center)
        seeker.from_elsewhere(center)
        modes = seeker.modes()
        if stream_of(density) is not None:
            modes = [on_all_rows(density, frame) for frame in modes]
    return [replace(frame, variables=sizes(density.slots)) for frame in modes]
