"""Simulation-based calibration: whether fits to simulated data have the right uncertainty."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from typing import Any

import numpy as np
import pymc as pm
from xarray import Dataset

from pymc_flows.errors import ArgumentError, ModelError
from pymc_flows.importance import Correction
from pymc_flows.many.fits import ManyFits, fit_many
from pymc_flows.support.arguments import check_integer, model_or_context
from pymc_flows.support.compat import MinibatchRandomVariable
from pymc_flows.support.seeds import RandomState, integer_seed
from pymc_flows.support.tables import html_table, text_table
from pymc_flows.workers.options import BlasCores

_log = logging.getLogger(__name__)

LEVELS = (0.5, 0.8, 0.95)
# Rows of the table, and the level of the test of all scalars together.
SHOWN, ALPHA = 10, 0.01
FEWEST = 20
COLUMNS = ("scalar", "p", "mean u", "spread", *(f"{level:.0%}" for level in LEVELS))


@dataclass(frozen=True, repr=False, eq=False)
class Calibration:
    """Ranks of true values among draws of fits to data that were simulated with them.

    If fits are exact posteriors, each rank is uniform (Cook, Gelman & Rubin 2006; Talts,
    Betancourt, Simpson, Vehtari & Gelman, arXiv:1804.06788). It prints as text, and as a table in a
    notebook; `pymc_flows.plots.calibration` draws it.

    Attributes
    ----------
    ranks : Dataset
        Number of draws below the true value, by free variable, with a leading dimension ``fit``;
        ties are broken at random.
    uniforms : Dataset
        The ranks as numbers between 0 and 1: (rank + U) / (draws + 1), U uniform.
    n_draws : int
        Draws of each fit.
    fits : ManyFits
    truths : Dataset
        The values that data were simulated with, of all simulations.
    """

    ranks: Dataset
    uniforms: Dataset
    n_draws: int
    fits: ManyFits
    truths: Dataset

    @property
    def n(self) -> int:
        """Number of simulations with a result."""
        return int(self.ranks.sizes["fit"])

    def scalars(self) -> dict[str, np.ndarray]:
        """Uniform numbers (n,) of each scalar by name and coords, such as ``'theta[Choate]'``."""
        found = {}
        for name, values in self.uniforms.data_vars.items():
            rest = values.transpose("fit", ...)
            for place in np.ndindex(rest.shape[1:]):
                labels = [
                    str(rest.coords[dim].values[i] if dim in rest.coords else i)
                    for dim, i in zip(rest.dims[1:], place, strict=True)
                ]
                label = f"{name}[{', '.join(labels)}]" if labels else str(name)
                found[label] = rest.values[(slice(None), *place)]
        return found

    def coverage(self, level: float) -> Dataset:
        """Share of the true values inside central intervals of a level between 0 and 1."""
        if not 0 < level < 1:
            raise ArgumentError(f"level must lie between 0 and 1, got {level!r}")
        inside: Dataset = (abs(2 * self.uniforms - 1) <= level).mean("fit")
        return inside

    def p_values(self) -> dict[str, float]:
        """P-value of each scalar for uniform ranks, the smallest first.

        Twice the smaller p-value of two Kolmogorov-Smirnov tests: of u, which detects shifts, and
        of ``|2u − 1|``, which detects wrong widths.
        """
        found = {name: _p_value(u) for name, u in self.scalars().items()}
        return dict(sorted(found.items(), key=lambda item: item[1]))

    @property
    def is_calibrated(self) -> bool:
        """Whether no scalar contradicts calibration, at 1 % for all together (Bonferroni)."""
        p = self.p_values()
        return min(p.values()) * len(p) > ALPHA

    def rows(self) -> list[tuple[str, ...]]:
        """The scalars with the smallest p-values, as text."""
        scalars, rows = self.scalars(), []
        for name, p in list(self.p_values().items())[:SHOWN]:
            u = scalars[name]
            inside = [f"{np.mean(abs(2 * u - 1) <= level):.0%}" for level in LEVELS]
            # Mean of u: 0.5; of |2u − 1|: 0.5, more for intervals that are too narrow.
            rows.append(
                (name, f"{p:.3g}", f"{u.mean():.3f}", f"{abs(2 * u - 1).mean():.3f}", *inside)
            )
        return rows

    def lines(self) -> list[str]:
        """The text below the table."""
        left = len(self.scalars()) - SHOWN
        lines = [f"{left} further scalars have larger p-values."] if left > 0 else []
        lines.append(
            "Uniform ranks have mean u and spread 0.5. Mean u below 0.5: draws are too large. "
            "Spread above 0.5: intervals are too narrow. The last columns are shares of true "
            "values inside central intervals."
        )
        verdict = "Nothing speaks against calibration" if self.is_calibrated else "Not calibrated"
        lines.append(f"{verdict}, at 1 % for all scalars together: {self.n} simulations.")
        if self.fits.errors:
            lines.append(f"{len(self.fits.errors)} fits have no result and are left out.")
        return lines

    def __str__(self) -> str:
        table = text_table([COLUMNS, *self.rows()], right=range(1, len(COLUMNS)), indent="")
        return "\n".join([table, *self.lines()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        table = html_table(self.rows(), header=COLUMNS, right=range(1, len(COLUMNS)))
        return table + "".join(f"<p>{line}</p>" for line in self.lines())


def _p_value(u: np.ndarray) -> float:
    from scipy import stats  # slow to import

    tests = (u, np.abs(2 * u - 1))
    return float(min(1.0, 2 * min(stats.kstest(values, "uniform").pvalue for values in tests)))


def calibrate(
    model: pm.Model | None = None,
    n: int = 200,
    *,
    steps: int = 10_000,
    draws: int = 500,
    correct: Correction | None = None,
    cores: int = 1,
    executor: Executor | None = None,
    mp_ctx: str | BaseContext | None = None,
    blas_cores: BlasCores = "auto",
    random_seed: RandomState = None,
    progressbar: bool = True,
    **kwargs: Any,
) -> Calibration:
    """Check fits of a model by data that are simulated from its prior.

    Parameters are drawn from the prior, data given the parameters, and the model is fitted to each
    data set. Over the simulations, the true values have uniform ranks among draws of the posterior,
    but not among draws of inaccurate fits. The result is an average over the prior, and says
    nothing of the fit to the data at hand.

    Parameters
    ----------
    model : pymc.Model, optional
        With proper priors and observed variables. Defaults to the model on the context stack; it
        is left as it is.
    n : int
        Simulations, at least 20.
    steps : int
        Steps of each fit, the argument ``n`` of `fit`.
    draws : int
        Draws of each fit.
    correct : 'psis', 'resample' or False, optional
        ``'resample'`` calibrates draws that importance weights have corrected.
    cores, executor, mp_ctx, blas_cores, progressbar
        As in `fit_many`.
    random_seed : int, Generator, RandomState, optional
    **kwargs
        As in `fit`.

    Returns
    -------
    Calibration

    Raises
    ------
    ArgumentError
        If ``n`` or ``draws`` is too small, or ``correct='psis'``, which leaves draws as they are.
    ModelError
        If the model has no observed variable, has a potential, which draws from the prior ignore,
        or has data that cannot be exchanged.
    """
    model = model_or_context(model)
    n, draws = check_integer("n", n, minimum=FEWEST), check_integer("draws", draws, minimum=FEWEST)
    if correct == "psis":
        raise ArgumentError("correct='psis' leaves draws as they are: take 'resample'")
    _check(model)
    prior_seed, fit_seed, tie_seed = (
        np.random.SeedSequence(integer_seed(random_seed)).generate_state(3).tolist()
    )
    names = [rv.name for rv in model.free_RVs]
    observed = [rv.name for rv in model.observed_RVs]
    tree = pm.sample_prior_predictive(
        n, model=model, var_names=[*names, *observed], random_seed=int(prior_seed)
    )
    truths = tree["prior"].to_dataset().isel(chain=0, drop=True).drop_attrs()[names]
    simulated = tree["prior_predictive"].to_dataset().isel(chain=0, drop=True)
    data_sets = [{name: simulated[name].values[k] for name in observed} for k in range(n)]
    fits = fit_many(
        model,
        data_sets,
        steps,
        draws=draws,
        correct=correct,
        cores=cores,
        executor=executor,
        mp_ctx=mp_ctx,
        blas_cores=blas_cores,
        random_seed=int(fit_seed),
        progressbar=progressbar,
        **kwargs,
    )
    kept = [k for k in range(n) if k not in fits.errors]
    truths = truths.rename(draw="fit").drop_vars("fit", errors="ignore")
    ranks, uniforms = _ranks(fits, truths, kept, np.random.default_rng(int(tie_seed)))
    found = Calibration(ranks, uniforms, draws, fits, truths)
    if not found.is_calibrated:
        name, p = next(iter(found.p_values().items()))
        _log.warning("Fits of this model are not calibrated: %s has p = %.2g.", name, p)
    return found


def _check(model: pm.Model) -> None:
    if not model.observed_RVs:
        raise ModelError("the model has no observed variable: there are no data to simulate")
    if model.potentials:
        named = ", ".join(p.name for p in model.potentials)
        raise ModelError(f"the model has potentials ({named}), which draws from its prior ignore")
    if any(isinstance(rv.owner.op, MinibatchRandomVariable) for rv in model.observed_RVs):
        raise ModelError("data of minibatches or with total_size= cannot be simulated")


def _ranks(
    fits: ManyFits, truths: Dataset, kept: Sequence[int], rng: np.random.Generator
) -> tuple[Dataset, Dataset]:
    posterior = fits.tree["posterior"].to_dataset().isel(fit=kept)
    ranks, uniforms = {}, {}
    for name, truth in truths.items():
        draws = posterior[name].transpose("fit", "chain", "draw", ...)
        values = draws.values.reshape(len(kept), -1, *draws.shape[3:])
        true = truth.transpose("fit", ...).values[list(kept)]
        below, ties = (values < true[:, None]).sum(1), (values == true[:, None]).sum(1)
        rank = below + rng.integers(0, ties + 1)
        dims = draws.isel(chain=0, draw=0, drop=True).dims
        ranks[name] = (dims, rank)
        uniforms[name] = (dims, (rank + rng.random(rank.shape)) / (values.shape[1] + 1))
    coords = posterior.drop_vars(["chain", "draw"]).coords
    return Dataset(ranks, coords=coords), Dataset(uniforms, coords=coords)
