"""One fit with a formula: a search for its coordinates, then steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pymc as pm
from numpy.typing import ArrayLike

from pymc_flows.fitting.nfvi import NFVI
from pymc_flows.flows import build_chain
from pymc_flows.flows.frame import Frame
from pymc_flows.formula import Formula
from pymc_flows.model.logp import density_of
from pymc_flows.start.search import seek_frame
from pymc_flows.support.deadline import Deadline
from pymc_flows.support.seeds import RandomState, integer_seeds

# Of the time that is left, for the search.
SEARCH_SHARE = 0.5


def inference_of(
    formula: Formula,
    *,
    model: pm.Model,
    start: Mapping[str, ArrayLike] | Frame | None,
    random_seed: RandomState,
    inf_kwargs: Mapping[str, Any] | None = None,
    deadline: Deadline | None = None,
) -> NFVI:
    """What `fit` trains: a flow in the coordinates of a frame, that of a search if none is given.

    Parameters
    ----------
    formula, model, start, random_seed, inf_kwargs
        As for `fit`.
    deadline : Deadline, optional
        Of the fit.
    """
    search_seed, fit_seed = integer_seeds(random_seed, 2)
    if not isinstance(start, Frame):
        dense = not build_chain(formula, density_of(model).dim).is_elementwise
        start = seek_frame(
            model,
            start=start,
            dense=dense,
            random_seed=search_seed,
            deadline=(deadline or Deadline()).share(SEARCH_SHARE),
        )
    return NFVI(formula, model=model, random_seed=fit_seed, start=start, **(inf_kwargs or {}))
