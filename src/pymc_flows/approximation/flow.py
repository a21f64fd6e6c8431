"""The approximation of a whole model by one flow."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pymc as pm
from numpy.typing import ArrayLike

from pymc_flows.approximation.draws import FlowDraws
from pymc_flows.approximation.pickling import OnlyCloudpickle, deep_copy
from pymc_flows.approximation.saving import contents
from pymc_flows.approximation.start import LayerParams, check_jitter, start_state
from pymc_flows.approximation.state import State
from pymc_flows.field.state import FieldState
from pymc_flows.flows.chain import Loop
from pymc_flows.flows.frame import Frame
from pymc_flows.formula import Formula
from pymc_flows.io.files import write
from pymc_flows.model import draws as _draws
from pymc_flows.model.log_density import DensityOfFit, LogDensity
from pymc_flows.model.logp import ModelDensity, density_of
from pymc_flows.model.streams import stream_of
from pymc_flows.support.arguments import model_or_context
from pymc_flows.support.compat import MinibatchRandomVariable
from pymc_flows.support.interrupts import Interrupts
from pymc_flows.support.seeds import RandomState, integer_seed
from pymc_flows.training.objectives.loss import Anchor, Problem


class NormalizingFlow(FlowDraws):
    """Normalizing-flow approximation of a model's posterior: z = c + A T(z0), z0 ~ N(0, I).

    Parameters
    ----------
    flow : str or Formula
        Formula of the chain T, in order of application, such as ``'scale-hh*4-loc'``.
    model : pymc.Model, optional
        Defaults to the model on the context stack.
    jitter : float
        Standard deviation of the noise on the raw start parameters.
    start : dict of str to array-like or Frame, optional
        Start point by variable name; other variables start at ``model.initial_point()``. It is
        the constant c, or the start of a final ``loc`` layer, with c = 0; A = I. A `Frame`, such
        as `find_frame` returns, is c and A.
    params : dict of int to dict of str to array-like, optional
        Initial raw values by layer: position in the expanded formula (0 is applied first) and
        name, shapes as for one layer. They replace the drawn ones, without jitter.
    random_seed : int, Generator, RandomState, optional
        Seeds the start parameters and, where no other seed is given, fits and draws.

    Attributes
    ----------
    formula : Formula
    chain : Chain
    density : ModelDensity
    params : list of SharedVariable
        One per parameter per block, repeats on the leading axis; blocks in order of application,
        alphabetical inside.
    hist : ndarray
        Losses of all iterations so far, in nats.
    ladder : Ladder or None
        What ``fit(formula='auto')`` tried.
    restarts : Restarts or None
        What ``fit(restarts=…)`` found.

    Raises
    ------
    FormulaError
        If ``flow`` is not a formula.
    ModelError
        If the model has no continuous free variable, a discrete one, or ``start`` does not fit.
    ArgumentError
        If ``jitter`` is not a standard deviation, or ``params`` names a layer or a parameter that
        the flow does not have.
    FlowShapeError
        If a value of ``params`` has the wrong shape.

    Examples
    --------
    >>> import numpy as np
    >>> import pymc as pm
    >>> import pymc_flows as pmf
    >>> with pm.Model():
    ...     x = pm.Normal("x", shape=2)
    ...     approx = pmf.NormalizingFlow("loc", jitter=0, start={"x": [1, 2]})
    >>> approx
    NormalizingFlow('loc', dim=2)
    >>> bool(np.isclose(approx.log_prob([1, 2]), -np.log(2 * np.pi)))
    True
    """

    def __init__(
        self,
        flow: str | Formula = "scale-loc",
        *,
        model: pm.Model | None = None,
        jitter: float = 0.01,
        start: Mapping[str, ArrayLike] | Frame | None = None,
        params: LayerParams | None = None,
        random_seed: RandomState = None,
    ):
        formula = Formula(flow)
        model = model_or_context(model)
        jitter = check_jitter(jitter)
        with Interrupts(deferred=False):
            density = density_of(model)
            seeds = np.random.SeedSequence(integer_seed(random_seed))
            q = start_state(
                formula,
                density,
                [slot.name for slot in density.slots],
                jitter=jitter,
                start=start,
                params=params,
                seed=seeds.spawn(1)[0],
            )
            self._set_up(q, density, model, seeds)

    @classmethod
    def of(cls, q: State, model: pm.Model, random_seed: RandomState = None) -> NormalizingFlow:
        """Make the approximation of a model by an existing distribution."""
        approx = cls.__new__(cls)
        seeds = np.random.SeedSequence(integer_seed(random_seed))
        approx._set_up(q, density_of(model), model, seeds)
        return approx

    def _set_up(
        self, q: State, density: ModelDensity, model: pm.Model, seeds: np.random.SeedSequence
    ) -> None:
        super().__init__(q, density, model, seeds)
        self.hist = np.asarray(())
        self.ladder = None
        self.restarts: Any = None
        self._sample_rng = np.random.default_rng(seeds.spawn(1)[0])
        self._draws_functions = _draws.DrawsFunctions(
            {slot.name: slot.shape for slot in density.slots}
        )

    @property
    def ladder(self) -> Any:
        """What ``fit(formula='auto')`` tried."""
        return self._ladder

    @ladder.setter
    def ladder(self, found: Any) -> None:
        self._ladder = found
        # A field, and weights that were found good, are those by the data of the fit, whatever
        # comes in later.
        depends = isinstance(self.q, FieldState) or (found is not None and found.resamples)
        self._fitted_to = DensityOfFit(self.density) if depends else None

    @property
    def graph_loop(self) -> Loop:
        """How repeats enter graphs that PyTensor compiles with any backend."""
        return self.flow.graph_loop

    def problem(self, kl_weight: float = 1.0, anchor: Anchor | None = None) -> Problem:
        """The optimisation problem of a fit: this flow against the model's log density."""
        rvs = [*self.model.observed_RVs, *self.model.free_RVs]
        has_minibatch = any(isinstance(rv.owner.op, MinibatchRandomVariable) for rv in rvs)
        scale = self.symbolic_normalizing_constant if has_minibatch else 1.0
        return Problem(self.flow, self.density, kl_weight, scale, anchor)

    def anchor(self) -> Anchor | None:
        """The log density of all rows at the centre of the frame, for fits that see batches.

        None without batches, and without a frame, whose centre may be far from the posterior.
        """
        if stream_of(self.density) is None or not self.is_framed:
            return None
        point = self.flow.frame.center
        value, gradient = LogDensity(self.density).value_and_grad(point[None])
        return Anchor(point, float(value[0]), gradient[0])

    # --------------------------------------------------------------------------------- display

    def __str__(self) -> str:
        """Formula and dimension."""
        return f"NormalizingFlow({self.q.label}, dim={self.q.dim})"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        parts = [replace(self.formula.table(self.q.chain_dim), title=str(self))._repr_html_()]
        if len(self.hist):
            recent = self.hist[-1_000:]
            mean = recent[np.isfinite(recent)].mean() if np.isfinite(recent).any() else np.nan
            parts.append(
                f"<p>fitted in {len(self.hist):,} steps; average loss of the last {len(recent):,}: "
                f"{mean:,.5g} nats</p>"
            )
        elif self.ladder is None and self.restarts is None:
            parts.append("<p>not fitted, or without a record of the losses</p>")
        if self.ladder is not None:
            parts.append(f"<p>the formulas that were tried:</p>{self.ladder._repr_html_()}")
        if self.restarts is not None:
            parts.append(f"<p>the restarts:</p>{self.restarts._repr_html_()}")
        return "".join(parts)

    # -------------------------------------------------------------------------------- keeping

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a netCDF file that `pymc_flows.load` reads, with the same model at hand.

        The file has the formula, the frame, the raw parameters, ``hist``, ``ladder``, the random
        states of the draws, and what the model is recognised by: its free variables, and its log
        density at three points. It replaces an existing file in one step.

        Parameters
        ----------
        path : str or path-like

        Raises
        ------
        FileNotFoundError, IsADirectoryError
            If the folder does not exist, or the path is one.
        ModuleNotFoundError
            If h5netcdf or h5py is missing (the extra ``files``).
        """
        write(path, contents(self))

    # -------------------------------------------------------------------------------- copying

    def __getstate__(self) -> dict[str, Any]:
        """Make plain pickle say what to do instead."""
        # First, so that plain pickle meets it before anything of the model.
        return {"_pickle_guard": OnlyCloudpickle(), **super().__getstate__()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore."""
        state.pop("_pickle_guard")
        super().__setstate__(state)

    def __deepcopy__(self, memo: dict[int, Any]) -> NormalizingFlow:
        """Copy with the model."""
        return deep_copy(self)
