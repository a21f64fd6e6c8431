"""Ways to approximate a posterior: ours, and those of others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pymc as pm
from pymc.variational.opvi import Approximation

import pymc_flows as pmf
from benchmarks._common import Row
from benchmarks._compile_clock import CompileClock
from benchmarks._posteriors import Draws, Reference
from pymc_flows.diagnostics.quality import measure
from pymc_flows.flows.frame import Frame
from pymc_flows.model.logp import ModelDensity
from pymc_flows.model.points import to_unconstrained

DRAWS = 4_000
ADVI_STEPS = 30_000
CHAINS = 4
# Parts of a run of NUTS that are looked at for when it became good.
PARTS = 20


@dataclass(frozen=True)
class Fitted:
    """What a method found.

    Attributes
    ----------
    draws : mapping of str to ndarray, shape (draw, ...)
    facts : callable
        Returns more columns of the row; not timed.
    course : sequence of (int, float)
        Numbers of draws and the share of the seconds of the run after which they were there.
    """

    draws: Draws
    facts: Callable[[], Row]
    course: Sequence[tuple[int, float]] = ()


type Method = Callable[[pm.Model, int, int | None, CompileClock], Fitted]


def ours(formula: str) -> Method:
    """`pymc_flows.fit` with its defaults."""

    def fit(model: pm.Model, seed: int, steps: int | None, clock: CompileClock) -> Fitted:
        given = {} if steps is None else {"n": steps}
        approx = pmf.fit(formula=formula, model=model, random_seed=seed, progressbar=False, **given)

        def facts() -> Row:
            return {**quality(approx, seed), "note": str(approx.formula)}

        return Fitted(by_variable(approx.sample(DRAWS, random_seed=seed)), facts)

    return fit


def advi(name: str) -> Method:
    """A Gaussian of `pymc.fit`, with its defaults but for the number of steps."""

    def fit(model: pm.Model, seed: int, steps: int | None, clock: CompileClock) -> Fitted:
        approx = pm.fit(
            steps or ADVI_STEPS, method=name, model=model, random_seed=seed, progressbar=False
        )
        draws = by_variable(approx.sample(DRAWS, random_seed=seed))
        return Fitted(draws, lambda: quality(as_flow(model, *moments(approx)), seed))

    return fit


def pathfinder(model: pm.Model, seed: int, steps: int | None, clock: CompileClock) -> Fitted:
    """Multi-path Pathfinder of pymc-extras, with its defaults but for the number of draws."""
    from pymc_extras import fit_pathfinder

    idata = fit_pathfinder(
        model,
        num_draws=DRAWS,
        num_draws_per_path=DRAWS,
        random_seed=seed,
        parallel=False,  # in this process, whose CPU time is measured
        progressbar=False,
    )
    return Fitted(by_variable(idata), lambda: {"note": "multi-path, PSIS"})


def nuts(model: pm.Model, seed: int, steps: int | None, clock: CompileClock) -> Fitted:
    """NUTS of nutpie, with its defaults but for the number of chains."""
    import nutpie

    with clock.running():
        compiled = nutpie.compile_pymc_model(model)
    length = {} if steps is None else {"draws": steps, "tune": steps}
    idata = nutpie.sample(compiled, chains=CHAINS, seed=seed, progress_bar=False, **length)
    draws = by_variable(idata)
    n = idata["posterior"].sizes["draw"]
    # The work is gradients, and all of them cost the same.
    warmup = float(idata["warmup_sample_stats"]["n_steps"].sum())
    work = warmup + np.cumsum(idata["sample_stats"]["n_steps"].sum("chain").values)
    ends = np.unique(np.linspace(0, n, PARTS + 1).astype(int)[1:])
    course = [(CHAINS * int(end), float(work[end - 1] / work[-1])) for end in ends]
    diverging = int(idata["sample_stats"]["diverging"].sum())
    return Fitted(draws, lambda: {"note": f"{diverging} divergences"}, course)


METHODS: Mapping[str, Method] = {
    "advi": advi("advi"),
    "fullrank_advi": advi("fullrank_advi"),
    "pathfinder": pathfinder,
    "nuts": nuts,
}
BEST_GAUSSIAN = "best Gaussian"


def best_gaussian(model: pm.Model, reference: Reference, seed: int, draws: int) -> Fitted:
    """The Gaussian with the moments that the reference has in the unconstrained space."""
    given = solve_missing(model, reference["draws"])
    free = {rv.name: given[rv.name] for rv in model.free_RVs}
    points = to_unconstrained(ModelDensity(model), free).points
    approx = as_flow(model, points.mean(0), np.atleast_2d(np.cov(points.T)))
    return Fitted(
        by_variable(approx.sample(draws, random_seed=seed)), lambda: quality(approx, seed)
    )


def solve_missing(model: pm.Model, draws: Draws) -> Draws:
    """Add free variables that the draws lack, but of which a deterministic is an affine function.

    Raises
    ------
    ValueError
        If a free variable cannot be found in this way.
    """
    found = dict(draws)
    for rv in model.free_RVs:
        if rv.name in found:
            continue
        for result in model.deterministics:
            if result.name in draws and result.type.ndim == rv.type.ndim:
                given = [v for v in model.free_RVs if v.name in found]
                function = pm.compile(
                    [rv, *given], result, on_unused_input="ignore", mode="FAST_COMPILE"
                )
                rows = zip(*(found[v.name] for v in given), strict=True)
                target, shape = draws[result.name], draws[result.name].shape[1:]
                solution = np.empty_like(target)
                for i, row in enumerate(rows):
                    at_0, at_1 = (function(np.full(shape, x), *row) for x in (0.0, 1.0))
                    with np.errstate(all="ignore"):
                        solution[i] = (target[i] - at_0) / (at_1 - at_0)
                    # What does not depend on the variable at all is reproduced by anything.
                    is_solved = np.isfinite(solution[i]).all()
                    if not (is_solved and np.allclose(function(solution[i], *row), target[i])):
                        break
                else:
                    found[rv.name] = solution
                    break
        else:
            raise ValueError(f"draws of {rv.name!r} are neither given nor implied")
    return found


def as_flow(model: pm.Model, mean: np.ndarray, cov: np.ndarray) -> pmf.NormalizingFlow:
    """A Gaussian (dim,), (dim, dim) of the unconstrained space."""
    frame = Frame(mean, np.linalg.cholesky(cov))
    return pmf.NFVI("loc", model=model, start=frame, jitter=0).approx


def moments(approx: Approximation) -> tuple[np.ndarray, np.ndarray]:
    """Mean (dim,) and covariance (dim, dim) of a Gaussian of PyMC, in the unconstrained space."""
    return approx.mean.eval(), approx.cov.eval()


def quality(approx: pmf.NormalizingFlow, seed: int) -> Row:
    """ELBO and k-hat from fresh draws."""
    found: dict[str, Any] = {"dim": approx.ddim}
    if not approx.density.is_random:
        q = measure(approx, random_seed=seed)
        found |= {"ELBO": q.elbo, "ELBO error": q.elbo_error, "k-hat": q.khat}
    return found


def by_variable(idata: Any) -> Draws:
    """Draws (draw, ...), those of all chains side by side."""
    posterior = idata["posterior"].dataset
    return {
        str(k): v.stack(s=("draw", "chain")).transpose("s", ...).values
        for k, v in posterior.items()
    }
