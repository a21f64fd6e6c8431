"""The compiled training loop: many optimizer steps in one call."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from pytensor.compile.sharedvalue import SharedVariable

from pymc_flows.backends.jax import kept_on_disk, precision
from pymc_flows.backends.modes import training_mode
from pymc_flows.backends.rngs import decode_state, encode_state, model_rngs, set_state
from pymc_flows.devices import Devices, mesh_mode
from pymc_flows.support.arguments import as_count
from pymc_flows.support.interrupts import Interrupts
from pymc_flows.training.loop.graph import Step, compile_steps
from pymc_flows.training.loop.noise import (
    Batches,
    Source,
    aligned_zeros,
    base_noise,
    standard_normal,
)

# Most bytes of base noise, carried state and tracked values of one call.
CHUNK_BYTES = 32 * 2**20
MAX_CHUNK = 10_000


class StepError(Exception):
    """A call failed at one of its steps; the cause of this exception says why."""


@dataclass(frozen=True)
class Chunk:
    """Records of steps that were taken.

    Attributes
    ----------
    losses : ndarray, shape (steps,)
        In nats; NaN for a failed step.
    failed : ndarray of bool, shape (steps,)
    lost : int
        Draws that these steps left out; failed steps do not count.
    tracked : dict of str to ndarray, shape (steps, ...)
    """

    losses: np.ndarray
    failed: np.ndarray
    lost: int
    tracked: dict[str, np.ndarray]


class TrainingLoop:
    """A compiled function that takes any number of steps.

    A step fails if its loss, which may leave out some draws, or the square of a gradient is not
    finite. It then changes only the model's own random generators. Any other failure makes the
    whole call fail.

    Parameters
    ----------
    step : Step
    backend : {"numba", "jax"}
    noise_seed, model_seed : numpy.random.SeedSequence
        Seeds of the base noise and of the model's own randomness.
    max_chunk : int
        Most steps of one call.
    compile_kwargs : mapping, optional
        Passed to `pytensor.function`.
    source : callable, optional
        Makes the values of ``step.noise``; by default base noise, which JAX draws itself where it
        computes on an accelerator.
    batches : Batches, optional
        Provides the values of ``step.batch``.
    devices : Devices, optional
        The devices of the data; by default JAX chooses.

    Attributes
    ----------
    mode : str or Mode
        Mode in which the function is compiled.
    max_chunk : int
        Most steps of one call, memory considered.
    is_compiled : bool
        Whether `compile` has succeeded.
    idle_seconds : float
        Time of a call that skips all steps; 0 before `compile`, and on numba.
    failures : int
        Failed steps in a row, up to the last step.
    failed_noise : ndarray, shape (draws, dim)
        Base draws of the last failed step; zeros if no step has failed.
    shared : list of SharedVariable
        Variables that a step changes, without the model's own random generators, ``rngs``.
    precision : callable
        Makes a context for calls of the compiled code.
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
        batches: Batches | None = None,
        devices: Devices | None = None,
    ):
        self.step = step
        is_local = devices is None or devices.is_local
        # With several processes, NumPy draws the same noise in each; JAX's would lie on one device.
        self._source = source or (base_noise(backend) if is_local else standard_normal)
        self._dtype = step.noise.dtype
        self.is_compiled = False
        self.idle_seconds = 0.0
        self.failures = 0
        self.failed_noise = np.zeros(step.noise.type.shape, self._dtype)
        self._batches, self._taken = batches, 0
        self._buffers: list[np.ndarray] = []
        self._noise = np.random.default_rng(noise_seed)
        self.shared = list(step.updates)
        self.max_chunk = max(1, min(step.most or max_chunk, max_chunk, CHUNK_BYTES // step.nbytes))
        # JAX compiles again for each new length, so all calls have one length and skip the steps
        # beyond theirs. It is not 1: XLA unrolls a loop of one step, which changes bits.
        self._length = max(2, self.max_chunk) if backend == "jax" else None
        mode = mesh_mode(devices.mesh) if devices and not is_local else training_mode(backend)
        kwargs: dict[str, Any] = {"mode": mode} | dict(compile_kwargs or {})
        self.mode = kwargs["mode"]
        self.precision = partial(precision, self._dtype) if backend == "jax" else nullcontext
        outputs = [*step.updates.values(), *step.grads.values(), step.loss]
        with self.precision():
            rngs, self.rngs = model_rngs(outputs, step.noise, model_seed, backend)
            self.function = compile_steps(step, rngs, kwargs, skips=self._length is not None)
        if devices is not None:
            self.function = self.function.placed(devices.place)

    def compile(self) -> None:
        """Let the backend compile, by a call that takes no step, if it has not yet."""
        if self.is_compiled:
            return
        # JAX's callbacks swallow a Ctrl-C, numba turns it into another error.
        with Interrupts(deferred=False), warnings.catch_warnings():
            # PyTensor asks for 64 bits also in single precision.
            warnings.filterwarnings("ignore", "Explicitly requested dtype .*64")
            nothing = self._draw(0), self._read(0), np.zeros((0, len(self.step.settings)))
            with nullcontext() if self._length is None else kept_on_disk():
                self._call(*nothing)
            if self._length is not None:
                begin = time.perf_counter()
                self._call(*nothing)
                self.idle_seconds = time.perf_counter() - begin
        self.is_compiled = True

    def __getstate__(self) -> dict[str, object]:
        """Leave out compiled state and buffers: a copy has to compile."""
        return {**self.__dict__, "is_compiled": False, "_buffers": []}

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
        data = self._read(n)
        before = self.generator_state
        noise = self.begin(n)
        try:
            failures, values, rngs, records = self._call(noise, data, settings)
            self.check_finite(values)
        except BaseException as error:
            self.generator_state = before
            if isinstance(error, Exception):
                raise StepError(error) from error
            raise
        self.rngs = rngs
        return self.accept(n, noise, before, failures, values, records)

    @property
    def generator_state(self) -> Mapping[str, Any]:
        """State of the generator of the base noise."""
        return self._noise.bit_generator.state

    @generator_state.setter
    def generator_state(self, state: Mapping[str, Any]) -> None:
        self._noise.bit_generator.state = state

    def begin(self, n: int) -> Any:
        """Draw the noise of a call for n steps, and bring the shared variables up to date."""
        self._gather()
        return self._draw(n)

    def check_finite(self, values: Sequence[np.ndarray]) -> None:
        """Raise `ArithmeticError` if a shared variable was finite and its new value is not."""
        for var, value in zip(self.shared, values, strict=True):
            if _stops_being_finite(var.get_value(borrow=True), value):
                raise ArithmeticError("the optimizer's update was not finite")

    def accept(
        self,
        n: int,
        noise: Any,
        before: Mapping[str, Any],
        failures: int,
        values: Sequence[np.ndarray],
        records: Sequence[np.ndarray],
    ) -> Chunk:
        """Accept the results of a call for n steps; ``before`` is the generator's earlier state."""
        for var, value in zip(self.shared, values, strict=True):
            var.set_value(value, borrow=True)
        if self.step.packing is not None:
            self.step.packing.scatter()
        self.failures = failures
        taken, failed, lost, losses, *tracked = records
        n_taken = int(taken.sum())
        self._taken += n_taken
        if n_taken < n:
            self.generator_state = before
            self._draw(n_taken)
        failed = failed[:n_taken]
        if failed.any():
            self.failed_noise = np.array(noise[np.flatnonzero(failed)[-1]])
        return Chunk(
            np.where(failed, np.nan, losses[:n_taken]),
            failed,
            int(lost[:n_taken][~failed].sum()),
            self.step.by_parameter(
                {k: v[:n_taken] for k, v in zip(self.step.tracked, tracked, strict=True)}
            ),
        )

    def fail(self) -> Chunk:
        """Count the next step as failed without running it; it uses up only noise and data."""
        [self.failed_noise] = np.array(self._draw(1)[:1])
        self.failures += 1
        self._taken += 1
        self._gather()
        tracked = {
            name: np.asarray(
                x.get_value() if isinstance(x, SharedVariable) else np.full(x.type.shape, np.nan)
            )[None]
            for name, x in self.step.tracked.items()
        }
        return Chunk(np.full(1, np.nan), np.ones(1, bool), 0, self.step.by_parameter(tracked))

    # ----------------------------------------------------------------------------------- keeping

    @property
    def _optimizer_state(self) -> dict[str, SharedVariable]:
        """Variables that a step changes, other than the flow's parameters, by name in a state."""
        packed = [self.step.packing.theta] if self.step.packing else []
        known = (*self.step.params, *packed)
        return {f"state_{k}": v for k, v in enumerate(v for v in self.shared if v not in known)}

    @property
    def state_names(self) -> list[str]:
        """Names that the optimizer gives to its variables."""
        return [str(var.name) for var in self._optimizer_state.values()]

    def state_dict(self) -> dict[str, Any]:
        """All state that steps have changed, except for the parameters of the flow.

        It is JSON, except for ``arrays``, the values of the optimizer's variables by name.
        """
        batches = self._batches
        return {
            **({"batches": {"taken": self._taken, **batches.state_dict()}} if batches else {}),
            "failures": self.failures,
            "noise_rng": encode_state(self._noise),
            "model_rngs": encode_state({str(k): rng for k, rng in enumerate(self.rngs)}),
            "state_names": self.state_names,
            "arrays": {k: np.array(v.get_value()) for k, v in self._optimizer_state.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any], array: Callable[..., np.ndarray]) -> None:
        """Restore a `state_dict` of an equal loop, after the flow's parameters have been set.

        ``array(name, shape, dtype)`` returns an array of that state.

        Raises
        ------
        KeyError, TypeError, ValueError, OverflowError
            If it is malformed or that of another loop.
        """
        for name, var in self._optimizer_state.items():
            value = var.get_value(borrow=True)
            var.set_value(array(name, value.shape, value.dtype))
        noise = decode_state(state["noise_rng"], self._noise.bit_generator.state)
        fresh = {str(k): rng for k, rng in enumerate(self.rngs)}
        with self.precision():
            self.rngs = list(decode_state(state["model_rngs"], fresh).values())
        set_state(self._noise, noise)
        self.failures = as_count(state["failures"])
        if self._batches is not None:
            self._taken = as_count(state["batches"]["taken"])
            self._batches.load_state_dict(state["batches"])
        self._gather()

    def _gather(self) -> None:
        if self.step.packing is not None:
            self.step.packing.gather()

    def _draw(self, n: int) -> Any:
        """Base noise (length of a call, draws, dim), of which the first n steps are used."""
        shape = (self._length or max(1, n), *self.step.noise.type.shape)
        return self._source(self._noise, n, shape, self._dtype)

    def _read(self, n: int) -> list[np.ndarray]:
        """Data (length of a call, ...), of which the first n steps are used."""
        if self._batches is None:
            return []
        length = self._length or max(1, n)
        if not self._buffers or len(self._buffers[0]) < length:
            values = [v.get_value(borrow=True) for v in self.step.batch]
            shapes = [(length, *np.shape(value)) for value in values]
            self._buffers = [
                aligned_zeros(shape, v.dtype)
                for shape, v in zip(shapes, self.step.batch, strict=True)
            ]
        if n:
            self._batches.fill(self._taken, [buffer[:n] for buffer in self._buffers])
        return [buffer[:length] for buffer in self._buffers]

    def _call(
        self, noise: Any, data: list[np.ndarray], settings: np.ndarray
    ) -> tuple[int, list[np.ndarray], list[object], list[np.ndarray]]:
        """Failures in a row, new state, generators and records; JAX has finished then."""
        padded = np.zeros((len(noise), settings.shape[1]), self._dtype)
        padded[: len(settings)] = settings
        state = [v.get_value(borrow=True) for v in self.shared]
        counts = np.asarray(len(settings)), np.asarray(self.failures)
        with self.precision():
            failures, *out = self.function(noise, *data, padded, *counts, *state, *self.rngs)
            n, m = len(state), len(state) + len(self.rngs)
            values, records = [np.array(x) for x in out[:n]], [np.asarray(x) for x in out[m:]]
            return int(failures), values, list(out[n:m]), records


def _stops_being_finite(old: np.ndarray, new: np.ndarray) -> bool:
    if new.dtype.kind != "f" or np.isfinite(new).all():
        return False
    return bool((np.isfinite(old) & ~np.isfinite(new)).any())
