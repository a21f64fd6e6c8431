"""Ways to fit a workload, each in the idiom of its library, with adam at step size .01."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pymc as pm
import pytensor

from benchmarks.workloads import Data, Workload
from pymc_flows import NFVI

# Our calls end after about a quarter of a second too.
BLOCK_SECONDS = 0.25
FIRST_BLOCK = 10
LEARNING_RATE = 0.01


def set_jax_precision() -> None:
    """Set JAX, if it is installed, to PyTensor's precision."""
    if importlib.util.find_spec("jax"):
        import jax

        jax.config.update("jax_enable_x64", pytensor.config.floatX == "float64")


class Fit:
    """A fit that goes on whenever it is told to."""

    def __init__(self, go_on: Callable[[int], None]):
        self._go_on = go_on

    def run(self, n: int) -> int:
        """Take about ``n`` steps; return how many."""
        self._go_on(n)
        return n

    def settle(self, rate: float) -> None:
        """Adapt to a rate in steps per second."""


class BlockFit(Fit):
    """A fit in compiled blocks of a fixed number of steps.

    Parameters
    ----------
    state
        What the first block starts from.
    block : callable
        Maps state and number of steps to the next state and the losses.
    """

    def __init__(self, state: Any, block: Callable[[Any, int], tuple[Any, Any]]):
        self._start = self._state = state
        self._block = block
        self._length = FIRST_BLOCK

    def run(self, n: int) -> int:
        """Take ``n`` steps or a few more; in single precision, anew from the start if need be."""
        blocks = -(-n // self._length)
        for _ in range(blocks):
            self._state, losses = self._block(self._state, self._length)
            if not np.isfinite(np.asarray(losses)[-1]):  # waits for the block, too
                # Layers without floors reach log 0 in single precision, after seconds.
                if pytensor.config.floatX == "float64":
                    raise FloatingPointError("the fit diverged")
                self._state = self._start
        return blocks * self._length

    def settle(self, rate: float) -> None:
        """Choose the length of a block."""
        self._length = max(1, round(rate * BLOCK_SECONDS))


def ours(workload: Workload, backend: str) -> Fit:
    """Fit with this library, by `NFVI.refine` after a first fit.

    The gradient is the total one, as of all others here.
    """
    inference = NFVI(workload.formula, model=workload.model(), random_seed=0)
    inference.fit(
        FIRST_BLOCK,
        obj_n_mc=workload.draws,
        obj_optimizer=pm.adam(learning_rate=LEARNING_RATE),
        backend=backend,
        gradient="total",
        progressbar=False,
        random_seed=0,
    )

    def go_on(n: int) -> None:
        inference.refine(n, progressbar=False)
        if not np.isfinite(inference.hist[-1]):
            raise FloatingPointError("the fit diverged")

    return Fit(go_on)


def advi(workload: Workload, compile_kwargs: dict[str, str]) -> Fit:
    """Fit with PyMC's own ADVI."""
    inference = pm.ADVI(model=workload.model(), random_seed=0)
    inference.fit(
        FIRST_BLOCK,
        obj_n_mc=workload.draws,
        obj_optimizer=pm.adam(learning_rate=LEARNING_RATE),
        progressbar=False,
        compile_kwargs=compile_kwargs,
    )
    return Fit(lambda n: inference.refine(n, progressbar=False))


def by_hand(workload: Workload) -> Fit:
    """Fit with hand-written JAX."""
    from benchmarks.jax_by_hand import training

    return BlockFit(*training(workload, pytensor.config.floatX))


def flowjax(workload: Workload) -> Fit:
    """Fit with flowjax's planar flow and trainer, which calls one jitted step at a time."""
    import jax
    import optax
    from flowjax.distributions import StandardNormal
    from flowjax.flows import planar_flow
    from flowjax.train import fit_to_key_based_loss
    from flowjax.train.losses import ElboLoss

    from benchmarks.jax_by_hand import dimension, log_density, words

    density = log_density(workload, pytensor.config.floatX)
    flow = planar_flow(
        jax.random.key(0),
        base_dist=StandardNormal((dimension(workload),)),
        flow_layers=len(words(workload.formula)),
        invert=False,
    )
    loss = ElboLoss(density, workload.draws)
    optimizer = optax.adam(LEARNING_RATE)
    state: list[Any] = [flow, jax.random.key(1)]

    def go_on(n: int) -> None:
        state[1], key = jax.random.split(state[1])
        state[0], _ = fit_to_key_based_loss(
            key, state[0], loss_fn=loss, steps=n, optimizer=optimizer, show_progress=False
        )

    return Fit(go_on)


def numpyro(workload: Workload) -> Fit:
    """Fit with NumPyro's `SVI.run` and `AutoNormal`, jitted so that it compiles only once."""
    import jax
    from numpyro.infer import SVI, Trace_ELBO
    from numpyro.infer.autoguide import AutoNormal
    from numpyro.optim import Adam

    dtype = pytensor.config.floatX
    data = {name: jax.numpy.asarray(x, dtype) for name, x in workload.data().items()}
    model = {"logistic": _numpyro_logistic, "schools": _numpyro_schools}[workload.kind]
    loss = Trace_ELBO(num_particles=workload.draws)
    svi = SVI(model, AutoNormal(model), Adam(LEARNING_RATE), loss, data=data)
    key = jax.random.key(0)

    def block(state: Any, steps: int) -> tuple[Any, Any]:
        result = svi.run(key, steps, progress_bar=False, init_state=state)
        return result.state, result.losses

    return BlockFit(svi.init(key), jax.jit(block, static_argnums=1))


def _numpyro_logistic(data: Data) -> None:
    import numpyro
    from numpyro.distributions import Bernoulli, Normal

    beta = numpyro.sample("beta", Normal(0, 1).expand([data["x"].shape[1]]).to_event(1))
    numpyro.sample("y", Bernoulli(logits=data["x"] @ beta), obs=data["y"])


def _numpyro_schools(data: Data) -> None:
    import numpyro
    from numpyro.distributions import HalfCauchy, Normal

    mu = numpyro.sample("mu", Normal(0, 5))
    tau = numpyro.sample("tau", HalfCauchy(5))
    raw = numpyro.sample("raw", Normal(0, 1).expand([8]).to_event(1))
    numpyro.sample("y", Normal(mu + tau * raw, data["sigma"]), obs=data["y"])


@dataclass(frozen=True)
class Peer:
    """A way to fit.

    Attributes
    ----------
    fit : callable
        Starts the fit of a workload, whose first steps compile it.
    fits : callable
        Whether it can do a workload.
    needs : tuple of str
        Packages beyond the library's own.
    """

    fit: Callable[[Workload], Fit]
    fits: Callable[[Workload], bool] = lambda workload: True
    needs: tuple[str, ...] = ()

    @property
    def is_installed(self) -> bool:
        """Whether its packages are there."""
        return all(importlib.util.find_spec(name) for name in self.needs)


PEERS = {
    "JAX": Peer(lambda w: ours(w, "jax"), needs=("jax",)),
    "numba": Peer(lambda w: ours(w, "numba")),
    "by hand": Peer(by_hand, needs=("jax", "optax")),
    "flowjax": Peer(flowjax, lambda w: w.formula.startswith("planar"), ("jax", "flowjax")),
    "NumPyro": Peer(
        numpyro,
        lambda w: w.is_mean_field and w.kind in ("logistic", "schools"),
        ("jax", "numpyro"),
    ),
    "pm.fit": Peer(lambda w: advi(w, {}), lambda w: w.is_mean_field),
    "pm.fit on JAX": Peer(
        lambda w: advi(w, {"mode": "JAX"}), lambda w: w.is_mean_field, needs=("jax",)
    ),
}
"""By name; ``JAX`` and ``numba`` are this library's backends."""
