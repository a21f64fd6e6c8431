"""`fit_many`: one model, many data sets."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from typing import Any

import numpy as np
import xarray as xr
from xarray import Dataset, DataTree

from pymc_flows.approximation import NormalizingFlow, contents
from pymc_flows.diagnostics.quality import Quality, measure
from pymc_flows.errors import ArgumentError
from pymc_flows.field.options import FieldOptions
from pymc_flows.field.state import FieldState
from pymc_flows.fitting.auto import climb
from pymc_flows.fitting.entry import check_arguments, fit, is_search
from pymc_flows.fitting.resume import restored
from pymc_flows.importance import Correction, check_correction
from pymc_flows.io.files import Content
from pymc_flows.many.template import Builder, Template
from pymc_flows.support.arguments import check_integer
from pymc_flows.support.deadline import check_seconds
from pymc_flows.support.seeds import RandomState, integer_seed
from pymc_flows.workers import Failed, Finished, Tally, Workers, run_tasks
from pymc_flows.workers.options import BlasCores

_log = logging.getLogger(__name__)

# Number of draws that each fit is judged by.
JUDGED_BY = 1_000
# Most failed fits that the log names one by one.
NAMED = 5
STATS = ("elbo", "elbo_error", "khat", "log_evidence", "seconds")


@dataclass(frozen=True)
class Fitted:
    """A fit to one data set without its model, as it goes from process to process."""

    content: Content
    posterior: Dataset
    quality: Quality | None
    seconds: float


class ManyFits(Sequence[NormalizingFlow]):
    """Fits of one model to many data sets, as draws or as approximations.

    ``fits[k]`` makes the approximation of data set k, with a model of its own.

    Attributes
    ----------
    tree : DataTree
        Group ``posterior``: draws of all fits, with a leading dimension ``fit``; NaN for fits
        without a result. Group ``fit_stats``: ``elbo``, ``elbo_error``, ``khat``, ``log_evidence``
        (nats, NaN where the log density is random) and ``seconds`` of each fit.
    errors : dict of int to Exception or None
        Errors of the fits without a result; None for a fit that an interrupt prevented.
    messages : list of tuple of str
        Warnings of each fit.
    """

    def __init__(self, template: Template, data_sets: Sequence[Any], tally: Tally):
        self._template, self._data_sets = template, data_sets
        results = tally.results
        self.errors = {
            k: r.error if isinstance(r, Failed) else None
            for k, r in enumerate(results)
            if not isinstance(r, Finished)
        }
        self.messages = [r.messages if r is not None else () for r in results]
        self._fitted: list[Fitted | None] = [
            r.value if isinstance(r, Finished) else None for r in results
        ]
        self.tree = _tree(self._fitted)

    def __len__(self) -> int:
        return len(self._fitted)

    def __getitem__(self, k: Any) -> Any:
        """The approximation of data set k."""
        if isinstance(k, slice):
            return [self[i] for i in range(*k.indices(len(self)))]
        fitted = self._fitted[k]
        if fitted is None:
            raise ArgumentError(f"fit {k} has no result: {self.errors[k % len(self)]}")
        return restored(fitted.content, self._template.own(self._data_sets[k]))

    def __repr__(self) -> str:
        failed = f", {len(self.errors)} without a result" if self.errors else ""
        return f"ManyFits({len(self)} fits{failed})"


def fit_many(
    builder: Builder,
    data_sets: Sequence[Any],
    n: int = 10_000,
    *,
    draws: int = 1_000,
    correct: Correction | None = None,
    cores: int = 1,
    executor: Executor | None = None,
    mp_ctx: str | BaseContext | None = None,
    blas_cores: BlasCores = "auto",
    random_seed: RandomState = None,
    progressbar: bool = True,
    **kwargs: Any,
) -> ManyFits:
    """Fit one model to many data sets.

    Each worker makes the model once and exchanges its data, so that one log density and its
    compiled functions serve all data sets.

    Parameters
    ----------
    builder : pymc.Model or callable
        A model, for which data sets are dicts of new values by name, of its data (`pymc.Data`)
        and its observed variables. Or a function that makes a model from a data set of any kind;
        its models may only differ in the values of `pymc.Data` and of observed variables.
    data_sets : sequence
        Dicts must all have the same names. Their shapes must leave those of the free variables as
        they are.
    n : int
        Steps of each fit.
    draws : int
        Draws of each fit that are kept. For a hierarchy, also the effective number of values of
        the hyperparameters that are evaluated.
    correct : 'psis', 'resample' or False, optional
        As in `NormalizingFlow.sample`.
    cores, executor, mp_ctx, blas_cores
        Who runs the fits, as in `fit`.
    random_seed : int, Generator, RandomState, optional
        The seed of each fit depends only on this one and on the position of the data set.
    progressbar : bool
        Show how many are done.
    **kwargs
        As in `fit`: ``formula``, ``start``, ``obj_n_mc``, …

    Returns
    -------
    ManyFits
        Draws of all fits as one DataTree, ``tree``, and approximations by index. A fit that fails
        does not affect the others; Ctrl-C keeps those that have finished.

    Raises
    ------
    ArgumentError
        If there are no data sets, they have different names, or an argument is for a single fit.
    Exception
        The error of the first fit, if all of them fail.

    Examples
    --------
    >>> import numpy as np
    >>> import pymc as pm
    >>> import pymc_flows as pmf
    >>> with pm.Model() as model:
    ...     mu = pm.Normal("mu", 0, 10)
    ...     y = pm.Normal("y", mu, 1, observed=np.zeros(5))
    >>> many = pmf.fit_many(model, [{"y": np.full(5, 2.0)}, {"y": np.full(5, 7.0)}],
    ...                     progressbar=False, random_seed=1)
    >>> many.tree["posterior"]["mu"].mean(("chain", "draw")).values.round(1).tolist()
    [2.0, 7.0]
    """
    data_sets = list(data_sets)
    if not data_sets:
        raise ArgumentError("data_sets is empty: there is nothing to fit")
    _check_names(builder, data_sets)
    check_integer("draws", draws)
    check_correction(correct, return_inferencedata=True)
    for name in ("model", "method", "callbacks", "checkpoint", "restarts", "combine"):
        if kwargs.get(name) is not None:
            raise ArgumentError(f"fit_many makes many fits: {name}= is for one")
    check_arguments(n, kwargs.get("formula"), kwargs.get("quality", "good"), kwargs)
    check_seconds(kwargs.get("seconds"))
    template = Template(builder, data_sets[0])
    sequence = np.random.SeedSequence(integer_seed(random_seed))
    seeds = [int(s.generate_state(1)[0]) for s in sequence.spawn(len(data_sets))]
    shared = (template, n, {**kwargs, "progressbar": False}, draws, correct)
    tally = run_tasks(
        fit_one,
        shared,
        list(zip(seeds, data_sets, strict=True)),
        Workers(cores, executor, mp_ctx, blas_cores, progressbar),
        [f"fit {k}" for k in range(len(data_sets))],
    )
    found = ManyFits(template, data_sets, tally)
    _tell(found, is_interrupted=tally.is_interrupted)
    return found


def _check_names(builder: Builder, data_sets: Sequence[Any]) -> None:
    """Refuse dicts with different names: a model keeps the last value of what is not set."""
    if callable(builder):
        return
    named = [set(data) if isinstance(data, Mapping) else set() for data in data_sets]
    for k, names in enumerate(named):
        if names != named[0]:
            raise ArgumentError(
                "all data sets must have the same names\n"
                f"data set 0 has {sorted(named[0])}, data set {k} has {sorted(names)}"
            )


def fit_one(shared: tuple[Any, ...], task: tuple[int, Any]) -> Fitted:
    """Fit to one data set, in any process."""
    (template, n, arguments, draws, correct), (seed, data) = shared, task
    begin = time.perf_counter()
    fit_seed, draw_seed, judge_seed = np.random.SeedSequence(seed).generate_state(3).tolist()
    with template.with_data(data) as model:
        approx = _fit(n, draws, model=model, random_seed=fit_seed, **arguments)
        quality = None
        if isinstance(approx.q, FieldState):
            quality = approx.q.quality
        elif not approx.density.is_random:
            quality = measure(approx, JUDGED_BY, random_seed=judge_seed)
        tree = approx.sample(draws, correct=correct, random_seed=draw_seed)
        posterior = tree.children["posterior"].to_dataset().drop_attrs()
        return Fitted(contents(approx), posterior, quality, time.perf_counter() - begin)


def _fit(n: int, draws: int, *, formula: Any = None, **arguments: Any) -> NormalizingFlow:
    if not is_search(formula):
        return fit(n, formula=formula, **arguments)
    # Draws are chosen from weighted values of the hyperparameters, so as many effective values do.
    return climb(n, options=FieldOptions(effective=draws), **arguments)


def _tree(fitted: Sequence[Fitted | None]) -> DataTree:
    kept = {k: f for k, f in enumerate(fitted) if f is not None}
    if not kept:
        return DataTree()
    posterior = xr.concat([f.posterior for f in kept.values()], dim="fit", join="exact")
    posterior = posterior.assign_coords(fit=list(kept)).reindex(fit=range(len(fitted)))
    rows = np.full((len(fitted), len(STATS)), np.nan)
    for k, f in kept.items():
        if (q := f.quality) is not None:
            rows[k, :4] = q.elbo, q.elbo_error, q.khat, q.log_evidence
        rows[k, 4] = f.seconds
    stats = Dataset({name: ("fit", column) for name, column in zip(STATS, rows.T, strict=True)})
    groups = {"posterior": posterior, "fit_stats": stats.assign_coords(fit=posterior["fit"])}
    return DataTree.from_dict(groups)


def _tell(found: ManyFits, *, is_interrupted: bool) -> None:
    """Warn of fits without a result, or whose weights say that they cannot be used."""
    failed = {k: error for k, error in found.errors.items() if error is not None}
    if len(found.errors) == len(found):
        if failed:
            raise next(iter(failed.values()))
        raise KeyboardInterrupt
    if is_interrupted:
        _log.warning(
            "Interrupted: %d of %d fits have a result.", len(found) - len(found.errors), len(found)
        )
    for k, error in list(failed.items())[:NAMED]:
        _log.warning("Fit %d has no result: %s: %s", k, type(error).__name__, error)
    if len(failed) > NAMED:
        _log.warning("%d fits have no result; see the attribute errors.", len(failed))
    khat = found.tree["fit_stats"].to_dataset()["khat"].values
    bad = np.flatnonzero(khat > 1)
    if len(bad):
        _log.warning(
            "%d of %d fits have k-hat above 1, the worst %.2f (fit %d): look at report(fits[k]) "
            "before you use them.",
            len(bad),
            len(found),
            np.nanmax(khat),
            int(np.nanargmax(khat)),
        )
