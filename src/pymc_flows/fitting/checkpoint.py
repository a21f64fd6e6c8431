"""A fit as the content of a file, and back."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import astuple, replace
from typing import Any

import numpy as np
from pytensor.compile.sharedvalue import SharedVariable

from pymc_flows.approximation import NormalizingFlow, contents, versions
from pymc_flows.backends.rngs import decode_state, encode_state, set_state
from pymc_flows.errors import ArgumentError, StorageError
from pymc_flows.fitting.session import FitState
from pymc_flows.io.files import Content, write
from pymc_flows.support.interrupts import Interrupts
from pymc_flows.training.annealing import CURVES, Ramp
from pymc_flows.training.objective import GRADIENTS
from pymc_flows.training.optimizers import CURVES as SCHEDULES
from pymc_flows.training.optimizers import Rated, Schedule, from_recipe
from pymc_flows.training.stopping import Plateau

_log = logging.getLogger(__name__)

# Whole numbers of the state of a fit that go into the file as they are.
_COUNTS = ("i", "n", "done", "failed", "every")


def make_recipe(
    backend: str,
    n_draws: int,
    optimizer: Rated,
    *,
    beta: float,
    gradient: str,
    max_norm: Any,
    **code: object,
) -> dict[str, Any]:
    """What a file says about the arguments of a fit.

    Parameters
    ----------
    backend : {"numba", "jax"}
    n_draws : int
    optimizer : Rated
    beta : float
        Weight of the prior and the entropy.
    gradient : {'total', 'path', 'switch'}
    max_norm : float or TensorVariable, optional
    **code
        Arguments that no file can hold, by their names in `NFVI.fit`.
    """
    is_number = isinstance(max_norm, int | float | np.number)
    code |= {
        "obj_optimizer": optimizer.recipe is None,
        "total_grad_norm_constraint": max_norm is not None and not is_number,
    }
    return {
        "backend": backend,
        "obj_n_mc": n_draws,
        "optimizer": optimizer.recipe,
        "beta": beta,
        "gradient": gradient,
        "total_grad_norm_constraint": float(max_norm) if is_number else None,
        "again": sorted(name for name, value in code.items() if value),
    }


def save_fit(
    path: str | os.PathLike[str],
    approx: NormalizingFlow,
    state: FitState,
    hist: np.ndarray,
    *,
    every: int,
) -> None:
    """Write an approximation and the state of its fit; a Ctrl-C waits until that is done."""
    content = contents(approx, hist)
    loop = state.loop
    names, arrays = [], {}
    for k, var in enumerate(_optimizer_state(approx, state)):
        names.append(str(var.name))
        arrays[f"state_{k}"] = np.asarray(var.get_value())
    fit = {
        **state.recipe,
        **{name: getattr(state, name) for name in _COUNTS},
        "every": every,
        "score": state.score,
        "schedule": [
            float(state.schedule.peak),
            int(state.schedule.steps),
            state.schedule.curve,
            int(state.schedule.first),
        ],
        "plateau": state.plateau and astuple(state.plateau),
        "ramp": state.ramp and astuple(state.ramp),
        "path_from": state.path_from,
        "failures": loop.failures,
        "include_transformed": approx.include_transformed,
        "noise_rng": encode_state(loop._noise),
        "model_rngs": encode_state(dict(enumerate(loop._rngs))),
        "state_names": names,
    }
    record = {**content.record, "fit": fit}
    with Interrupts(deferred=True):
        write(path, replace(content, arrays={**content.arrays, **arrays}, record=record))


def _optimizer_state(approx: NormalizingFlow, state: FitState) -> list[SharedVariable]:
    """What a step changes besides the parameters of the flow."""
    step = state.loop.step
    known = [*approx.params, *([step.packing.theta] if step.packing else [])]
    return [var for var in step.updates if var not in known]


def fit_arguments(content: Content, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of the fit in a file, and its beta.

    Parameters
    ----------
    content : Content
    given : mapping
        What the user gives again, by name; None for nothing.

    Raises
    ------
    StorageError
        If there is no fit in the file.
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
        arguments = {
            "backend": str(fit["backend"]),
            "beta": float(fit["beta"]),
            "gradient": _gradient(fit["gradient"]),
            "ramp": None if fit["ramp"] is None else _ramp(*fit["ramp"]),
            "path_from": _count(fit["path_from"] or 0),
            "obj_n_mc": _count(fit["obj_n_mc"]),
            "total_grad_norm_constraint": norm and float(norm),
            "score": bool(fit["score"]),
            "n": _count(fit["n"]),
        }
        if fit["optimizer"] is not None:
            arguments["obj_optimizer"] = from_recipe(fit["optimizer"])
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise StorageError(f"the file is malformed: {error!r}") from error
    names = {name for name, value in given.items() if value is not None}
    for name in sorted(again - names):
        raise ArgumentError(
            f"the fit had {name}=, which no file can hold\nPass the same to resume again."
        )
    for name in sorted(names - again):
        raise ArgumentError(
            f"the fit had no {name}= of its own, or the file holds it: leave it out"
        )
    return arguments | {name: given[name] for name in names}


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**62:
        raise ValueError(f"{value!r} is no number of steps")
    return value


def _gradient(name: object) -> str:
    if name not in GRADIENTS:
        raise ValueError(f"{name!r} is no estimate of the gradient")
    return str(name)


def _ramp(steps: object, start: object, curve: Any) -> Ramp:
    if curve not in CURVES or not isinstance(start, float) or not 0 < start <= 1:
        raise ValueError(f"{start!r} and {curve!r} make no inverse temperatures")
    return Ramp(max(1, _count(steps)), start, curve)


def restore_fit(approx: NormalizingFlow, state: FitState, content: Content) -> None:
    """Set the state of a fit that was built with `fit_arguments` to what is in the file."""
    fit, loop = content.record["fit"], state.loop
    variables = _optimizer_state(approx, state)
    names = [str(var.name) for var in variables]
    if fit.get("state_names") != names:
        raise StorageError(
            "the state of the optimizer in the file does not fit\n"
            f"expected {names}, got {str(fit.get('state_names'))[:200]}\n"
            "Pass the arguments of fit to resume again."
        )
    for k, var in enumerate(variables):
        value = var.get_value(borrow=True)
        var.set_value(content.array(f"state_{k}", value.shape, value.dtype))
    if loop.step.packing is not None:
        loop.step.packing.gather()
    try:
        for name in _COUNTS:
            setattr(state, name, _count(fit[name]))
        if state.score and state.done > len(content.arrays["hist"]):
            raise ValueError("there are fewer losses than steps")
        if not state.failed <= state.done <= min(state.i, state.n):
            raise ValueError("the numbers of steps contradict each other")
        peak, steps, curve, first = fit["schedule"]
        if curve not in SCHEDULES:
            raise ValueError(f"{curve!r} is no schedule")
        state.schedule = Schedule(float(peak), _count(steps), curve, _count(first))
        if fit["plateau"] is not None:
            tolerance, window, decay = fit["plateau"]
            state.plateau = Plateau(float(tolerance), _count(window), _count(decay))
        loop.failures = _count(fit["failures"])
        set_state(loop._noise, decode_state(fit["noise_rng"], loop._noise.bit_generator.state))
        fresh = {str(k): rng for k, rng in enumerate(loop._rngs)}
        with loop._precision():
            loop._rngs = list(decode_state(fit["model_rngs"], fresh).values())
        approx.include_transformed = bool(fit["include_transformed"])
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
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
