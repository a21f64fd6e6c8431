"""A point at which the log density of a model is finite, for a search to begin at."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np

from pymc_flows.errors import ModelError
from pymc_flows.model.dry_run import DryRun, dry_run
from pymc_flows.model.examine import blame
from pymc_flows.model.layout import Start, check_finite
from pymc_flows.model.logp import ModelDensity

_log = logging.getLogger(__name__)

# As often as `pymc.sample` tries.
RETRIES = 10


def find_start(density: ModelDensity, start: Start | None, rng: np.random.Generator) -> np.ndarray:
    """Return the start point, or one near it where the log density is finite.

    A model's initial point may be impossible: a scale of 0, a constraint that it breaks. As
    `pymc.sample` does, values are then moved by up to 1 in the unconstrained space, up to 10 times.
    Values that ``start`` gives stay: if it gives all, no other point is tried.

    Parameters
    ----------
    density : ModelDensity
    start : mapping, optional
        As for `ModelDensity.start`.
    rng : numpy.random.Generator

    Returns
    -------
    ndarray, shape (dim,)

    Raises
    ------
    ModelError
        If no such point is found (the message names the terms that are not finite), ``start`` does
        not fit the model, or the log density has no gradient.
    """
    point = density.start(start, finite=False)
    moves = density.not_named_in(start)
    attempt = dry_run(density)
    if np.isfinite(point).all() and _is_finite(attempt.values(point)):
        return point
    if moves.any():
        middle = np.where(np.isfinite(point), point, 0.0)
        for _ in range(RETRIES):
            noise = rng.uniform(-1.0, 1.0, size=len(point))
            near = np.where(moves, middle + noise, point).astype(point.dtype)
            if _is_possible(attempt, near):
                _log.warning(
                    "The log density is not finite at the model's initial point: the fit begins "
                    "near it, as pm.sample does. Pass start= to choose the point."
                )
                return near
    check_finite({slot.name: point[slot.slice] for slot in density.slots})
    tried = f"Nor is it at {RETRIES} points near that one." if moves.any() else ""
    raise ModelError("\n".join(filter(None, [blame(density, point), tried])))


def possible_start(
    density: ModelDensity, start: Start | None, seed: Callable[[], int]
) -> Start | None:
    """Return ``start``, or the point of `find_start` if the log density is not finite there.

    If no such point is found, ``start`` is returned: a later fit says what is wrong. ``seed`` is
    called for the seed of `find_start` if that is needed.
    """
    try:
        point = density.start(start, finite=False)
        if np.isfinite(point).all() and _is_possible(dry_run(density), point):
            return start
        point = find_start(density, start, np.random.default_rng(seed()))
    except ModelError:
        return start
    return {slot.name: point[slot.slice].reshape(slot.shape) for slot in density.slots}


def _is_finite(values: list[float]) -> bool:
    return bool(np.isfinite(values).all())


def _is_possible(attempt: DryRun, point: np.ndarray) -> bool:
    try:
        return _is_finite(attempt.values(point))
    except ModelError:  # it cannot be evaluated there
        return False
