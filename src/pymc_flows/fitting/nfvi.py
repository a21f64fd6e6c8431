"""`NFVI`: fits a normalizing flow to a model's log density with the compiled training loop."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pymc as pm
from numpy.typing import ArrayLike
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Variable
from pytensor.tensor.variable import TensorVariable

from pymc_flows.approximation import NormalizingFlow, deep_copy
from pymc_flows.approximation._pymc import FlowKL, Inference, KLqp
from pymc_flows.errors import ArgumentError
from pymc_flows.fitting.checkpoint import save_fit
from pymc_flows.flows.frame import Frame
from pymc_flows.formula import Formula
from pymc_flows.io.growing import Growing
from pymc_flows.model.logp import density_of
from pymc_flows.start.point import possible_start
from pymc_flows.support.arguments import check_integer, model_or_context, renamed
from pymc_flows.support.compat import default_progress_theme
from pymc_flows.support.deadline import Deadline
from pymc_flows.support.garbage import fewer_collections
from pymc_flows.support.interrupts import Interrupts
from pymc_flows.support.seeds import RandomState, integer_seed
from pymc_flows.training.annealing import Anneal
from pymc_flows.training.config import Callback, FitConfig
from pymc_flows.training.hooks import Callbacks, Checkpoint, Settling, TimeLimit
from pymc_flows.training.objectives.elbo import Elbo
from pymc_flows.training.optimizers import Optimizer
from pymc_flows.training.state import FitState
from pymc_flows.training.stopping import Plateau
from pymc_flows.training.trainer import Outcome, Trainer


class NFVI(KLqp):
    """Normalizing-flow variational inference.

    Parameters
    ----------
    flow : str or Formula
        Formula of the flow, such as ``'scale-hh*4-loc'`` or ``'planar*8'``.
    model : pymc.Model, optional
        Defaults to the model on the context stack.
    jitter : float
        Standard deviation of the noise on the raw start parameters.
    start : dict of str to array-like or Frame, optional
        Start point; defaults to ``model.initial_point()``. If the log density is not finite there,
        values that ``start`` does not give are moved by up to 1 in the unconstrained space, up to
        10 times, as `pymc.sample` does; the log says so. A `Frame`, such as `find_frame` returns,
        gives fixed coordinates in which the flow works.
    params : dict of int to dict of str to array-like, optional
        Initial raw values by layer; see `NormalizingFlow`.
    random_seed : int, Generator, RandomState, optional
        Seeds the start parameters, and fits and draws without a seed of their own.

    Attributes
    ----------
    approx : NormalizingFlow
    objective : FlowObjective
        ``objective(nmc)`` is the symbolic loss, differentiable w.r.t. ``approx.params``.
    hist : ndarray
        Losses of all steps so far, in nats, one per step.

    Examples
    --------
    >>> import pymc as pm
    >>> import pymc_flows as pmf
    >>> with pm.Model():
    ...     x = pm.Normal("x", shape=2)
    ...     inference = pmf.NFVI("scale-loc", random_seed=1)
    >>> inference.approx
    NormalizingFlow('scale-loc', dim=2)
    """

    hist: np.ndarray
    state: Any

    def __init__(
        self,
        flow: str | Formula = "scale-loc",
        *,
        model: pm.Model | None = None,
        jitter: float = 0.01,
        start: Mapping[str, ArrayLike] | Frame | None = None,
        params: Mapping[int, Mapping[str, ArrayLike]] | None = None,
        random_seed: RandomState = None,
    ):
        model, begin = model_or_context(model), cast("Any", start)
        if not isinstance(start, Frame):
            with Interrupts(deferred=False), fewer_collections():
                density = density_of(model)  # held, so that the flow finds it again
                begin = possible_start(density, start, lambda: integer_seed(random_seed))
        approx = NormalizingFlow(
            flow, model=model, jitter=jitter, start=begin, params=params, random_seed=random_seed
        )
        Inference.__init__(self, FlowKL, approx, None, beta=1.0)

    def __repr__(self) -> str:
        """Formula, dimension and steps so far."""
        steps = 0 if self.state is None else self.state.i
        return f"NFVI({str(self.approx.formula)!r}, dim={self.approx.ddim}, steps={steps:,})"

    def __deepcopy__(self, memo: dict[int, Any]) -> NFVI:
        """Copy with the model and, after a fit, all that `refine` continues from."""
        return deep_copy(self)

    # ---------------------------------------------------------------------------------- fitting

    def fit(
        self,
        n: int = 10_000,
        score: bool | None = None,  # noqa: FBT001 - PyMC's signature
        callbacks: Sequence[Callback] | None = None,
        progressbar: bool = True,  # noqa: FBT001, FBT002 - PyMC's signature
        progressbar_theme: Any = default_progress_theme,
        *,
        backend: str | None = None,
        include_transformed: bool = False,
        random_seed: RandomState = None,
        checkpoint: str | os.PathLike[str] | None = None,
        every: int | None = None,
        obj_n_mc: int | None = 64,
        obj_optimizer: Optimizer | None = None,
        schedule: str | None = None,
        stop: bool | Plateau | None = None,
        anneal: float | Anneal | None = None,
        gradient: str | None = None,
        more_obj_params: Sequence[SharedVariable] | None = None,
        more_updates: Mapping[SharedVariable, TensorVariable] | None = None,
        more_replacements: Mapping[Variable, Variable] | None = None,
        total_grad_norm_constraint: float | None = None,
        compile_kwargs: Mapping[str, Any] | None = None,
        devices: Any = None,
        fn_kwargs: Mapping[str, Any] | None = None,
        tf_n_mc: int | None = None,
        test_optimizer: Optimizer | None = None,
        more_tf_params: Sequence[SharedVariable] | None = None,
    ) -> NormalizingFlow:
        """Fit the flow by stochastic gradient steps on the negative ELBO.

        A step that raises, or whose loss, gradient or update is not finite, changes nothing; it
        counts as a step, with NaN in ``hist``, and a warning at the end says how many there were.
        Ctrl-C ends the fit after the running call, within about a quarter of a second or one step.

        Parameters
        ----------
        n : int
            Number of steps.
        score : bool, optional
            Record the loss; default True. Without it ``hist`` does not grow.
        callbacks : list of callable
            Called as ``callback(approx, losses, i)`` after each step i = 1, 2, …, at the cost of
            the compiled loop's speed. PyMC's `CheckParametersConvergence` is called only at i = 1
            and the multiples of its ``every``. A `StopIteration` ends the fit after that step. A
            `pymc_flows.callbacks.Tracker` records inside the loop.
        progressbar : bool
            Show steps, loss and steps per second.
        progressbar_theme : rich.theme.Theme
            Theme of the progress bar.
        backend : {"numba", "jax"}, optional
            Compiler of the loop; by default `choose_backend` decides.
        include_transformed : bool
            Whether ``approx.state`` has the unconstrained variables as well.
        random_seed : int, Generator, RandomState, optional
            Seeds the base noise and the model's own randomness (minibatches); by default the seed
            of the inference does. The same seed gives the same bits on one backend and machine.
        checkpoint : str or path-like, optional
            File that keeps the fit, for `pymc_flows.resume` after a crash. It is written before
            the first step (an existing file is replaced), then as ``every`` says, and when the fit
            ends, is interrupted or fails; also by `refine`. A process that is killed while it
            writes leaves the last complete file, and a hidden one, ``.*.tmp``, beside it. More
            than 100,000 losses are in a second file, ``fit.nc.hist-…``, until the fit ends.
        every : int, optional
            Steps between checkpoints; default 1,000.
        obj_n_mc : int, optional
            Draws per step; None means one.
        obj_optimizer : callable, optional
            Any PyMC optimizer, such as ``pm.adam(learning_rate=.01)``, which is the default, with
            cosine decay of the step size to a hundredth over the ``n`` steps.
        schedule : {'cosine', 'one-cycle', 'halving', 'constant'}, optional
            How the step size changes over the ``n`` steps: it decays to a hundredth, rises for 30 %
            of them and then decays, halves after a half and three quarters of them, or stays. By
            default it decays for the default optimizer and stays for others.
        stop : bool or Plateau, optional
            End the fit once the loss has settled, after ``n`` steps at most. The step size stays at
            its peak until then and decays in the last steps. By default all ``n`` steps are taken.
        anneal : float or Anneal, optional
            Fit to a flattened target first, p^β with β from 0.01 to 1 over this share of the
            steps, so that separate modes are found. ``hist`` has the losses of the target itself.
        gradient : {'total', 'path', 'switch'}, optional
            Estimate of the gradient: that of the loss; the path gradient, whose noise vanishes as
            the flow approaches the posterior; or the first for half of the steps, then the second.
            The default is the path gradient for planar and affine layers on JAX without annealing,
            else that of the loss.
        more_obj_params : list of SharedVariable
            Parameters of the model to optimise along.
        more_updates : dict
            Further updates of shared variables, once per step.
        more_replacements : dict
            Variables of the model (shared ones, minibatches, variables computed from them), and
            what replaces them in the log density.
        total_grad_norm_constraint : float, optional
            Upper bound of the gradient's norm.
        compile_kwargs : dict
            Passed to `pytensor.function`.
        devices : int, sequence of jax.Device, jax.sharding.Mesh or NamedSharding, optional
            Devices of JAX, or their number, among which the rows of the data are shared out:
            observed variables, and all data with as many entries along an axis. Parameters and
            draws are on each device; XLA adds up the gradients. The rows must divide evenly; the
            log says which variables were shared out. With devices of several processes
            (`jax.distributed`), one of each, every process has a model of its own rows, and losses
            and gradients are those of all rows.
        fn_kwargs
            Deprecated name of ``compile_kwargs``.
        tf_n_mc, test_optimizer, more_tf_params
            For test functions, which this inference does not have: ignored with a warning.

        Returns
        -------
        NormalizingFlow
            ``self.approx``, also if the fit was interrupted.

        Raises
        ------
        ArgumentError
            If an argument cannot be used.
        ModelError
            If the log density is not finite at the start, or has no gradient.
        BackendError
            If the backend is unknown, missing, or lacks an Op of the model.
        FitError
            If 100 steps in a row failed; the message names the term of the model, coordinate or
            gradient. The approximation keeps the parameters of the last good step.
        """
        arguments = dict(locals())  # `FitConfig` has the same names
        del arguments["self"]
        self.train(FitConfig(**arguments)).tell(stacklevel=2)
        return self.approx

    def train(self, config: FitConfig, *, deadline: Deadline | None = None) -> Outcome:
        """Do what `fit` does, until the deadline, and return the outcome instead of logging it."""
        self.prepare(config)
        return self.go_on(config.progressbar_theme, show=config.progressbar, deadline=deadline)

    def prepare(self, config: FitConfig) -> None:
        """Check everything, build the loop, and plan the steps."""
        approx = self.approx

        def entropy() -> int:
            if config.random_seed is None:
                return int(approx.rng.randint(2**30, dtype=np.int64))
            return integer_seed(config.random_seed)

        with Interrupts(deferred=False), fewer_collections():
            # These arguments change the density, and the anchor is one of the model as it is.
            changes = config.more_replacements or config.more_obj_params or config.more_updates
            anchor = None if changes else approx.anchor()
            problem = approx.problem(float(self.objective.op.beta), anchor)
            self.state = FitState.prepare(Elbo(problem), config, entropy)
        approx.include_transformed = config.include_transformed
        self.state.begin(config.n)
        if config.checkpoint is not None:
            save_fit(config.checkpoint, approx, self.state, self.hist, every=self.state.every)

    def refine(
        self,
        n: int,
        progressbar: bool = True,  # noqa: FBT001, FBT002 - PyMC's signature
        progressbar_theme: Any = default_progress_theme,
        *,
        learning_rate: float | None = None,
    ) -> None:
        """Continue the last fit: same compiled loop, optimizer state, noise and callbacks.

        The callbacks' index goes on, and ``hist`` grows.

        Parameters
        ----------
        n : int
            Number of further steps.
        progressbar, progressbar_theme
            As in `fit`.
        learning_rate : float, optional
            Constant step size from here on. Default: that of the optimizer; of the default
            optimizer's schedule what is left of it after an interrupted fit, then its final one.

        Raises
        ------
        TypeError
            Before the first fit, as in PyMC.
        ArgumentError
            If ``learning_rate`` is not positive, or given but the optimizer fixed its own.
        ModelError
            If data have changed that decide on lengths, or are masks.
        """
        n = check_integer("n", n, minimum=0)
        if self.state is None:
            raise TypeError("Need to call `.fit` first")
        if learning_rate is not None and not self.state.has_rate:
            raise ArgumentError(
                "learning_rate cannot be changed: the optimizer of the last fit has no step size "
                "of its own\nUse one like pm.adam(learning_rate=.01)."
            )
        self.state.objective.problem.density.check_lengths()
        self.approx.density.check_shapes()
        self.state.begin(n, learning_rate)
        self.go_on(progressbar_theme, show=progressbar).tell(stacklevel=2)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a netCDF file with the approximation and all that `refine` continues from.

        `pymc_flows.resume` makes an inference of it, `pymc_flows.load` the approximation alone.

        Parameters
        ----------
        path : str or path-like
        """
        if self.state is None:
            self.approx.save(path)
        else:
            save_fit(path, self.approx, self.state, self.hist, every=0)

    def run_profiling(
        self,
        n: int = 1000,
        score: bool | None = None,  # noqa: FBT001 - PyMC's signature
        *,
        backend: str | None = None,
        compile_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Profile the compiled loop; parameters move as in a fit, ``hist`` stays as it is.

        Parameters
        ----------
        n : int
            Number of steps.
        score, backend, compile_kwargs, **kwargs
            As in `fit`.

        Returns
        -------
        pytensor.compile.profiling.ProfileStats
        """
        hist, state = self.hist, self.state
        compile_kwargs = renamed(kwargs.pop("fn_kwargs", None), compile_kwargs, stacklevel=3)
        profile = {**compile_kwargs, "profile": True}
        try:
            self.fit(n, score, backend=backend, compile_kwargs=profile, **kwargs)
            return self.state.loop.function.profile
        finally:
            self.hist, self.state = hist, state
            self.approx.hist = hist

    # ------------------------------------------------------------------------------------ inside

    def go_on(self, theme: Any, *, show: bool, deadline: Deadline | None = None) -> Outcome:
        """Take the planned steps, or those that another process has left."""
        state, approx = self.state, self.approx
        split = len(self.hist) - (state.done if state.config.score else 0)
        before, earlier = self.hist[:split], self.hist[split:]

        growing = state.checkpoint and Growing(state.checkpoint, "hist")

        def save(losses: np.ndarray, growing: Growing | None = growing) -> None:
            if state.checkpoint is not None:
                hist = np.concatenate([before, losses])
                save_fit(state.checkpoint, approx, state, hist, every=state.every, growing=growing)

        hooks = [
            Settling(state),
            TimeLimit(deadline or Deadline()),
            Callbacks(approx, state.callbacks, approx.chain),
            Checkpoint(state.every, save),
        ]
        trainer = Trainer(state, hooks, earlier)
        go_on = "refine(n) of an NFVI takes further ones; a fit with checkpoint= can be resumed."
        if state.checkpoint is not None:
            go_on = f"pymc_flows.resume({os.fspath(state.checkpoint)!r}) takes the others."
        try:
            return replace(trainer.run(theme, show=show), go_on=go_on)
        finally:
            self.hist = approx.hist = np.concatenate([before, trainer.losses])
            save(trainer.losses, None)
            if growing is not None:
                growing.remove()
