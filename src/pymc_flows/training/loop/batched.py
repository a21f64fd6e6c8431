"""Several training loops that differ only in their numbers, as one: a call takes steps of all."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np

from pymc_flows.backends.functions import Bound, batched
from pymc_flows.backends.jax import kept_on_disk
from pymc_flows.training.loop.compiled import Chunk, StepError, TrainingLoop

# Most steps of a call, if memory allows. Unlike in a single loop, skipped steps cost as much as
# others, so that all calls of a fit have nearly the same length.
STEPS = 500


class BatchedLoop:
    """Loops on JAX with equal graphs, compiled once with a leading axis for the loops.

    They take n steps, at most ``steps`` per call. It is not possible with random generators of the
    model, or data that differ by step.
    """

    def __init__(self, loops: Sequence[TrainingLoop], n: int):
        self._loops = loops
        most = max(2, min(STEPS, *(loop.max_chunk // len(loops) for loop in loops)))
        self.steps = max(2, math.ceil(n / math.ceil(n / most)))
        state = [0] * len(loops[0].shared)
        functions = [loop.function for loop in loops]
        self._is_compiled = False
        self._function: Callable[..., Any] | None = None
        is_whole = not any(loop.rngs or loop.step.batch for loop in loops)
        if all(isinstance(f, Bound) for f in functions) and is_whole:
            with loops[0].precision():
                self._function = batched(functions, [0, None, None, 0, *state])

    @property
    def is_possible(self) -> bool:
        """Whether the loops have equal graphs."""
        return self._function is not None

    def run(self, settings: np.ndarray) -> list[Chunk]:
        """Take one step of each loop per row of ``settings``, at most ``steps``.

        Raises
        ------
        StepError
            As for `TrainingLoop.run`, if one of them fails. Nothing has changed then.
        """
        n, loops = len(settings), self._loops
        before = [loop.generator_state for loop in loops]
        try:
            noise = [loop.begin(n)[: self.steps] for loop in loops]
            padded = np.zeros((self.steps, settings.shape[1]), noise[0].dtype)
            padded[:n] = settings
            found = self._call(n, noise, padded)
            for loop, (_, values, _) in zip(loops, found, strict=True):
                loop.check_finite(values)
        except BaseException as error:
            for loop, state in zip(loops, before, strict=True):
                loop.generator_state = state
            if isinstance(error, Exception):
                raise StepError(error) from error
            raise
        return [
            loop.accept(n, draws, state, *rest)
            for loop, draws, state, rest in zip(loops, noise, before, found, strict=True)
        ]

    def _call(
        self, n: int, noise: Sequence[np.ndarray], settings: np.ndarray
    ) -> list[tuple[int, list[np.ndarray], list[np.ndarray]]]:
        """Failures in a row, state and records of each loop."""
        import jax

        if self._function is None:
            raise TypeError("the loops are not alike")
        loops = self._loops
        failures = np.array([loop.failures for loop in loops])
        values = [[v.get_value(borrow=True) for v in loop.shared] for loop in loops]
        keeping = nullcontext() if self._is_compiled else kept_on_disk()
        with loops[0].precision(), keeping:
            state = [np.stack(column) for column in zip(*values, strict=True)]
            together = jax.numpy.stack(noise)
            out = self._function(together, settings, np.asarray(n), failures, *state)
            failed, *rest = [np.asarray(x) for x in out]
        self._is_compiled = True
        split = len(loops[0].shared)
        return [
            (int(failed[k]), [np.array(x[k]) for x in rest[:split]], [x[k] for x in rest[split:]])
            for k in range(len(loops))
        ]
