"""Write a fit to a file, and read it back."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytensor

from pymc_flows.approximation import NormalizingFlow, contents, versions
from pymc_flows.errors import ArgumentError, StorageError
from pymc_flows.io.files import Content, write
from pymc_flows.io.growing import Growing
from pymc_flows.support.arguments import as_count
from pymc_flows.support.interrupts import Interrupts
from pymc_flows.training.annealing import Anneal
from pymc_flows.training.config import GRADIENTS, FitConfig
from pymc_flows.training.objectives.loss import Anchor
from pymc_flows.training.optimizers import from_recipe
from pymc_flows.training.state import FitState, as_ramp

_log = logging.getLogger(__name__)

# What reading a malformed file may raise.
_MALFORMED = (AttributeError, KeyError, TypeError, ValueError, OverflowError)


def save_fit(
    path: str | os.PathLike[str],
    approx: NormalizingFlow,
    state: FitState,
    hist: np.ndarray,
    *,
    every: int,
    growing: Growing | None = None,
) -> None:
    """Write an approximation and the state of its fit; a Ctrl-C waits for the end.

    With ``growing``, many losses go into a separate file.
    """
    content = fit_contents(approx, state, hist, every=every)
    with Interrupts(deferred=True):
        write(path, content, growing)


def fit_contents(
    approx: NormalizingFlow, state: FitState, hist: np.ndarray, *, every: int
) -> Content:
    """An approximation and the state of its fit."""
    content = contents(approx, hist)
    kept = state.state_dict()
    arrays = {**content.arrays, **kept.pop("arrays")}
    fit = {
        **state.config.record(),
        **state.objective.record(),
        **kept,
        "every": every,
        "include_transformed": approx.include_transformed,
    }
    record = {**content.record, "fit": fit}
    return replace(content, arrays=arrays, record=record)


def read_config(
    content: Content, given: Mapping[str, Any], **more: Any
) -> tuple[FitConfig, float, Anchor | None]:
    """Return the arguments of the fit in a file, its KL weight, and its anchor.

    ``given`` are arguments that no file holds and the user gives again, or None, by name; ``more``
    may differ from those of the fit.

    Raises
    ------
    StorageError
        If there is no fit in the file, or it is malformed.
    ArgumentError
        If what the fit had is missing in ``given``, or the other way round.
    """
    fit = content.record.get("fit")
    if fit is None:
        raise StorageError(
            "the file holds an approximation without a fit: there is nothing to resume\n"
            "Read it with pymc_flows.load; fit(checkpoint=) and NFVI.save write files with a fit."
        )
    try:
        again, norm = set(map(str, fit["again"])), fit["total_grad_norm_constraint"]
        if fit["gradient"] not in GRADIENTS:
            raise ValueError(f"{fit['gradient']!r} is no estimate of the gradient")
        ramp = None if fit["ramp"] is None else as_ramp(*fit["ramp"])
        config = FitConfig(
            n=as_count(fit["n"]),
            score=bool(fit["score"]),
            backend=str(fit["backend"]),
            obj_n_mc=as_count(fit["obj_n_mc"]),
            obj_optimizer=fit["optimizer"] and from_recipe(fit["optimizer"]),
            # The state of the fit has the number of steps.
            anneal=None if ramp is None else Anneal(start=ramp.start, curve=ramp.curve),
            gradient=fit["gradient"],
            total_grad_norm_constraint=norm and float(norm),
        )
        kl_weight, anchor = float(fit["beta"]), read_anchor(content)
    except _MALFORMED as error:
        raise StorageError(f"the file is malformed: {error!r}") from error
    given = {name: value for name, value in given.items() if value is not None}
    for name in sorted(again - given.keys()):
        raise ArgumentError(
            f"the fit had {name}=, which no file can hold\nPass the same to resume again."
        )
    for name in sorted(given.keys() - again):
        raise ArgumentError(
            f"the fit had no {name}= of its own, or the file holds it: leave it out"
        )
    return replace(config, **given, **more), kl_weight, anchor


def read_anchor(content: Content) -> Anchor | None:
    """The anchor of the fit in a file; raise `ValueError` if it is malformed."""
    found = content.record["fit"].get("anchor")
    if found is None:
        return None
    value, point, gradient = found
    point, gradient = (np.array(x, dtype=pytensor.config.floatX) for x in (point, gradient))
    if point.ndim != 1 or point.shape != gradient.shape:
        raise ValueError(f"{point.shape} and {gradient.shape} make no anchor")
    return Anchor(point, float(value), gradient)


def restore_fit(approx: NormalizingFlow, state: FitState, content: Content) -> None:
    """Restore the state of a fit from a file, for an inference made with `read_config`."""
    fit, names = content.record["fit"], state.loop.state_names
    if fit.get("state_names") != names:
        raise StorageError(
            "the state of the optimizer in the file does not fit\n"
            f"expected {names}, got {str(fit.get('state_names'))[:200]}\n"
            "Pass the arguments of fit to resume again."
        )
    try:
        state.load_state_dict(fit, content.array)
        if state.config.score and state.done > len(content.arrays["hist"]):
            raise ValueError("there are fewer losses than steps")
        approx.include_transformed = bool(fit["include_transformed"])
    except StorageError:  # a ValueError, too, with a message of its own
        raise
    except _MALFORMED as error:
        raise StorageError(f"the file is malformed: {error!r}") from error
    _warn_of_versions(content)


def _warn_of_versions(content: Content) -> None:
    before = content.record.get("versions")
    before = before if isinstance(before, dict) else {}
    changed = [
        f"{name} {str(before.get(name))[:40]} → {now}"
        for name, now in versions().items()
        if before.get(name) != now
    ]
    if changed:
        _log.warning(
            "The fit goes on with other versions, so not to the same bits: %s", ", ".join(changed)
        )
