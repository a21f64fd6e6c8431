"""Where restarts begin: at modes that are apart, if the posterior has some, else anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pymc as pm
from numpy.typing import ArrayLike

from pymc_flows.flows import build_chain
from pymc_flows.flows.frame import Frame
from pymc_flows.formula import Formula
from pymc_flows.model.logp import ModelDensity, density_of
from pymc_flows.model.structure import structure
from pymc_flows.start.modes import find_modes
from pymc_flows.start.options import SEARCH
from pymc_flows.support.deadline import Deadline

# Starting points of the search for modes, for each restart.
STARTS_EACH = 10
# Of the time of one fit, for that search.
SHARE = 0.25


@dataclass(frozen=True, eq=False)
class Begin:
    """Where a restart begins.

    Attributes
    ----------
    start : mapping, Frame or None
        As `fit` takes it.
    label : str
    is_mode : bool
        Whether it is one of several modes.
    """

    start: Mapping[str, ArrayLike] | Frame | None
    label: str
    is_mode: bool = False


def begins(
    model: pm.Model,
    formula: Formula | None,
    start: Mapping[str, ArrayLike] | Frame | None,
    restarts: int,
    seed: int,
    arguments: Mapping[str, Any],
) -> list[Begin]:
    """Choose where restarts begin.

    Each of the modes that are apart gets one restart, those with more mass first; further restarts
    begin as `fit` does, with seeds of their own. All of them do if there is one mode.
    """
    if isinstance(start, Frame):
        return [Begin(start, "given")] * restarts
    density = density_of(model)
    plain = Begin(start, "as fit")
    if density.is_random or restarts == 1:
        return [plain] * restarts
    is_chain = formula is not None and formula.conditional is None
    dense = not (is_chain and build_chain(formula, density.dim).is_elementwise)  # type: ignore[arg-type]
    modes = find_modes(
        model,
        start=start,
        dense=dense,
        n_starts=max(SEARCH.n_starts, STARTS_EACH * restarts),
        random_seed=seed,
        deadline=Deadline.after(arguments.get("seconds")).share(SHARE),
    )[:restarts]
    if len(modes) < 2:
        return [plain] * restarts
    if not is_chain and _has_field(model, formula, arguments):
        points: list[Any] = [_point(density, frame) for frame in modes]
    else:
        points = list(modes)
    at_modes = [Begin(point, f"mode {k}", is_mode=True) for k, point in enumerate(points)]
    return [*at_modes, *[plain] * (restarts - len(modes))]


def _has_field(model: pm.Model, formula: Formula | None, arguments: Mapping[str, Any]) -> bool:
    """Whether a field given hyperparameters is fitted, which begins at a point."""
    if formula is not None:
        return True
    roles = {name: arguments.get(name, ()) for name in ("hyper", "field")}
    return structure(model, **roles).why_not is None


def _point(density: ModelDensity, frame: Frame) -> dict[str, np.ndarray]:
    return {
        slot.name: frame.center[slot.slice].reshape(slot.shape).astype(slot.dtype)
        for slot in density.slots
    }
