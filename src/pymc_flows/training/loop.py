"""The compiled training loop: many optimizer steps in one call.

`TrainingLoop` clones the updates of any PyMC-style optimizer into one `pytensor.scan`. What a step
changes (parameters, optimizer state, the model's own random generators) is the scan's carry; base
noise and settings such as the step size are its inputs; losses and tracked values are its outputs.
Between calls all state lives in the shared variables, as NumPy arrays, and belongs to one step.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor import ifelse
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Variable
from pytensor.graph.replace import graph_replace
from pytensor.tensor.variable import TensorVariable

from pymc_flows.backends.jax import precision
from pymc_flows.backends.modes import training_mode
from pymc_flows.backends.rngs import choose_generator, model_rngs
from pymc_flows.support.interrupts import Interrupts
from pymc_flows.training.noise import Source, base_noise
from pymc_flows.training.packing import Packing

# Base noise, carried state and tracked values of one call may take this many bytes.
CHUNK_BYTES = 32 * 2**20
MAX_CHUNK = 10_000
# This many failed steps in a row: no further one will succeed.
MAX_FAILURES = 100


class StepError(Exception):
    """A call failed at one of its steps, for the reason that is this exception's cause."""


class _NotFiniteError(ArithmeticError):
    """A step made something infinite or NaN that was not."""

    def __str__(self) -> str:
        return "the optimizer's update was not finite"


@dataclass(frozen=True)
class Step:
    """The graph of one optimizer step.

    Attributes
    ----------
    noise : TensorVariable, shape (draws, dim)
        Base draws of the step.
    loss : TensorVariable
        Scalar, in nats.
    grads : mapping of str to TensorVariable
        Gradients as the optimizer gets them, by name of the parameter, or by "" that of
        ``packing.theta``.
    updates : mapping of SharedVariable to TensorVariable
        New values, from the optimizer and from the user.
    settings : tuple of TensorVariable
        Scalars that are set step by step, such as the step size.
    tracked : mapping of str to TensorVariable
        Recorded every step, by name, or by a prefix of all names what ``packing`` splits.
        Parameters are recorded after the step, everything else as the step sees it.
    packing : Packing or None
        What stands for the parameters in the updates.
    """

    noise: TensorVariable
    loss: TensorVariable
    grads: Mapping[str, TensorVariable]
    updates: Mapping[SharedVariable, TensorVariable]
    settings: tuple[TensorVariable, ...] = ()
    tracked: Mapping[str, TensorVariable] = field(default_factory=dict)
    packing: Packing | None = None

    def by_parameter(self, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Values of ``grads`` or ``tracked``, with further leading axes, by parameter."""
        if self.packing is None:
            return dict(values)
        return {
            f"{prefix}{name}": part
            for prefix, value in values.items()
            for name, part in self.packing.split(value).items()
        }


@dataclass(frozen=True)
class Chunk:
    """Some steps that were taken.

    Attributes
    ----------
    losses : ndarray, shape (steps,)
        In nats; NaN for a failed step.
    failed : ndarray of bool, shape (steps,)
    tracked : dict of str to ndarray, shape (steps, ...)
    """

    losses: np.ndarray
    failed: np.ndarray
    tracked: dict[str, np.ndarray]


class TrainingLoop:
    """A compiled function that takes any number of steps.

    A step fails if its loss, or the square of a gradient, is not finite. It then changes nothing
    but the model's own random generators. What fails otherwise makes the whole call fail.

    Parameters
    ----------
    step : Step
    backend : {"numba", "jax"}
    noise_seed, model_seed : numpy.random.SeedSequence
        Seeds of the base noise and of the model's own randomness.
    max_chunk : int
        Upper bound of the steps of one call.
    compile_kwargs : mapping, optional
        Passed to `pytensor.function`.
    source : callable, optional
        Makes what ``step.noise`` stands for; base noise by default, which JAX draws itself where it
        computes on an accelerator.

    Attributes
    ----------
    mode : str or Mode
        What the function is compiled with.
    max_chunk : int
        Upper bound of the steps of one call, memory considered.
    is_compiled : bool
        Whether `compile` has succeeded.
    idle_seconds : float
        What a call takes whose steps are all skipped; 0 before `compile`, and on numba.
    failures : int
        Failed steps in a row, up to the last step.
    failed_noise : ndarray, shape (draws, dim)
        Base draws of the last failed step; zeros before there was one.
    """

    def __init__(
        self,
        step: Step,
        *,
        backend: str,
        noise_seed: np.random.SeedSequence,
        model_seed: np.random.SeedSequence,
        max_chunk: int = MAX_CHUNK,
        compile_kwargs: Mapping[str, object] | None = None,
        source: Source | None = None,
    ):
        self.step = step
        self._source = source or base_noise(backend)
        self._dtype = step.noise.dtype
        self.is_compiled = False
        self.idle_seconds = 0.0
        self.failures = 0
        self.failed_noise = np.zeros(step.noise.type.shape, self._dtype)
        self._noise = np.random.default_rng(noise_seed)
        self._shared = list(step.updates)
        self.max_chunk = max(1, min(max_chunk, CHUNK_BYTES // _bytes_per_step(step)))
        # JAX compiles again for each new length. With a single one (not 1: XLA dissolves a loop
        # of one step, and the bits change) it never does; steps that are too many are skipped.
        self._length = max(2, self.max_chunk) if backend == "jax" else None
        kwargs = {"mode": training_mode(backend)} | dict(compile_kwargs or {})
        self.mode = kwargs["mode"]
        self._precision = partial(precision, self._dtype) if backend == "jax" else nullcontext
        outputs = [*step.updates.values(), *step.grads.values(), step.loss]
        with self._precision():
            rngs, self._rngs = model_rngs(outputs, step.noise, model_seed, backend)
            self.function = _compile(step, rngs, kwargs, skips=self._length is not None)

    def compile(self) -> None:
        """Let the backend compile, by a call that takes no step; the first time only."""
        if self.is_compiled:
            return
        # JAX's callbacks swallow a Ctrl-C, numba turns it into another error.
        with Interrupts(deferred=False), warnings.catch_warnings():
            # In single precision, where PyTensor asks for 64 bits all the same.
            warnings.filterwarnings("ignore", "Explicitly requested dtype .*64")
            nothing = self._draw(0), np.zeros((0, len(self.step.settings)))
            self._call(*nothing)
            if self._length is not None:
                begin = time.perf_counter()
                self._call(*nothing)
                self.idle_seconds = time.perf_counter() - begin
        self.is_compiled = True

    def __getstate__(self) -> dict[str, object]:
        """Leave to a copy that it has to compile."""
        return {**self.__dict__, "is_compiled": False}

    def run(self, settings: np.ndarray) -> Chunk:
        """Take one step per row of ``settings`` in one call; fewer, if too many fail in a row.

        Parameters
        ----------
        settings : ndarray, shape (steps, settings of the step)
            At most ``max_chunk`` steps.

        Returns
        -------
        Chunk
            Afterwards every shared variable holds the NumPy value of the last of these steps.

        Raises
        ------
        StepError
            If the compiled code raises, or a step makes something infinite or NaN that was not.
            Nothing has changed then, the noise generator included.
        """
        self.compile()
        n = len(settings)
        before = self._noise.bit_generator.state
        noise = self._draw(n)
        self._gather()
        try:
            failures, values, rngs, records = self._call(noise, settings)
            for var, value in zip(self._shared, values, strict=True):
                if _stops_being_finite(var.get_value(borrow=True), value):
                    raise _NotFiniteError
        except BaseException as error:
            self._noise.bit_generator.state = before
            if isinstance(error, Exception):
                raise StepError(error) from error
            raise
        for var, value in zip(self._shared, values, strict=True):
            var.set_value(value, borrow=True)
        if self.step.packing is not None:
            self.step.packing.scatter()
        self.failures, self._rngs = failures, rngs
        taken, failed, losses, *tracked = records
        n_taken = int(taken.sum())
        if n_taken < n:
            self._noise.bit_generator.state = before
            self._draw(n_taken)
        failed = failed[:n_taken]
        if failed.any():
            self.failed_noise = np.array(noise[np.flatnonzero(failed)[-1]])
        return Chunk(
            np.where(failed, np.nan, losses[:n_taken]),
            failed,
            self.step.by_parameter(
                {k: v[:n_taken] for k, v in zip(self.step.tracked, tracked, strict=True)}
            ),
        )

    def fail(self) -> Chunk:
        """Count the next step as failed without running it: it uses up its noise, no more."""
        [self.failed_noise] = np.array(self._draw(1)[:1])
        self.failures += 1
        self._gather()
        tracked = {
            name: np.asarray(
                x.get_value() if isinstance(x, SharedVariable) else np.full(x.type.shape, np.nan)
            )[None]
            for name, x in self.step.tracked.items()
        }
        return Chunk(np.full(1, np.nan), np.ones(1, bool), self.step.by_parameter(tracked))

    def _gather(self) -> None:
        if self.step.packing is not None:
            self.step.packing.gather()

    def _draw(self, n: int) -> Any:
        """Base noise (length of a call, draws, dim) of the next n steps; the rest is not used."""
        shape = (self._length or max(1, n), *self.step.noise.type.shape)
        return self._source(self._noise, n, shape, self._dtype)

    def _call(
        self, noise: Any, settings: np.ndarray
    ) -> tuple[int, list[np.ndarray], list[object], list[np.ndarray]]:
        """Failures in a row, new state, generators and records; as NumPy arrays, JAX has run."""
        padded = np.zeros((len(noise), settings.shape[1]), self._dtype)
        padded[: len(settings)] = settings
        state = [v.get_value(borrow=True) for v in self._shared]
        counts = np.asarray(len(settings)), np.asarray(self.failures)
        with self._precision():
            failures, *out = self.function(noise, padded, *counts, *state, *self._rngs)
            n, m = len(state), len(state) + len(self._rngs)
            values, records = [np.array(x) for x in out[:n]], [np.asarray(x) for x in out[m:]]
            return int(failures), values, list(out[n:m]), records


def _stops_being_finite(old: np.ndarray, new: np.ndarray) -> bool:
    if new.dtype.kind != "f" or np.isfinite(new).all():
        return False
    return bool((np.isfinite(old) & ~np.isfinite(new)).any())


def _bytes_per_step(step: Step) -> int:
    arrays = [step.noise, *step.tracked.values()]
    elements = sum(math.prod(n or 1 for n in x.type.shape) for x in arrays)
    return 8 * elements + sum(np.asarray(v.get_value(borrow=True)).nbytes for v in step.updates)


def _compile(
    step: Step,
    rngs: Mapping[Variable, Variable],
    kwargs: Mapping[str, object],
    *,
    skips: bool,
) -> Any:
    """Compile (noise, settings, n_active, failures, *state, *rngs) -> (the last three, *records).

    Records are, by step: taken, failed, loss, tracked values. Only the first ``n_active`` steps
    are taken; with ``skips`` the others cost next to nothing.
    """
    index, n_active, failures = pt.lscalar("index"), pt.lscalar("n_active"), pt.lscalar("failures")
    taken = (index < n_active) & (failures < MAX_FAILURES)
    carried = [failures, *step.updates]
    after, next_rngs, records = _after_step(step, rngs, failures, taken, copies=skips)
    if skips:
        idle = [*carried, *map(pt.zeros_like, records)]
        chosen = ifelse(taken, [*after, *records], idle)
        after, records = chosen[: len(carried)], chosen[len(carried) :]
        next_rngs = [choose_generator(taken, y, x) for x, y in zip(rngs, next_rngs, strict=True)]
    seen = dict(zip(carried, after, strict=True))
    failed, loss, *values = records
    rest = iter(values)
    tracked = [seen[x] if x in seen else next(rest) for x in step.tracked.values()]
    outputs = [index + 1, *after, *next_rngs, taken, failed, loss, *tracked]

    def inner(noise: Variable, index_: Variable, *inputs: Variable) -> list[Variable]:
        *state, settings, n_active_ = inputs
        given = dict(zip([*carried, *rngs], state, strict=True))
        given |= {step.noise: noise, index: index_, n_active: n_active_}
        given |= {x: settings[index_, k].astype(x.dtype) for k, x in enumerate(step.settings)}
        return graph_replace(outputs, given, strict=False)

    # A second sequence would make the number of steps a minimum, which JAX does not see through.
    noise = pt.tensor("noise", dtype=step.noise.dtype, shape=(None, *step.noise.type.shape))
    shape = (None, len(step.settings))
    settings = pt.tensor("settings", dtype=step.noise.dtype, shape=shape)
    state = [x.type(name=x.name) for x in [*carried, *rngs]]
    _, *results = pytensor.scan(
        inner,
        sequences=[noise],
        outputs_info=[
            pt.constant(0, dtype="int64"),
            *state,
            *[None] * (len(outputs) - len(state) - 1),
        ],
        non_sequences=[settings, n_active],
        return_updates=False,
    )
    last = [trace[-1] for trace in results[: len(carried)]]
    with warnings.catch_warnings():
        # Some Elemwise stays unfused if a formula has very many blocks: nothing to act on.
        warnings.filterwarnings("ignore", "Loop fusion failed")
        return pytensor.function(
            [pytensor.In(x, borrow=True) for x in [noise, settings, n_active, *state]],
            [pytensor.Out(x, borrow=True) for x in [*last, *results[len(carried) :]]],
            trust_input=True,
            on_unused_input="ignore",
            **kwargs,
        )


def _after_step(
    step: Step,
    rngs: Mapping[Variable, Variable],
    failures: TensorVariable,
    taken: TensorVariable,
    *,
    copies: bool,
) -> tuple[list[TensorVariable], list[Variable], list[TensorVariable]]:
    """Failures and state after the step; next generators; failed, loss, tracked values."""
    shared = list(step.updates)
    tracked = [x for x in step.tracked.values() if x not in step.updates]
    # Squares, because optimizers take them. Nothing of the update, which stays one loop with the
    # choice between old and new.
    health = sum((pt.sqr(g).sum() for g in step.grads.values()), step.loss)
    graphs = [*step.updates.values(), *rngs.values(), health, step.loss, *tracked]
    if copies and rngs:
        # In JAX a draw writes into the generator that it gets.
        own = {x: choose_generator(np.array(1), x, x) for x in rngs}
        graphs = graph_replace(graphs, own, strict=False)
    n, m = len(shared), len(shared) + len(rngs)
    new, next_rngs, (health, loss, *values) = graphs[:n], graphs[n:m], graphs[m:]
    new = [x.astype(v.dtype) for v, x in zip(shared, new, strict=True)]
    ok = pt.isfinite(health)
    counted = pt.switch(taken, pt.switch(ok, 0, failures + 1), failures)
    kept = [pt.switch(taken & ok, x, v) for v, x in zip(shared, new, strict=True)]
    after = [_typed(v, x) for v, x in zip([failures, *shared], [counted, *kept], strict=True)]
    return after, next_rngs, [~ok, loss, *values]


def _typed(like: TensorVariable, x: TensorVariable) -> TensorVariable:
    return like.type.filter_variable(x, allow_convert=True)
