"""`fit`: formula in, fitted approximation out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pymc as pm
from numpy.typing import ArrayLike
from pymc.util import RandomState

from pymc_flows.approximation import NormalizingFlow
from pymc_flows.errors import ArgumentError
from pymc_flows.formula import Formula
from pymc_flows.inference import NFVI

DEFAULT_FORMULA = "scale-loc"


def fit(
    n: int = 10_000,
    *,
    formula: str | Formula | None = None,
    method: str | NFVI | None = None,
    model: pm.Model | None = None,
    random_seed: RandomState = None,
    start: Mapping[str, ArrayLike] | None = None,
    inf_kwargs: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> NormalizingFlow:
    """Fit a normalizing flow to a model's posterior.

    Parameters
    ----------
    n : int
        Number of steps.
    formula : str or Formula, optional
        Formula of the flow; default ``'scale-loc'``, the mean-field Gaussian.
    method : str or NFVI, optional
        ``'nfvi'``, ``'nfvi=planar*10'``, or an `NFVI`; instead of ``formula``.
    model : pymc.Model, optional
        Defaults to the model on the context stack.
    random_seed : int, Generator, RandomState, optional
        Seeds start parameters and noise.
    start : dict of str to array-like, optional
        Start point; defaults to ``model.initial_point()``.
    inf_kwargs : dict, optional
        Further arguments of `NFVI`, such as ``jitter``.
    **kwargs
        As in `NFVI.fit`: ``obj_n_mc``, ``obj_optimizer``, ``callbacks``, ``backend``, …

    Returns
    -------
    NormalizingFlow

    Raises
    ------
    ArgumentError
        If formula and method are both given, or the method is not NFVI.
    """
    if formula is not None and method is not None:
        raise ArgumentError(f"give formula= or method=, not both; got {formula!r} and {method!r}")
    if isinstance(method, NFVI):
        given = {
            "model": model,
            "start": start,
            "random_seed": random_seed,
            "inf_kwargs": inf_kwargs,
        }
        unused = [name for name, value in given.items() if value is not None]
        if unused:
            raise ArgumentError(
                f"method= is an NFVI already made: {', '.join(unused)} has no effect"
            )
        return method.fit(n, **kwargs)
    if method is not None:
        formula = _formula_of(method)
    inference = NFVI(
        DEFAULT_FORMULA if formula is None else formula,
        model=model,
        random_seed=random_seed,
        start=start,
        **(inf_kwargs or {}),
    )
    return inference.fit(n, **kwargs)


def _formula_of(method: object) -> str:
    if isinstance(method, str):
        name, equals, text = method.partition("=")
        if name.strip().lower() == "nfvi":
            return text if equals else DEFAULT_FORMULA
    raise ArgumentError(
        f"method must be 'nfvi', 'nfvi=<formula>' or an NFVI, got {method!r}\n"
        "For other methods use pymc.fit."
    )
