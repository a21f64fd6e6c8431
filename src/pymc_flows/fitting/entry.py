"""`fit`: formula in, fitted approximation out."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from multiprocessing.context import BaseContext
from typing import Any

import pymc as pm
from numpy.typing import ArrayLike

from pymc_flows.approximation import NormalizingFlow
from pymc_flows.devices import as_devices
from pymc_flows.errors import ArgumentError
from pymc_flows.fitting.auto import climb
from pymc_flows.fitting.nfvi import NFVI
from pymc_flows.fitting.restarts.run import Combine, fit_restarts
from pymc_flows.fitting.restarts.single import inference_of
from pymc_flows.fitting.structured import fit_structured
from pymc_flows.flows.frame import Frame
from pymc_flows.formula import Formula
from pymc_flows.model.examine import check_backend
from pymc_flows.model.logp import ModelDensity, density_of
from pymc_flows.model.streams import stream_of
from pymc_flows.support.arguments import check_integer, model_or_context
from pymc_flows.support.deadline import Deadline, check_seconds
from pymc_flows.support.interrupts import Interrupts
from pymc_flows.support.seeds import RandomState
from pymc_flows.training.config import FitConfig
from pymc_flows.workers import Workers
from pymc_flows.workers.options import BlasCores

AUTO = "auto"
QUALITIES = ("good", "best")
# Arguments that a fit which is not trained step by step takes or ignores.
_UNTRAINED = ("progressbar", "progressbar_theme", "backend", "score", "hyper", "field", "quality")


def fit(
    n: int = 10_000,
    *,
    formula: str | Formula | None = None,
    method: str | NFVI | None = None,
    model: pm.Model | None = None,
    random_seed: RandomState = None,
    start: Mapping[str, ArrayLike] | Frame | None = None,
    inf_kwargs: Mapping[str, Any] | None = None,
    hyper: Sequence[str] = (),
    field: Sequence[str] = (),
    seconds: float | None = None,
    quality: str = "good",
    restarts: int | None = None,
    combine: Combine = None,
    batched: bool = False,
    race: bool = False,
    cores: int = 1,
    executor: Executor | None = None,
    mp_ctx: str | BaseContext | None = None,
    blas_cores: BlasCores = "auto",
    **kwargs: Any,
) -> NormalizingFlow:
    """Fit a normalizing flow to a model's posterior.

    A flow is fitted in the coordinates of `find_frame`, in which the posterior has about mean 0 and
    covariance I. If the formula does not mix coordinates, the frame does not either.

    Parameters
    ----------
    n : int
        Number of steps; of each fit for ``'auto'``.
    formula : str or Formula, optional
        Formula of the flow. Default ``'auto'``: for a hierarchy (`pymc_flows.structure`) a flow
        over its hyperparameters and a Gaussian field given them; for other models, or if its
        weights cannot be trusted, a Gaussian with the moments of the posterior, a Gaussian copula
        with spline marginals, a mixture of Gaussians, then richer and richer flows, until one has
        the ``quality``. Only the last ones take steps; the others leave ``hist`` empty. The
        attribute ``ladder`` of the approximation is the table of what was tried.
    method : str or NFVI, optional
        ``'nfvi'``, ``'nfvi=planar*10'``, or an `NFVI`; instead of ``formula``.
    model : pymc.Model, optional
        Defaults to the model on the context stack.
    random_seed : int, Generator, RandomState, optional
        Seeds start parameters and noise.
    start : dict of str to array-like or Frame, optional
        Where the search begins; defaults to ``model.initial_point()``. A `Frame` is taken as it is.
    inf_kwargs : dict, optional
        Further arguments of `NFVI`, such as ``jitter``.
    hyper, field : sequence of str
        Names of hyperparameters, and of variables of the field given them, for formulas such as
        ``'tril-loc | laplace'``; by default `pymc_flows.structure` says which they are.
    seconds : float, optional
        Wall time after which nothing further is begun: the best fit until then is returned, and the
        ladder says what was left out. A search, a training loop and a fit of a field check the time
        between two units of work; compilation is not interrupted, and ``'auto'`` begins no flow
        with networks in the last 8 seconds. With restarts, the time of each. By default there is no
        limit, except that in more than 300 dimensions, with all rows in memory, ``'auto'`` trains
        for 45 seconds, as the ladder says, unless ``quality`` is ``'best'`` or ``start`` a `Frame`.
    quality : {'good', 'best'}
        When ``'auto'`` ends. ``'good'``: with the first formula whose weights can be trusted and
        of whose draws more than half are effective; `NormalizingFlow.sample` then resamples them
        (sampling importance resampling), and the ladder says so. ``'best'``: when the flow itself
        is within 0.02 nats of the posterior, so that its draws and its density need no weights.
    restarts : int, optional
        Number of fits, which begin at separate modes of the posterior or, if there is only one,
        with different seeds. The attribute ``restarts`` of the approximation says how far the fits
        disagree (R-hat of each variable), and which modes they found with which evidence; the log
        warns of disagreement. The result does not depend on which process runs a fit, or when.
        After a Ctrl-C the finished fits are used.
    combine : {'mixture', 'best'}, optional
        What restarts return: the mixture of all, weighted by evidence, or the best of them. By
        default the mixture if its ELBO is larger.
    batched : bool
        Take the steps of all restarts in one compiled loop on JAX: for accelerators, which one
        small fit leaves idle. On a CPU it is slower than fits one by one. Each restart equals the
        fit alone, up to rounding. If this is not possible (without a formula, on numba, with
        minibatches, ``stop=``, ``seconds=`` or further parameters) fits run one by one, and the log
        says so.
    race : bool
        End restarts early that are behind: after an eighth, a quarter and a half of the steps,
        those of the worse half whose losses are above those of the best by more than noise. They
        stay as they are then in the table, and in the mixture if it gains by them.
    cores : int
        Number of processes that run restarts; 1 is this process. A script that asks for more needs
        ``if __name__ == "__main__":``.
    executor : concurrent.futures.Executor, optional
        Runs the restarts instead: a pool of your own, loky's, ``Client.get_executor()`` of Dask,
        ``MPIPoolExecutor`` of mpi4py.
    mp_ctx : str or multiprocessing context, optional
        Start method of processes; default ``'spawn'``.
    blas_cores : int, 'auto' or None
        Threads of BLAS of all processes together; ``'auto'`` is one per process, None sets no
        limit.
    **kwargs
        As in `NFVI.fit`: ``obj_n_mc``, ``obj_optimizer``, ``callbacks``, ``backend``, ``devices``,
        …

    Returns
    -------
    NormalizingFlow

    Raises
    ------
    ArgumentError
        If an argument is wrong, or has no meaning with the others.
    WorkerError
        If restarts have no result because their workers were lost.
    """
    arguments = dict(locals())
    if isinstance(n, pm.Model):
        raise ArgumentError("n is the number of steps, got a model\nWrite model=….")
    if isinstance(n, str | Formula):
        raise ArgumentError(f"n is the number of steps, got {str(n)!r}\nWrite formula={str(n)!r}.")
    n = check_arguments(n, formula, quality, kwargs)
    deadline = Deadline.after(check_seconds(seconds))
    if formula is not None and method is not None:
        raise ArgumentError(f"give formula= or method=, not both; got {formula!r} and {method!r}")
    if isinstance(method, NFVI):
        _check_unused(arguments)
        return method.fit(n, **kwargs)
    if method is not None:
        formula = _formula_of(method)
    _check_devices(kwargs, formula, start, seconds)
    model = model_or_context(model)
    density = density_of(model)  # held, so that the search and all fits find it again
    flow = None if formula is None or is_search(formula) else Formula(formula)
    others: dict[str, Any] = {
        "inf_kwargs": inf_kwargs,
        "hyper": hyper,
        "field": field,
        "seconds": seconds,
        "quality": quality,
    }
    if restarts is not None:
        if cores != 1 or executor is not None:
            if kwargs.get("devices"):
                raise ArgumentError("devices= belong to this process: leave out cores=, executor=")
            if batched:
                raise ArgumentError("batched= is one loop here: leave out cores= and executor=")
        show = bool(kwargs.pop("progressbar", True))
        return fit_restarts(
            fit,
            n,
            model=model,
            restarts=restarts,
            workers=Workers(cores, executor, mp_ctx, blas_cores, show),
            combine=combine,
            batched=batched,
            is_race=race,
            formula=flow,
            start=start,
            random_seed=random_seed,
            arguments={**kwargs, **others},
        )
    unlike_default = cores != 1 or blas_cores != "auto" or any((executor, mp_ctx, combine))
    if unlike_default or batched or race:
        raise ArgumentError(
            "cores=, executor=, mp_ctx=, blas_cores=, combine=, batched= and race= are for "
            "restarts: give restarts=, too"
        )
    if flow is None:
        return climb(n, model=model, start=start, random_seed=random_seed, **others, **kwargs)
    if flow.conditional is not None:
        if isinstance(start, Frame):
            raise ArgumentError(f"{str(flow)!r} has no frame\nGive start= by variable, or none.")
        _check_structured(flow, density, {**kwargs, **others})
        with Interrupts(deferred=False):
            return fit_structured(
                flow, model=model, start=start, hyper=hyper, field=field, random_seed=random_seed
            )
    config = FitConfig(n=n, **kwargs)
    if hyper or field:
        raise ArgumentError(
            f"hyper= and field= are for formulas such as 'tril-loc | laplace', got {str(flow)!r}"
        )
    inference = inference_of(
        flow,
        model=model,
        start=start,
        random_seed=random_seed,
        inf_kwargs=inf_kwargs,
        deadline=deadline,
    )
    inference.train(config, deadline=deadline).tell(stacklevel=2)
    return inference.approx


def is_search(formula: str | Formula | None) -> bool:
    """Whether no formula is given, or ``'auto'``."""
    return formula is None or (isinstance(formula, str) and formula.strip().lower() == AUTO)


def check_arguments(
    n: object, formula: str | Formula | None, quality: object, kwargs: Mapping[str, Any]
) -> int:
    """Check arguments of `fit` for which no model is needed; return the number of steps."""
    steps = check_integer("n", n, minimum=0)
    _check_keywords(kwargs)
    check_backend(kwargs.get("backend"))
    _check_quality(quality, formula)
    return steps


def _check_unused(arguments: Mapping[str, Any]) -> None:
    """Refuse arguments of `fit` that come too late for an `NFVI`."""
    own = inspect.signature(fit).parameters
    unused = [
        name
        for name, value in arguments.items()
        if name not in ("n", "method", "kwargs") and value is not own[name].default
    ]
    if unused:
        raise ArgumentError(f"method= is an NFVI already made: {', '.join(unused)} has no effect")


def _check_quality(quality: object, formula: str | Formula | None) -> None:
    """Refuse an unknown quality, and one that a single formula could not promise."""
    if quality not in QUALITIES:
        raise ArgumentError(f"quality must be 'good' or 'best', got {quality!r}")
    if quality != "good" and not is_search(formula):
        raise ArgumentError(
            f"quality={quality!r} says when formula='auto' ends, got the formula {str(formula)!r}"
        )


def _check_devices(
    kwargs: dict[str, Any], formula: str | Formula | None, start: object, seconds: float | None
) -> None:
    """Refuse arguments by which processes with their own rows would act differently."""
    devices = kwargs["devices"] = as_devices(kwargs.get("devices"))
    if devices is None:
        del kwargs["devices"]
    elif not devices.is_local and (
        is_search(formula) or not isinstance(start, Frame) or seconds is not None
    ):
        raise ArgumentError(
            "devices= of several processes: a search sees the rows of its process alone\n"
            "Give a formula, start= as the same Frame in all of them, and no seconds=; or use NFVI."
        )


def _check_structured(flow: Formula, density: ModelDensity, kwargs: Mapping[str, Any]) -> None:
    """Refuse what a field given hyperparameters cannot be fitted to, or with."""
    if stream_of(density) is not None:
        raise ArgumentError(
            f"{str(flow)!r} needs all rows in memory, and the model sees them batch by batch\n"
            "Leave out formula=, or take one of a flow over all variables."
        )
    if kwargs.get("seconds") is not None:
        raise ArgumentError(
            f"{str(flow)!r} is fitted as a whole: seconds= has no meaning there\n"
            "Leave out formula=, which looks at the clock."
        )
    nothing: tuple[object, ...] = (None, False, [], {}, ())
    unused = [k for k, value in kwargs.items() if k not in _UNTRAINED and value not in nothing]
    if unused:
        raise ArgumentError(
            f"{str(flow)!r} is not trained step by step: {', '.join(unused)} has no meaning there"
        )


def _check_keywords(kwargs: Mapping[str, Any]) -> None:
    """Refuse arguments that neither this function nor `NFVI.fit` has."""
    own = inspect.signature(fit).parameters
    known = [*own, *list(inspect.signature(NFVI.fit).parameters)[1:]]  # without self
    for name in kwargs:
        if name in known:
            continue
        # None of them is close to the name that other libraries give to a seed.
        known_as = {"seed": "random_seed"}
        close = difflib.get_close_matches(name, [*known, *known_as, "learning_rate"], n=1)
        if close == ["learning_rate"]:
            hint = "write obj_optimizer=pm.adam(learning_rate=…), schedule='cosine'"
        elif close:
            hint = f"did you mean {known_as.get(close[0], close[0])}=?"
        else:
            hint = "see the documentation of fit"
        raise TypeError(f"fit() got an unexpected keyword argument {name!r}: {hint}")


def _formula_of(method: object) -> str:
    if isinstance(method, str):
        name, equals, text = method.partition("=")
        if name.strip().lower() == "nfvi":
            return text if equals else AUTO
    raise ArgumentError(
        f"method must be 'nfvi', 'nfvi=<formula>' or an NFVI, got {method!r}\n"
        "For other methods use pymc.fit."
    )
