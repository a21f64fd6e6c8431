"""Exact references of the simulated hierarchies, without NUTS.

Given the hyperparameters, groups are independent and have one or two effects each, so a group is
integrated by adaptive Gauss-Hermite quadrature (Naylor and Smith, Applied Statistics 31(3), 1982);
what is left, two to five hyperparameters, by importance sampling with kernels that adapt (Cappé,
Guillin, Marin and Robert, J. Comput. Graph. Stat. 13(4), 2004). No line of it is shared with the
library that it judges.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any

import numpy as np
from scipy.linalg import solve_triangular
from scipy.optimize import minimize
from scipy.special import gammaln, logsumexp

from benchmarks import _hierarchy_models as models
from benchmarks._hierarchy_models import BERNOULLI, NEGATIVE_BINOMIAL, NORMAL, POISSON, Data
from benchmarks._hierarchy_references import Arrays
from benchmarks._hierarchy_scores import SEPARATOR

# Nodes on each axis of a group, by its rows: the more rows, the nearer it is to a Gaussian.
NODES = ((10, 15), (50, 9), (math.inf, 7))
NEWTON_STEPS = 25
# Points of the rounds of importance sampling before the last, which is the reference and has as
# many as so many terms of the likelihood allow.
ROUNDS = (500, 500)
TERMS, FEWEST, MOST = 2e9, 2_000, 20_000
KERNELS = 250
# Few, and wide kernels, since posteriors of scales have heavy tails.
DEGREES_OF_FREEDOM = 3
WIDER = 1.5
# Of the first round, which has one kernel: wider than the Gaussian at the mode.
FIRST_WIDTH = 1.5
MAX_REPEATS = 4
MIN_SHARE = 0.15

type Kernels = tuple[np.ndarray, np.ndarray]
"""Centres (k, d), and the factor (d, d) of their scale."""
type Integrate = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]


def grid_reference(data: Data) -> Arrays:
    """Moments of all variables of a simulated hierarchy.

    Returns
    -------
    dict of str to ndarray
        ``NAME|mean``, ``NAME|sd``, their Monte-Carlo errors ``NAME|mcse_mean`` and
        ``NAME|mcse_sd``, and ``NAME|ess``, of fixed, scale, effects, raw and, where there are any,
        noise and shape; and ``log_z``, the log evidence.

    Raises
    ------
    RuntimeError
        If the weights never become even enough.
    """
    marginal, conditional = _functions(data)
    k = data.truth.fixed.size
    start = np.concatenate([np.zeros(k), np.full(k, 0.5), np.zeros(_n_extra(data))])
    found = minimize(lambda u: tuple(-x for x in marginal(u)), start, jac=True, method="BFGS")
    curvature = _curvature(lambda u: -marginal(u)[1], found.x)
    kernels = [(found.x[None], FIRST_WIDTH * np.linalg.cholesky(np.linalg.inv(curvature)))]
    rng = np.random.default_rng(1)
    folded = slice(k, 2 * k)
    last = int(np.clip(TERMS / _n_terms(data), FEWEST, MOST))
    n_rounds = 0
    while True:
        size = ROUNDS[n_rounds] if n_rounds < len(ROUNDS) else last
        points = _propose(rng, kernels, size)
        points[:, folded] = np.abs(points[:, folded])
        log_p, means, squares = conditional(points)
        log_w = log_p - _log_kernels(points, kernels, folded)
        weights = np.exp(log_w - logsumexp(log_w))
        ess = 1 / (weights**2).sum()
        n_rounds += 1
        if n_rounds > len(ROUNDS) and ess >= MIN_SHARE * size:
            break
        if n_rounds > len(ROUNDS) + MAX_REPEATS:
            raise RuntimeError(f"effective size {ess:,.0f} of {size:,} in round {n_rounds}")
        squared = np.square(points - weights @ points)
        far = (squared / (weights @ squared)).mean(axis=1)
        # Without kernels far out, the standard deviation of a scale of five groups, which has a
        # kurtosis of 40, was off by a tenth.
        shares = weights * far ** np.arange(3)[:, None]
        kernels = [_around(rng, points, w / w.sum()) for w in shares]
    log_z = logsumexp(log_w) - math.log(size)
    return _summary(data, points, weights, means, squares) | {"log_z": np.array(log_z)}


def _n_extra(data: Data) -> int:
    return int(data.family in (NORMAL, NEGATIVE_BINOMIAL))


def _n_nodes(data: Data) -> int:
    groups = len(data.truth.effects)
    return next(n for rows, n in NODES if len(data.y) / groups <= rows)


def _n_terms(data: Data) -> int:
    """Terms of the likelihood that one point takes."""
    return _rows(data)[0].size * _n_nodes(data) ** data.truth.fixed.size


def _summary(
    data: Data, points: np.ndarray, weights: np.ndarray, means: np.ndarray, squares: np.ndarray
) -> Arrays:
    """Weighted moments; those of the group's raw effects are conditional on the points."""
    k = data.truth.fixed.size
    fixed, scale = points[:, :k], points[:, k : 2 * k]
    values = {"fixed": fixed, "scale": scale}
    if _n_extra(data):
        values["noise" if data.family == NORMAL else "shape"] = np.exp(points[:, -1])
    moments = {name: (x, x**2) for name, x in values.items()}
    f, s = fixed[:, None], scale[:, None]
    moments["raw"] = means, squares
    moments["effects"] = f + s * means, f**2 + 2 * f * s * means + s**2 * squares
    found = {}
    for name, (first, second) in moments.items():
        mean = np.tensordot(weights, first, 1)
        # Relative to the mean, or digits are lost.
        around = second - 2 * first * mean + mean**2
        variance = np.tensordot(weights, around, 1)
        sd = np.sqrt(variance)
        columns = {
            "mean": mean,
            "sd": sd,
            "mcse_mean": np.sqrt(np.tensordot(weights**2, (first - mean) ** 2, 1)),
            "mcse_sd": np.sqrt(np.tensordot(weights**2, (around - variance) ** 2, 1)) / (2 * sd),
            "ess": np.full(np.shape(mean), 1 / (weights**2).sum()),
        }
        found |= {f"{name}{SEPARATOR}{kind}": value for kind, value in columns.items()}
    return found


# ------------------------------------------------------------------------------------ proposals


def _curvature(gradient: Callable[[np.ndarray], np.ndarray], at: np.ndarray) -> np.ndarray:
    """Hessian by differences of the gradient, made positive definite."""
    step = 1e-4
    rows = [
        (gradient(at + step * axis) - gradient(at - step * axis)) / (2 * step)
        for axis in np.eye(len(at))
    ]
    values, vectors = np.linalg.eigh((np.array(rows) + np.array(rows).T) / 2)
    return (vectors * np.maximum(values, 1.0)) @ vectors.T


def _around(rng: np.random.Generator, points: np.ndarray, weights: np.ndarray) -> Kernels:
    """Centres by systematic resampling, and the factor of their scale by Silverman's rule."""
    d = points.shape[1]
    ess = max(1 / (weights**2).sum(), 2.0)
    places = (rng.random() + np.arange(KERNELS)) / KERNELS
    chosen = np.searchsorted(np.cumsum(weights)[:-1], places)
    covariance = np.cov(points.T, aweights=weights).reshape(d, d)
    # Few good points give a covariance that is too small, and kernels must then be wider.
    width = WIDER * (4 / ((d + 2) * min(ess, KERNELS))) ** (1 / (d + 4))
    jitter = 1e-10 * np.trace(covariance) / d * np.eye(d)
    return points[chosen], width * np.linalg.cholesky(covariance + jitter)


def _propose(rng: np.random.Generator, kernels: Sequence[Kernels], size: int) -> np.ndarray:
    """As many draws of each mixture of t distributions with one scale."""
    found = []
    for i, (centres, factor) in enumerate(kernels):
        n, d = len(range(i, size, len(kernels))), centres.shape[1]
        at = centres[rng.permutation(np.arange(n) % len(centres))]
        stretch = np.sqrt(DEGREES_OF_FREEDOM / rng.chisquare(DEGREES_OF_FREEDOM, (n, 1)))
        found.append(at + stretch * rng.standard_normal((n, d)) @ factor.T)
    return np.concatenate(found)


def _log_kernels(points: np.ndarray, kernels: Sequence[Kernels], folded: slice) -> np.ndarray:
    """Log density of the mixtures, folded at zero in some coordinates."""
    nu, parts = DEGREES_OF_FREEDOM, []
    for centres, factor in kernels:
        d = centres.shape[1]
        constant = gammaln((nu + d) / 2) - gammaln(nu / 2) - d / 2 * math.log(nu * math.pi)
        constant -= np.log(np.diag(factor)).sum() + math.log(len(centres) * len(kernels))
        whitened_centres = solve_triangular(factor, centres.T, lower=True).T
        for signs in product((1, -1), repeat=folded.stop - folded.start):
            mirrored = points.copy()
            mirrored[:, folded] *= signs
            whitened = solve_triangular(factor, mirrored.T, lower=True).T
            squares = ((whitened[:, None] - whitened_centres) ** 2).sum(-1)
            terms = -(nu + d) / 2 * np.log1p(squares / nu)
            parts.append(constant + logsumexp(terms, axis=1))
    return np.asarray(logsumexp(parts, axis=0))


# --------------------------------------------------------------------------------------- groups


def _functions(data: Data) -> tuple[Callable[[np.ndarray], tuple[float, np.ndarray]], Integrate]:
    """The log marginal with its gradient at a point, and with the groups' moments at many.

    Points are fixed effects, scales (of either sign: the density is even in them) and the log of
    noise or shape.
    """
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)  # noqa: FBT003
    groups, k = data.truth.effects.shape
    y, design, counts = _rows(data)
    nodes, log_weights = _nodes(_n_nodes(data), k)
    log_likelihood = partial(_log_likelihood, data.family, jnp.asarray(y), jnp.asarray(counts))
    factorials = gammaln(data.y + 1).sum() if data.family == POISSON else 0.0
    x = jnp.asarray(design)

    def log_prior(u: Any) -> Any:
        fixed, scale, extra = u[:k], u[k : 2 * k], u[2 * k :]
        value = -0.5 * (fixed**2).sum() / models.FIXED_SD**2
        value -= k * math.log(models.FIXED_SD * math.sqrt(2 * math.pi))
        value -= 0.5 * (scale**2).sum() / models.SCALE_SD**2
        value += k * math.log(2 / (models.SCALE_SD * math.sqrt(2 * math.pi)))
        if data.family == NORMAL:
            value += math.log(2 / (models.NOISE_SD * math.sqrt(2 * math.pi)))
            value += (extra - 0.5 * jnp.exp(2 * extra) / models.NOISE_SD**2).sum()
        elif data.family == NEGATIVE_BINOMIAL:
            a, b = models.SHAPE
            value += a * math.log(b) - math.lgamma(a) + (a * extra - b * jnp.exp(extra)).sum()
        return value

    def parts(u: Any) -> tuple[Any, Any, Any]:
        fixed, scale, extra = u[:k], u[k : 2 * k], jnp.exp(u[2 * k :])
        offset, slopes = x @ fixed, x * scale

        def given(z: Any) -> Any:
            """Log joint of (groups, ...) for raw effects (groups, k)."""
            eta = offset + jnp.einsum("grk,gk->gr", slopes, z)
            prior = -0.5 * (z**2).sum(-1) - k / 2 * math.log(2 * math.pi)
            return log_likelihood(eta, extra) + prior

        def newton(z: Any, _: None) -> tuple[Any, None]:
            eta = offset + jnp.einsum("grk,gk->gr", slopes, z)
            first, second = _derivatives(data.family, y, counts, eta, extra)
            gradient = jnp.einsum("grk,gr->gk", slopes, first) - z
            hessian = jnp.einsum("grk,gr,grl->gkl", slopes, second, slopes) + jnp.eye(k)
            step = jnp.linalg.solve(hessian, gradient[..., None])[..., 0]
            # A long step of an exponential overshoots.
            length = jnp.sqrt((step**2).sum(-1, keepdims=True))
            return z + step / jnp.maximum(1.0, length), None

        frozen_z, _ = jax.lax.scan(newton, jnp.zeros((groups, k)), None, NEWTON_STEPS)
        z = jax.lax.stop_gradient(frozen_z)
        eta = offset + jnp.einsum("grk,gk->gr", slopes, z)
        _, second = _derivatives(data.family, y, counts, eta, extra)
        hessian = jnp.einsum("grk,gr,grl->gkl", slopes, second, slopes) + jnp.eye(k)
        root = jnp.linalg.inv(jnp.linalg.cholesky(hessian))
        # The value does not depend on where the nodes are, to the accuracy of the rule.
        root = jax.lax.stop_gradient(jnp.swapaxes(root, -1, -2))
        at = z[None] + jnp.einsum("gkl,nl->ngk", root, nodes)
        log_volume = jnp.log(jnp.abs(jnp.linalg.det(root)))
        values = jax.vmap(given)(at) + log_weights[:, None] + log_volume
        log_sums = jax.scipy.special.logsumexp(values, axis=0)
        share = jnp.exp(values - log_sums)
        means = jnp.einsum("ng,ngk->gk", share, at)
        squares = jnp.einsum("ng,ngk->gk", share, at**2)
        return log_prior(u) + log_sums.sum() - factorials, means, squares

    value_and_gradient = jax.jit(jax.value_and_grad(lambda u: parts(u)[0]))
    many = jax.jit(lambda points: jax.lax.map(parts, points))

    def marginal(u: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = value_and_gradient(u)
        return float(value), np.asarray(gradient)

    def conditional(points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        log_p, means, squares = many(points)
        return np.asarray(log_p), np.asarray(means), np.asarray(squares)

    return marginal, conditional


def _rows(data: Data) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Outcomes (groups, rows), design (groups, rows, terms) and how often each row counts.

    Rows that share their linear predictor are one where sums suffice.
    """
    groups = len(data.truth.effects)
    y = data.y.reshape(groups, -1).astype(float)
    design = data.design.reshape(groups, y.shape[1], -1)
    counts = np.ones_like(y)
    if design.shape[2] == 1 and data.family not in (NORMAL, NEGATIVE_BINOMIAL):
        return y.sum(1, keepdims=True), design[:, :1], counts.sum(1, keepdims=True)
    return y, design, counts


def _log_likelihood(family: str, y: Any, counts: Any, eta: Any, extra: Any) -> Any:
    """Log likelihood of each group, (groups,); of counts, up to the factorials."""
    import jax.numpy as jnp
    from jax.scipy.special import gammaln as log_gamma

    if family == NORMAL:
        value = -0.5 * ((y - eta) / extra) ** 2 - jnp.log(extra * math.sqrt(2 * math.pi))
    elif family == BERNOULLI:
        value = y * eta - counts * jnp.logaddexp(0, eta)
    elif family == NEGATIVE_BINOMIAL:
        total = jnp.logaddexp(jnp.log(extra), eta)
        value = log_gamma(y + extra) - log_gamma(extra) - log_gamma(y + 1)
        value += extra * (jnp.log(extra) - total) + y * (eta - total)
    else:
        value = y * eta - counts * jnp.exp(eta)
    return value.sum(-1)


def _derivatives(family: str, y: Any, counts: Any, eta: Any, extra: Any) -> tuple[Any, Any]:
    """First derivative of a row's log likelihood in eta, and the negative of its second."""
    import jax
    import jax.numpy as jnp

    if family == NORMAL:
        return (y - eta) / extra**2, jnp.ones_like(eta) / extra**2
    if family == BERNOULLI:
        p = jax.nn.sigmoid(eta)
        return y - counts * p, counts * p * (1 - p)
    if family == NEGATIVE_BINOMIAL:
        p = jax.nn.sigmoid(eta - jnp.log(extra))
        return y - (y + extra) * p, (y + extra) * p * (1 - p)
    rate = counts * jnp.exp(eta)
    return y - rate, rate


def _nodes(n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes (n**k, k), and logs of weights for integrals of the integrand itself."""
    at, weights = np.polynomial.hermite_e.hermegauss(n)
    log_weights = np.log(weights) + at**2 / 2
    grid = np.array(list(product(at, repeat=k)))
    return grid, np.array([sum(w) for w in product(log_weights, repeat=k)])
