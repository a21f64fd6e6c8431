"""One fit with a formula: a search for its coordinates, then steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pymc as pm
from numpy.typing import ArrayLike

from pymc_flows.approximation import flow_arguments, restore
from pymc_flows.fitting.nfvi import NFVI
from pymc_flows.flows import build_chain
from pymc_flows.flows.frame import Frame
from pymc_flows.formula import Formula
from pymc_flows.io.files import Content
from pymc_flows.model.logp import density_of
from pymc_flows.start.search import seek_frame
from pymc_flows.support.deadline import Deadline
from pymc_flows.support.interrupts import Interrupts
from pymc_flows.support.seeds import RandomState, integer_seeds
from pymc_flows.training.config import FitConfig
from pymc_flows.training.objectives.elbo import Elbo
from pymc_flows.training.objectives.loss import Anchor
from pymc_flows.training.state import FitState

# Share of the time that is left for the search.
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
    """The inference of `fit`: a flow in the coordinates of a frame, given or searched for.

    The search gets a share of the time until the deadline of the fit.
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


def taken_up(
    content: Content, model: pm.Model, config: FitConfig, kl_weight: float, anchor: Anchor | None
) -> NFVI:
    """The inference of the fit in a file, except for its state, which `restore_fit` sets."""
    inference = NFVI(**flow_arguments(content, model))
    approx = inference.approx
    restore(approx, content)
    inference.hist = approx.hist
    inference.objective.op.beta = kl_weight
    with Interrupts(deferred=False):
        problem = Elbo(approx.problem(kl_weight, anchor))
        inference.state = FitState.prepare(problem, config, lambda: 0)
    return inference
