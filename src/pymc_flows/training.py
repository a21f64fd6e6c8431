"""The compiled training loop: many optimizer steps in one call.

`TrainingLoop` clones the updates of any PyMC-style optimizer into one `pytensor.scan`. What a step
changes (parameters, optimizer state, the model's own random generators) is the scan's carry; base
noise and step sizes are its inputs; losses and tracked values are its outputs. Between calls all
state lives in the shared variables, as NumPy arrays, and belongs to one step.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType, TracebackType

import numpy as np
import pytensor
import pytensor.tensor as pt
from pymc.pytensorf import collect_default_updates
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Variable
from pytensor.graph.replace import graph_replace
from pytensor.tensor.variable import TensorVariable

from pymc_flows.modes import training_mode

# Base noise and tracked values of one call may take this many bytes.
CHUNK_BYTES = 32 * 2**20
# An interrupt waits for the end of a call, so a call should take about this long.
CHUNK_SECONDS = 0.25
MAX_CHUNK = 10_000


@dataclass(frozen=True)
class Step:
    """The graph of one optimizer step.

    Attributes
    ----------
    noise : TensorVariable, shape (draws, dim)
        Base draws of the step.
    loss : TensorVariable or None
        Scalar, in nats; None when it is not recorded.
    grads : sequence of TensorVariable
        What must be finite for the step to count.
    updates : mapping of SharedVariable to TensorVariable
        New values, from the optimizer and from the user.
    rate : SharedVariable or None
        The step size, if it is set step by step.
    tracked : mapping of str to TensorVariable
        Recorded every step. Parameters are recorded after the step, everything else as the step
        sees it.
    """

    noise: TensorVariable
    loss: TensorVariable | None
    grads: Sequence[TensorVariable]
    updates: Mapping[SharedVariable, TensorVariable]
    rate: SharedVariable | None = None
    tracked: Mapping[str, TensorVariable] = field(default_factory=dict)


@dataclass(frozen=True)
class Chunk:
    """What a call of the loop returns: losses (steps,) or None, skipped (steps,), tracked values."""

    losses: np.ndarray | None
    skipped: np.ndarray
    tracked: dict[str, np.ndarray]


class TrainingLoop:
    """A compiled function that runs any number of steps.

    A step with a non-finite loss or gradient changes nothing but the model's own random
    generators: its update is skipped and reported.

    Parameters
    ----------
    step : Step
    backend : {"numba", "jax"}
    noise_seed, model_seed : numpy.random.SeedSequence
        Seeds of the base noise and of the model's own randomness.
    max_chunk : int
        Upper bound of the steps of one call on JAX, which compiles again for a new length.
    compile_kwargs : mapping, optional
        Passed to `pytensor.function`.
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
    ):
        self.backend = backend
        self.noise_shape = step.noise.type.shape
        self._dtype = step.noise.dtype
        self._noise = np.random.default_rng(noise_seed)
        self._shared = list(step.updates)
        self._names = list(step.tracked)
        self._has_loss = step.loss is not None
        self._rate_dtype = step.rate.dtype if step.rate is not None else self._dtype
        rngs, self._rngs = _model_rngs(step, model_seed, backend)
        # A masked step must leave no trace, which a random generator in the carry cannot promise:
        # models with their own randomness get exact lengths, others padded ones.
        self._pads = backend == "jax" and not rngs
        self._step_bytes = 8 * math.prod(self.noise_shape) + sum(
            8 * math.prod(n or 1 for n in v.type.shape) for v in step.tracked.values()
        )
        self.max_chunk = max(1, min(max_chunk, CHUNK_BYTES // max(1, self._step_bytes)))
        kwargs = {"mode": training_mode(backend)} | dict(compile_kwargs or {})
        self.function = _compile(step, rngs, kwargs)
        self._length: int | None = None  # the padded length that JAX has compiled

    def limit(self, steps: int) -> None:
        """Run at most ``steps`` steps per call from now on."""
        self.max_chunk = max(1, min(self.max_chunk, steps))

    def run(self, rates: np.ndarray) -> Chunk:
        """Run one step per entry of ``rates`` in one call.

        Parameters
        ----------
        rates : ndarray, shape (steps,)
            Step sizes; ignored if the optimizer has its own.

        Returns
        -------
        Chunk
            Afterwards every shared variable holds the NumPy value of the last of these steps. If
            the call fails, nothing has changed, the noise generator included.
        """
        n = len(rates)
        length = n
        if self._pads:
            length = self._length = max(n, min(self._length or 0, self.max_chunk))
        before = self._noise.bit_generator.state
        noise = np.empty((length, *self.noise_shape), self._dtype)
        self._noise.standard_normal(out=noise[:n], dtype=self._dtype)
        noise[n:] = 0
        padded = np.zeros(length, self._rate_dtype)
        padded[:n] = rates
        try:
            out = self.function(
                noise,
                padded,
                np.asarray(n),
                *(v.get_value(borrow=True) for v in self._shared),
                *self._rngs,
            )
        except BaseException:
            self._noise.bit_generator.state = before
            raise
        n_shared, n_rngs = len(self._shared), len(self._rngs)
        for var, value in zip(self._shared, out[:n_shared], strict=True):
            var.set_value(np.array(value), borrow=True)
        self._rngs = list(out[n_shared : n_shared + n_rngs])
        skipped, *records = (np.asarray(x)[:n] for x in out[n_shared + n_rngs :])
        losses = records.pop(0) if self._has_loss else None
        return Chunk(losses, skipped, dict(zip(self._names, records, strict=True)))


def _model_rngs(
    step: Step, seed: np.random.SeedSequence, backend: str
) -> tuple[dict[Variable, Variable], list[object]]:
    """Random generators that the model itself uses, their updates, and fresh seeded values."""
    outputs = [*step.updates.values(), *step.grads, *([step.loss] if step.loss is not None else [])]
    rngs = collect_default_updates(outputs, inputs=[step.noise])
    values: list[object] = [
        np.random.default_rng(child) for child in seed.spawn(len(rngs))
    ]
    if backend == "jax" and values:
        from pytensor.link.jax.dispatch import jax_typify

        values = [jax_typify(value) for value in values]
    return rngs, values


def _compile(
    step: Step, rngs: Mapping[Variable, Variable], kwargs: Mapping[str, object]
) -> Callable[..., list[object]]:
    """Compile (noise, rates, n_active, *state, *rngs) -> (*state, *rngs, skipped, losses, ...)."""
    shared, new = list(step.updates), list(step.updates.values())
    finite = [step.loss] if step.loss is not None else []
    finite = [*finite, *step.grads]
    ok = pt.all([pt.isfinite(x).all() for x in finite])
    # Padded steps at the end of a call change nothing.
    index, n_active = pt.lscalar("index"), pt.lscalar("n_active")
    keep = pt.and_(ok, index < n_active)
    kept = [
        v.type.filter_variable(pt.switch(keep, x.astype(v.dtype), v), allow_convert=True)
        for v, x in zip(shared, new, strict=True)
    ]
    after = dict(zip(shared, kept, strict=True))
    tracked = [after.get(x, x) for x in step.tracked.values()]
    losses = [step.loss] if step.loss is not None else []
    outputs = [index + 1, *kept, *rngs.values(), ~ok, *losses, *tracked]
    rate = step.rate if step.rate is not None else pt.scalar("rate", dtype=step.noise.dtype)
    rates = pt.vector("rates", dtype=rate.dtype)
    carried = [index, *shared, *rngs]

    def inner(noise: Variable, *values: Variable) -> list[Variable]:
        given = {step.noise: noise, **dict(zip(carried, values, strict=False))}
        given[rate] = values[-2][values[0]]
        given[n_active] = values[-1]
        return graph_replace(outputs, given, strict=False)

    noise = pt.tensor("noise", dtype=step.noise.dtype, shape=(None, *step.noise.type.shape))
    state = [v.type(name=v.name) for v in [*shared, *rngs]]
    results = pytensor.scan(
        inner,
        sequences=[noise],
        outputs_info=[
            pt.constant(0, dtype="int64"),
            *state,
            *[None] * (len(outputs) - 1 - len(state)),
        ],
        non_sequences=[rates, n_active],
        return_updates=False,
    )[1:]
    inputs = [noise, rates, n_active]
    n = len(shared)
    last = [r[-1] for r in results[:n]]
    final = [pytensor.Out(x, borrow=True) for x in [*last, *results[n:]]]
    return pytensor.function(
        [*inputs, *(pytensor.In(v, borrow=True) for v in state)],
        final,
        trust_input=True,
        on_unused_input="ignore",
        **kwargs,
    )


class ChunkSizer:
    """Chooses how many steps the next call runs, from the time that earlier ones took.

    The results of a fit do not depend on it. JAX compiles again for a new length, so there the
    length changes once at most, and only if calls take much longer than an interrupt may wait.
    """

    def __init__(self, loop: TrainingLoop, step_seconds: float):
        self._loop = loop
        self._fixed = loop.backend == "jax"
        self._changed = False
        self.steps = self._bounded(CHUNK_SECONDS / step_seconds if self._fixed else 1)
        self._calls = 0

    def _bounded(self, steps: float) -> int:
        return int(min(max(1, steps), self._loop.max_chunk))

    def record(self, steps: int, seconds: float) -> None:
        """Learn from a call of ``steps`` steps."""
        self._calls += 1
        if self._calls == 1 or steps < self.steps:  # the first call compiles, the last is short
            return
        if not self._fixed:
            wanted = CHUNK_SECONDS * steps / max(seconds, 1e-9)
            self.steps = self._bounded(min(wanted, 8 * self.steps))
        elif seconds > 4 * CHUNK_SECONDS and not self._changed:
            self._changed = True
            self._loop.limit(self._bounded(CHUNK_SECONDS * steps / seconds))
            self.steps = self._loop.max_chunk


class DeferredInterrupt:
    """Holds a Ctrl-C back until the running call of the loop has ended.

    In a numba call an interrupt would surface as SystemError, with half-written state. In a thread
    other than the main one signals do not arrive, and nothing is changed. A second Ctrl-C is
    raised at once.
    """

    def __init__(self) -> None:
        self.pending = False

    def __enter__(self) -> DeferredInterrupt:
        """Take over SIGINT, if this is the main thread and Python handles it."""
        self._previous = None
        if threading.current_thread() is threading.main_thread():
            previous = signal.getsignal(signal.SIGINT)
            if callable(previous):
                self._previous = previous
                signal.signal(signal.SIGINT, self._handle)
        return self

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.pending:
            raise KeyboardInterrupt
        self.pending = True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give SIGINT back."""
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def raise_pending(self) -> None:
        """Raise the interrupt that came while it was held back."""
        if self.pending:
            self.pending = False
            raise KeyboardInterrupt


class Clock:
    """Seconds of one call, for `ChunkSizer`."""

    def __enter__(self) -> Clock:
        """Start."""
        self._begin = time.perf_counter()
        self.seconds = 0.0
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.seconds = time.perf_counter() - self._begin
