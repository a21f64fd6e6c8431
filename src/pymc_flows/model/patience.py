"""When it pays to compile what NumPy evaluates: `Patience`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from pymc_flows.backends.jax import has_jax
from pymc_flows.errors import BackendError
from pymc_flows.model.examine import plan_draws
from pymc_flows.model.logp import ModelDensity

# CPU seconds that compiling takes, about.
COMPILING = {"jax": 1.0, "numba": 10.0}
# Points that take no more CPU seconds than this each are not worth it.
FAST = 5e-4


class Patience:
    """Counts the seconds of a function that is not compiled, until compiling costs no more."""

    def __init__(self) -> None:
        self.seconds, self.points = 0.0, 0

    @contextmanager
    def clock(self, points: int) -> Iterator[None]:
        """Count what is done in this block, for so many points."""
        before = time.process_time()
        yield
        self.seconds += time.process_time() - before
        self.points += points

    def is_over(self, backend: str) -> bool:
        """Whether compiling would have paid."""
        return self.seconds > max(FAST * self.points, COMPILING[backend])


def compiler_of(density: ModelDensity) -> str:
    """Return the backend that compiles a density in less time: JAX where it can."""
    if has_jax():
        try:
            plan_draws(density, 1, density.start(), "jax")
        except BackendError:
            return "numba"
        return "jax"
    return "numba"
