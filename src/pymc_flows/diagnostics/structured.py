"""Reports on fields given hyperparameters, whose weights factorise over groups."""

from __future__ import annotations

from typing import Any

import numpy as np

from pymc_flows.approximation import NormalizingFlow
from pymc_flows.diagnostics.findings import Coordinate, GroupRow, Groups, Report
from pymc_flows.diagnostics.reliability import (
    Moments,
    contradiction,
    differences,
    worst_first,
)
from pymc_flows.diagnostics.thresholds import THRESHOLDS
from pymc_flows.errors import ArgumentError
from pymc_flows.field.state import FieldState
from pymc_flows.model.points import to_unconstrained
from pymc_flows.support.seeds import RandomState, integer_seed

# Bounds of the draws that moments are computed from, and of the numbers that they consist of.
MOST_DRAWS, MOST_NUMBERS = 2_000, 2.5e7


def report_structured(
    approx: NormalizingFlow, q: FieldState, n: int, reference: Any, random_seed: RandomState
) -> Report:
    """Report on a field given hyperparameters, see `pymc_flows.report`."""
    n = int(np.clip(MOST_NUMBERS // q.dim, THRESHOLDS.min_draws, min(n, MOST_DRAWS)))
    if random_seed is None:
        [seed] = approx.draw_seeds(1)
    else:
        seed = integer_seed(random_seed)
    rng = np.random.default_rng(seed)
    corrected, _ = q.resample(n, rng)
    plain, _ = q.draw(n, rng)
    weighted = Moments.of(corrected)
    errors = [*differences(Moments.of(plain), weighted)]
    error, noise = None, 0.0
    if reference is not None:
        truth = _reference(approx, reference)
        left = differences(weighted, truth)
        errors += left
        error, noise = contradiction(left, truth, q.quality.ess)
    return Report(
        title=f"{approx}: {n:,} draws, {q.groups.n_groups:,} groups",
        quality=q.quality,
        n_without_density=0,
        coordinates=tuple(Coordinate(*row) for row in worst_first(approx, errors)),
        n_coordinates=q.dim,
        worst=float(np.abs(errors[:2]).max()),
        contradiction=error,
        contradiction_noise=noise,
        lacking=0.0 if approx.ladder is None else approx.ladder.lacking(q.quality),
        groups=_groups(q),
    )


def _groups(q: FieldState) -> Groups:
    found = q.groups
    return Groups(
        n_groups=found.n_groups,
        n_draws=found.n_draws,
        n_untrusted=int(found.is_untrusted.sum()),
        threshold=found.threshold,
        worst=tuple(
            GroupRow(q.structure.group_name(int(g)), float(found.ess[g]), float(found.khat[g]))
            for g in found.worst(THRESHOLDS.shown)
        ),
    )


def _reference(approx: NormalizingFlow, reference: Any) -> Moments:
    placed = to_unconstrained(approx.density, reference)
    inside = placed.inside & np.isfinite(placed.points).all(axis=1)
    if not len(inside) or (~inside).mean() > THRESHOLDS.invalid:
        raise ArgumentError(
            f"{(~inside).sum()} of the {len(inside)} draws of the reference lie outside of the "
            "support\nGive draws of the posterior of the same model."
        )
    return Moments.of_reference(placed.points[inside])
