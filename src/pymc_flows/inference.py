"""`NFVI`: fits a normalizing flow to a model's log density with the compiled training loop."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
from numpy.typing import ArrayLike
from pymc.progress_bar import default_progress_theme
from pymc.util import RandomState, _get_seeds_per_chain
from pymc.variational.callbacks import CheckParametersConvergence
from pymc.variational.inference import Inference, KLqp
from pymc.variational.operators import KL
from pymc.variational.opvi import ObjectiveFunction
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Variable
from pytensor.tensor.variable import TensorVariable

from pymc_flows._progress import FitProgress
from pymc_flows.approximation import NormalizingFlow
from pymc_flows.backend import choose_backend, layer_loop, step_seconds
from pymc_flows.callbacks import Tracker
from pymc_flows.errors import FitError, FlowError
from pymc_flows.examine import DrawPlan, check_backend, check_start, plan_draws, why_not_finite
from pymc_flows.formula import Formula
from pymc_flows.objective import loss_and_gradients, loss_graph
from pymc_flows.optimizers import Optimizer, Rated, rated
from pymc_flows.training import ChunkSizer, Clock, DeferredInterrupt, Step, TrainingLoop

_log = logging.getLogger(__name__)

# This many steps in a row without a finite loss and gradient: no further one will come.
MAX_SKIPPED = 100

type Callback_ = Callable[[Any, Any, int], object]


class FlowObjective(ObjectiveFunction):
    """PyMC's objective function with the loss of a flow, vectorised over draws."""

    def __call__(self, nmc: int | None, **kwargs: Any) -> TensorVariable:
        """Return the symbolic loss in nats, from ``nmc`` draws (None: one).

        It has a random generator of its own with a default update: each evaluation of it or of
        its gradient draws anew.
        """
        approx = self.approx
        n_draws = _positive("nmc", 1 if nmc is None else nmc)
        seed = int(approx.rng.randint(2**30, dtype=np.int64))
        rng = pytensor.shared(np.random.default_rng(seed), name="objective_rng")
        next_rng, z0 = pt.random.normal(
            size=(n_draws, approx.ddim),
            rng=rng,
            dtype=pytensor.config.floatX,
            return_next_rng=True,
        )
        rng.default_update = next_rng
        z0 = pt.specify_shape(z0, (n_draws, approx.ddim))
        replacements = kwargs.get("more_replacements")
        plan = plan_draws(
            approx.density, n_draws, approx.density.start(), "numba", replacements
        )
        problem = approx.problem(float(self.op.beta))
        return loss_graph(
            problem, z0, plan, loop=approx.graph_loop, replacements=replacements
        )


class FlowKL(KL):
    """PyMC's KL operator with `FlowObjective`."""

    objective_class = FlowObjective


@dataclass
class FitState:
    """What `NFVI.refine` continues from.

    Attributes
    ----------
    i : int
        Steps of this fit so far.
    loop : TrainingLoop
    sizer : ChunkSizer
    callbacks : list of callable
    optimizer : Rated
    total : int
        Steps that the fit was planned for: the length of a schedule.
    score : bool
    """

    i: int
    loop: TrainingLoop
    sizer: ChunkSizer
    callbacks: list[Callback_]
    optimizer: Rated
    total: int
    score: bool


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
    start : dict of str to array-like, optional
        Start point; defaults to ``model.initial_point()``.
    params : dict of int to dict of str to array-like, optional
        Initial raw values by layer; see `NormalizingFlow`.
    random_seed : int, Generator, RandomState, optional
        Seeds the start parameters and, where they get no seed of their own, fits and draws.

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

    def __init__(
        self,
        flow: str | Formula = "scale-loc",
        *,
        model: pm.Model | None = None,
        jitter: float = 0.01,
        start: Mapping[str, ArrayLike] | None = None,
        params: Mapping[int, Mapping[str, ArrayLike]] | None = None,
        random_seed: RandomState = None,
    ):
        approx = NormalizingFlow(
            flow, model=model, jitter=jitter, start=start, params=params, random_seed=random_seed
        )
        Inference.__init__(self, FlowKL, approx, None, beta=1.0)

    # ---------------------------------------------------------------------------------- fitting

    def fit(  # type: ignore[override]
        self,
        n: int = 10_000,
        score: bool | None = None,  # noqa: FBT001 - PyMC's signature
        callbacks: Sequence[Callback_] | None = None,
        progressbar: bool = True,  # noqa: FBT001, FBT002 - PyMC's signature
        progressbar_theme: Any = default_progress_theme,
        *,
        backend: str | None = None,
        include_transformed: bool = False,
        random_seed: RandomState = None,
        obj_n_mc: int | None = 64,
        obj_optimizer: Optimizer | None = None,
        more_obj_params: Sequence[SharedVariable] | None = None,
        more_updates: Mapping[SharedVariable, TensorVariable] | None = None,
        more_replacements: Mapping[Variable, Variable] | None = None,
        total_grad_norm_constraint: float | None = None,
        compile_kwargs: Mapping[str, Any] | None = None,
        fn_kwargs: Mapping[str, Any] | None = None,
        tf_n_mc: int | None = None,
        test_optimizer: Optimizer | None = None,
        more_tf_params: Sequence[SharedVariable] | None = None,
    ) -> NormalizingFlow:
        """Fit the flow by stochastic gradient steps on the negative ELBO.

        A step with a non-finite loss or gradient is skipped; how many is said at the end.

        Parameters
        ----------
        n : int
            Number of steps.
        score : bool, optional
            Record the loss; default True. Without it ``hist`` does not grow.
        callbacks : list of callable
            Called as ``callback(approx, losses, i)`` after step i = 1, 2, …; one with an
            attribute ``every`` sees i = 1 and the multiples of it. A `StopIteration` ends the fit
            after that step. A `pymc_flows.callbacks.Tracker` records inside the loop.
        progressbar : bool
            Show steps, loss and steps per second.
        progressbar_theme : rich.theme.Theme
            Theme of the progress bar.
        backend : {"numba", "jax"}, optional
            What compiles the loop; by default `choose_backend` decides.
        include_transformed : bool
            Whether ``approx.state`` has the unconstrained variables as well.
        random_seed : int, Generator, RandomState, optional
            Seeds the base noise and the model's own randomness (minibatches). The same seed gives
            the same bits on one backend and machine.
        obj_n_mc : int, optional
            Draws per step; None means one.
        obj_optimizer : callable, optional
            Any PyMC optimizer, such as ``pm.adam(learning_rate=.01)``. The default is that one with
            cosine decay of the step size to a hundredth over the ``n`` steps.
        more_obj_params : list of SharedVariable
            Parameters of the model to optimise along.
        more_updates : dict
            Further updates of shared variables, once per step.
        more_replacements : dict
            Replacements in the model's log density, before gradients.
        total_grad_norm_constraint : float, optional
            Upper bound of the gradient's norm.
        compile_kwargs : dict
            Passed to `pytensor.function`.
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
        ModelError
            If the log density is not finite at the start, or has no gradient.
        BackendError
            If the backend is unknown, missing, or lacks an Op of the model.
        FitError
            If no step succeeds any more. The approximation keeps its last finite parameters.
        """
        n = _positive("n", n, minimum=0)
        n_draws = _positive("obj_n_mc", 1 if obj_n_mc is None else obj_n_mc)
        score = bool(self._maybe_score(score))
        compile_kwargs = dict(_deprecated(fn_kwargs, compile_kwargs) or {})
        _warn_unused(
            tf_n_mc=tf_n_mc, test_optimizer=test_optimizer, more_tf_params=more_tf_params
        )
        check_backend(backend)
        callbacks = list(callbacks or [])
        approx = self.approx
        approx.density.check_shapes()
        start = approx.center_point()
        check_start(approx.density, start, more_replacements)
        backend = choose_backend(backend, approx.chain, approx.density, n_draws, more_replacements)
        plan = plan_draws(approx.density, n_draws, start, backend, more_replacements)

        optimizer = rated(obj_optimizer)
        trackers = [c for c in callbacks if isinstance(c, Tracker)]
        step = self._step(
            plan,
            n_draws,
            optimizer,
            backend=backend,
            extra=list(more_obj_params or []),
            more_updates=dict(more_updates or {}),
            replacements=more_replacements,
            max_norm=total_grad_norm_constraint,
            score=score,
            track_params=any(t.params for t in trackers),
            track_grads=any(t.grads for t in trackers),
        )
        for tracker in trackers:
            tracker.describe(approx.chain)
        noise_seed, model_seed = self._seeds(random_seed)
        loop = TrainingLoop(
            step,
            backend=backend,
            noise_seed=noise_seed,
            model_seed=model_seed,
            compile_kwargs=compile_kwargs,
        )
        sizer = ChunkSizer(loop, step_seconds(approx.chain, approx.density, plan, n_draws))
        self.state = FitState(0, loop, sizer, callbacks, optimizer, n, score)
        approx.groups[0].include_transformed = include_transformed
        self._iterate(n, progressbar=progressbar, theme=progressbar_theme)
        return approx

    def refine(  # type: ignore[override]
        self,
        n: int,
        progressbar: bool = True,  # noqa: FBT001, FBT002 - PyMC's signature
        progressbar_theme: Any = default_progress_theme,
        *,
        learning_rate: float | None = None,
    ) -> None:
        """Continue the last fit: same compiled loop, optimizer state and callbacks.

        Parameters
        ----------
        n : int
            Number of further steps.
        progressbar, progressbar_theme
            As in `fit`.
        learning_rate : float, optional
            Constant step size from here on. Default: the final one of the schedule.

        Raises
        ------
        TypeError
            Before the first fit, as in PyMC.
        FlowError
            If ``learning_rate`` is given but the optimizer fixed its own.
        """
        n = _positive("n", n, minimum=0)
        if self.state is None:
            raise TypeError("Need to call `.fit` first")
        self.approx.density.check_shapes()
        optimizer = self.state.optimizer
        rate = optimizer.final(self.state.total) if learning_rate is None else learning_rate
        if optimizer.rate is None and learning_rate is not None:
            raise FlowError(
                "learning_rate cannot be changed: the optimizer of the last fit has no step size "
                "of its own\nUse one like pm.adam(learning_rate=.01)."
            )
        self.state.optimizer = Rated(
            optimizer.optimizer, optimizer.rate, float(rate), decays=False
        )
        self._iterate(n, progressbar=progressbar, theme=progressbar_theme)

    def run_profiling(  # type: ignore[override]
        self,
        n: int = 1000,
        score: bool | None = None,  # noqa: FBT001 - PyMC's signature
        *,
        backend: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Profile single optimizer steps; the parameters move as in a fit.

        Parameters
        ----------
        n : int
            Number of steps.
        score, backend, **kwargs
            As in `fit`.

        Returns
        -------
        pytensor.compile.profiling.ProfileStats
        """
        check_backend(backend)
        kwargs.setdefault("obj_n_mc", 64)
        kwargs.setdefault("obj_optimizer", rated(None).optimizer)
        return super().run_profiling(n, score, backend=backend, **kwargs)

    # ------------------------------------------------------------------------------------ inside

    def _step(
        self,
        plan: DrawPlan,
        n_draws: int,
        optimizer: Rated,
        *,
        backend: str,
        extra: list[SharedVariable],
        more_updates: dict[SharedVariable, TensorVariable],
        replacements: Mapping[Variable, Variable] | None,
        max_norm: float | None,
        score: bool,
        track_params: bool,
        track_grads: bool,
    ) -> Step:
        approx = self.approx
        problem = approx.problem(float(self.objective.op.beta))
        noise = pt.matrix("z0", shape=(n_draws, approx.ddim), dtype=pytensor.config.floatX)
        loss, grads = loss_and_gradients(
            problem,
            noise,
            plan,
            loop=layer_loop(backend),
            extra=extra,
            replacements=replacements,
        )
        if max_norm is not None:
            grads = pm.total_norm_constraint(grads, max_norm)
        params = [*problem.flat_params, *extra]
        updates = dict(optimizer.optimizer(grads, params))
        updates.update(more_updates)
        named = approx.groups[0].params_dict
        tracked: dict[str, TensorVariable] = dict(named) if track_params else {}
        if track_grads:
            names = {value: name for name, value in named.items()}
            tracked.update(
                {f"grad_{names[p]}": g for p, g in zip(params, grads, strict=True) if p in names}
            )
        return Step(noise, loss if score else None, grads, updates, optimizer.rate, tracked)

    def _seeds(self, random_seed: RandomState) -> list[np.random.SeedSequence]:
        if random_seed is None:
            entropy = int(self.approx.rng.randint(2**30, dtype=np.int64))
        else:
            entropy = int(_get_seeds_per_chain(random_seed, 1)[0])
        return np.random.SeedSequence(entropy).spawn(2)

    def _iterate(self, n: int, *, progressbar: bool, theme: Any) -> None:
        """Run ``n`` more steps of the current state."""
        state = self.state
        first, run = state.i, _Run(state, n)
        every = math.gcd(*(_every(c) for c in run.callbacks)) if run.callbacks else 0
        if every:
            state.loop.limit(every)
        try:
            with DeferredInterrupt() as interrupt, FitProgress(n, theme, show=progressbar) as bar:
                while run.done < n:
                    steps = min(state.sizer.steps, n - run.done)
                    if every:
                        steps = min(steps, _until_next(state.i, every))
                    with Clock() as clock:
                        chunk = state.loop.run(state.optimizer.rates(state.i, steps, state.total))
                    state.sizer.record(steps, clock.seconds)
                    run.record(chunk)
                    bar.update(run.done, run.losses)
                    interrupt.raise_pending()
                    if every and (state.i == 1 or state.i % every == 0):
                        for callback in run.callbacks:
                            if _wants(callback, state.i):
                                callback(self.approx, run.losses if state.score else None, state.i)
                    if run.stuck:
                        raise FitError(self._stuck(run))
        except StopIteration as stop:
            _log.info("%s", stop)
        except KeyboardInterrupt:
            _log.info("Interrupted at step %d of %d.", state.i, first + n)
        finally:
            if state.score:
                self.hist = np.concatenate([self.hist, run.losses])
            self.approx.hist = self.hist
        run.report()

    def _stuck(self, run: _Run) -> str:
        points, _ = self.approx.sample_and_log_prob(64, random_seed=0)
        return (
            f"{run.in_a_row} steps in a row had a non-finite loss or gradient, the last of them "
            f"step {self.state.i}\n{why_not_finite(self.approx.density, points)}\n"
            "Parameters are those of the last finite step. Try a smaller learning_rate, another "
            "start=, or total_grad_norm_constraint=."
        )


class _Run:
    """The losses and skipped steps of one call of `fit` or `refine`."""

    def __init__(self, state: FitState, n: int):
        self.state = state
        self.done = 0
        self.skipped = 0
        self.in_a_row = 0
        self.callbacks = [c for c in state.callbacks if not isinstance(c, Tracker)]
        self._trackers = [c for c in state.callbacks if isinstance(c, Tracker)]
        self._losses = np.empty(n if state.score else 0)

    @property
    def losses(self) -> np.ndarray:
        """Losses of this run so far, in nats."""
        return self._losses[: self.done if self.state.score else 0]

    @property
    def stuck(self) -> bool:
        return self.in_a_row >= MAX_SKIPPED

    def record(self, chunk: Any) -> None:
        n = len(chunk.skipped)
        if self.state.score:
            self._losses[self.done : self.done + n] = chunk.losses
        for tracker in self._trackers:
            tracker.record(self.state.i + 1, chunk.tracked)
        self.done += n
        self.state.i += n
        bad = np.flatnonzero(~chunk.skipped)
        self.skipped += int(chunk.skipped.sum())
        self.in_a_row = n - 1 - int(bad[-1]) if len(bad) else self.in_a_row + n

    def report(self) -> None:
        if self.skipped:
            warnings.warn(
                f"{self.skipped} of {self.done} steps were skipped: their loss or gradient was "
                "not finite",
                UserWarning,
                stacklevel=4,
            )
        if self.done and self.state.score:
            recent = self.losses[-1000:]
            finite = recent[np.isfinite(recent)]
            mean = finite.mean() if len(finite) else math.nan
            _log.info("Finished at step %d: average loss %.5g.", self.state.i, mean)


def _every(callback: Callback_) -> int:
    """Only callbacks that are known to look at nothing in between may be called less often."""
    if isinstance(callback, CheckParametersConvergence) or type(callback).__module__.startswith(
        "pymc_flows."
    ):
        return int(getattr(callback, "every", 1))
    return 1


def _wants(callback: Callback_, i: int) -> bool:
    return i == 1 or i % _every(callback) == 0


def _until_next(i: int, every: int) -> int:
    """Steps from step i to the next one at which a callback wants to be called."""
    return 1 if i == 0 else every - i % every


def _positive(name: str, value: object, *, minimum: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < minimum:
        raise FlowError(f"{name} must be an integer of at least {minimum}, got {value!r}")
    return int(value)


def _deprecated(
    fn_kwargs: Mapping[str, Any] | None, compile_kwargs: Mapping[str, Any] | None
) -> Mapping[str, Any] | None:
    if fn_kwargs is None:
        return compile_kwargs
    warnings.warn(
        "fn_kwargs is deprecated, please use compile_kwargs instead",
        DeprecationWarning,
        stacklevel=3,
    )
    return fn_kwargs


def _warn_unused(**given: object) -> None:
    for name, value in given.items():
        if value is not None:
            warnings.warn(f"`{name}` is not used for NFVI and ignored", UserWarning, stacklevel=3)
