"""PyMC's Kullback-Leibler operator for flows: what `NFVI.objective` is."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.tensor.variable import TensorVariable

from pymc_flows.model.examine import plan_draws
from pymc_flows.support.arguments import check_integer
from pymc_flows.support.compat import KL, ObjectiveFunction
from pymc_flows.training.objective import loss_graph


class FlowObjective(ObjectiveFunction):
    """PyMC's objective function with the loss of a flow, vectorised over draws."""

    def __call__(self, nmc: int | None, **kwargs: Any) -> TensorVariable:
        """Return the symbolic loss in nats, from ``nmc`` draws (None: one).

        It has a random generator of its own with a default update: each evaluation of it or of
        its gradient draws anew.
        """
        approx = self.approx
        n_draws = check_integer("nmc", 1 if nmc is None else nmc)
        seed = int(approx.rng.randint(2**30, dtype=np.int64))
        rng = pytensor.shared(np.random.default_rng(seed), name="objective_rng")
        next_rng, z0 = pt.random.normal(
            size=(n_draws, approx.ddim),
            rng=rng,
            dtype=pytensor.config.floatX,
            return_next_rng=True,
        )
        with warnings.catch_warnings():
            # PyTensor discourages what nothing else can do: draw anew at each `eval`.
            warnings.simplefilter("ignore", DeprecationWarning)
            rng.default_update = next_rng
        replacements = kwargs.get("more_replacements")
        plan = plan_draws(approx.density, n_draws, approx.center_point(), "numba", replacements)
        problem = approx.problem(float(self.op.beta))
        return loss_graph(problem, z0, plan, loop=approx.graph_loop, replacements=replacements)


class FlowKL(KL):
    """PyMC's KL operator with `FlowObjective`."""

    objective_class = FlowObjective
