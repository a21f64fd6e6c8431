"""Flows fitted by hand-written JAX, as someone writes it who knows the flow and the model.

A pytree of parameters, `jax.vmap` over draws, optax, and a jitted `jax.lax.scan` over steps with
the noise drawn inside.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.stats import norm

from benchmarks.workloads import GAUSSIAN_DIM, Workload

type Params = Sequence[dict[str, jax.Array]]
type Arrays = Mapping[str, jax.Array]
type LogDensity = Callable[[jax.Array], jax.Array]


def _planar(p: dict[str, jax.Array], z: jax.Array) -> tuple[jax.Array, jax.Array]:
    wu = p["w"] @ p["u"]
    u = p["u"] + (jax.nn.softplus(wu) - 1 - wu) * p["w"] / (p["w"] @ p["w"])
    h = jnp.tanh(p["w"] @ z + p["b"])
    return z + u * h, jnp.log1p((1 - h**2) * (p["w"] @ u))


def _householder(p: dict[str, jax.Array], z: jax.Array) -> tuple[jax.Array, jax.Array]:
    return z - 2 * (p["v"] @ z) / (p["v"] @ p["v"]) * p["v"], jnp.zeros((), z.dtype)


def _scale(p: dict[str, jax.Array], z: jax.Array) -> tuple[jax.Array, jax.Array]:
    return z * jnp.exp(p["log_scale"]), p["log_scale"].sum()


def _loc(p: dict[str, jax.Array], z: jax.Array) -> tuple[jax.Array, jax.Array]:
    return z + p["loc"], jnp.zeros((), z.dtype)


_LAYERS: dict[str, tuple[Callable[..., Any], Callable[[int], dict[str, tuple[int, ...]]]]] = {
    "planar": (_planar, lambda dim: {"w": (dim,), "u": (dim,), "b": ()}),
    "hh": (_householder, lambda dim: {"v": (dim,)}),
    "scale": (_scale, lambda dim: {"log_scale": (dim,)}),
    "loc": (_loc, lambda dim: {"loc": (dim,)}),
}
_JITTER = {"planar": 0.1, "hh": 1.0, "scale": 0.01, "loc": 0.01}


def words(formula: str) -> list[str]:
    """The layers of a formula without groups, one by one."""
    parts = [re.fullmatch(r"(\w+?)(?:\*(\d+))?", part) for part in formula.split("-")]
    return [part[1] for part in parts if part for _ in range(int(part[2] or 1))]


def start(formula: str, dim: int, dtype: str) -> Params:
    """Random start parameters, by layer."""
    rng = np.random.default_rng(0)
    return [
        {
            name: jnp.asarray(_JITTER[word] * rng.standard_normal(shape), dtype)
            for name, shape in _LAYERS[word][1](dim).items()
        }
        for word in words(formula)
    ]


def forward(
    layers: Sequence[str], params: Params, z: jax.Array
) -> tuple[jax.Array, jax.Array | float]:
    """Point and log-determinant of one draw z (dim,)."""
    log_det: jax.Array | float = 0.0
    for word, p in zip(layers, params, strict=True):
        z, term = _LAYERS[word][0](p, z)
        log_det = log_det + term
    return z, log_det


# -------------------------------------------------------------------- log densities of one draw


def _pot1(z: jax.Array, data: Arrays) -> jax.Array:
    ring = -0.5 * ((jnp.linalg.norm(z) - 2) / 0.4) ** 2
    left, right = (-0.5 * ((z[0] - centre) / 0.6) ** 2 for centre in (-2, 2))
    return ring + jnp.logaddexp(left, right)


def _pot4(z: jax.Array, data: Arrays) -> jax.Array:
    height = z[1] - jnp.sin(2 * jnp.pi * z[0] / 4)
    step = 3 * jax.nn.sigmoid((z[0] - 1) / 0.3)
    ridges = -0.5 * (height / 0.4) ** 2, -0.5 * ((height + step) / 0.35) ** 2
    return jnp.logaddexp(*ridges) - 0.1 * jnp.abs(z[0])


def _gaussian(z: jax.Array, data: Arrays) -> jax.Array:
    return -0.5 * ((z @ data["whiten"]) ** 2).sum()


def _logistic(z: jax.Array, data: Arrays) -> jax.Array:
    logit = data["x"] @ z
    return norm.logpdf(z).sum() + (data["y"] * logit - jax.nn.softplus(logit)).sum()


def _schools(z: jax.Array, data: Arrays) -> jax.Array:
    mu, log_tau, raw = z[0], z[1], z[2:]
    tau = jnp.exp(log_tau)
    half_cauchy = jnp.log(2 / (5 * jnp.pi)) - jnp.log1p((tau / 5) ** 2) + log_tau
    prior = norm.logpdf(mu, 0, 5) + half_cauchy + norm.logpdf(raw).sum()
    return prior + norm.logpdf(data["y"], mu + tau * raw, data["sigma"]).sum()


_DENSITIES = {
    "pot1": _pot1,
    "pot4": _pot4,
    "gaussian": _gaussian,
    "logistic": _logistic,
    "schools": _schools,
}


def dimension(workload: Workload) -> int:
    """Of the unconstrained space."""
    fixed = {"pot1": 2, "pot4": 2, "gaussian": GAUSSIAN_DIM, "schools": 10}
    return fixed.get(workload.kind) or workload.shape[1]


def log_density(workload: Workload, dtype: str) -> LogDensity:
    """Log density of one point of the workload's unconstrained space."""
    data = {name: jnp.asarray(value, dtype) for name, value in workload.data().items()}
    return partial(_DENSITIES[workload.kind], data=data)


# ------------------------------------------------------------------------------------------ fits


def training(workload: Workload, dtype: str) -> tuple[Any, Callable[[Any, int], Any]]:
    """Start state, and a jitted function (state, steps) -> (state, losses)."""
    dim, layers = dimension(workload), words(workload.formula)
    density = log_density(workload, dtype)
    optimizer = optax.adam(0.01)

    def loss(params: Params, key: jax.Array) -> jax.Array:
        z0 = jax.random.normal(key, (workload.draws, dim), dtype)
        z, log_det = jax.vmap(partial(forward, layers, params))(z0)
        log_q = norm.logpdf(z0).sum(-1) - log_det
        return (log_q - jax.vmap(density)(z)).mean()

    def step(carry: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params, key)
        updates, state = optimizer.update(grads, state)
        return (optax.apply_updates(params, updates), state), value

    @partial(jax.jit, static_argnums=1)
    def block(state: Any, steps: int) -> tuple[Any, jax.Array]:
        carry, key = state
        key, own = jax.random.split(key)
        carry, losses = jax.lax.scan(step, carry, jax.random.split(own, steps))
        return (carry, key), losses

    params = start(workload.formula, dim, dtype)
    return ((params, optimizer.init(params)), jax.random.key(0)), block
