"""Where restarts begin: at separate modes, if the posterior has some, else as `fit` does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pymc as pm
from numpy.typing import ArrayLike

from pymc_flows.fitting.structured import field_of
from pymc_flows.flows import build_chain
from pymc_flows.flows.frame import Frame
from pymc_flows.formula import Formula
from pymc_flows.model.logp import ModelDensity, density_of
from pymc_flows.start.modes import find_modes
from pymc_flows.start.options import SEARCH
from pymc_flows.support.deadline import Deadline

# Starting points of the search for modes, per restart.
STARTS_EACH = 10
# Share of the time of one fit for that search.
SHARE = 0.25


@dataclass(frozen=True, eq=False)
class Begin:
    """Where a restart begins.

    Attributes
    ----------
    start : mapping, Frame or None
        Argument of `fit`.
    label : str
    frame : Frame or None
        The Gaussian at a mode, if it begins at one of several.
    """

    start: Mapping[str, ArrayLike] | Frame | None
    label: str
    frame: Frame | None = None


def begins(
    model: pm.Model,
    formula: Formula | None,
    start: Mapping[str, ArrayLike] | Frame | None,
    restarts: int,
    seed: int,
    arguments: Mapping[str, Any],
) -> list[Begin]:
    """Choose where restarts begin.

    Each separate mode gets one restart, those with more mass first. Further restarts, or all of
    them if there is one mode, begin as `fit` does.
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
    has_field = not is_chain
    if formula is None:
        roles = {name: arguments.get(name, ()) for name in ("hyper", "field")}
        has_field = field_of(model, **roles) is not None
    # A field given hyperparameters begins at a point.
    at_modes = [
        Begin(_point(density, frame) if has_field else frame, f"mode {k}", frame)
        for k, frame in enumerate(modes)
    ]
    return [*at_modes, *[plain] * (restarts - len(modes))]


def _point(density: ModelDensity, frame: Frame) -> dict[str, np.ndarray]:
    return {
        slot.name: frame.center[slot.slice].reshape(slot.shape).astype(slot.dtype)
        for slot in density.slots
    }
