"""Reports on approximations: what to believe of them, and what to do next."""

from __future__ import annotations

from typing import Any

import numpy as np

from pymc_flows.approximation import NormalizingFlow
from pymc_flows.diagnostics.coverage import cover
from pymc_flows.diagnostics.findings import Coordinate, Report
from pymc_flows.diagnostics.reliability import (
    Moments,
    Passes,
    contradiction,
    differences,
    worst_first,
)
from pymc_flows.diagnostics.structured import report_structured
from pymc_flows.diagnostics.thresholds import THRESHOLDS
from pymc_flows.errors import ArgumentError
from pymc_flows.field.state import FieldState
from pymc_flows.importance import weigh
from pymc_flows.model.streams import stream_of
from pymc_flows.start.passes import share_for
from pymc_flows.support.arguments import check_integer
from pymc_flows.support.seeds import RandomState

# Draws by default (fewer with many numbers in the data), and those for a model that sees its rows
# batch by batch.
DRAWS, DRAWS_OF_STREAM = 10_000, 1_000

__all__ = ["Coordinate", "Report", "report"]


def report(
    approx: NormalizingFlow,
    n: int | None = None,
    *,
    reference: Any = None,
    random_seed: RandomState = None,
) -> Report:
    """Judge an approximation by fresh draws, and by draws of the posterior from elsewhere.

    Importance weights p/q of the draws give the evidence, k-hat and the errors of means and
    standard deviations. They cannot see modes that the approximation never visited; draws of a
    reference can: a mode counts as missing if their log p − log q exceeds the largest value among
    the approximation's draws more often than the tail of the weights predicts.

    Parameters
    ----------
    approx : NormalizingFlow
    n : int, optional
        Number of draws; they are not all held at once. Default 10,000; fewer, but at least 2,500,
        with more than a million numbers in the data, and 1,000 for a model that sees its rows
        batch by batch: there its log density takes a pass over all rows.
    reference : DataTree, Dataset or dict of str to array-like, optional
        Draws of the same model's posterior: what `pm.sample` returns, or ``sample`` of another
        fit. The arrays of a dict have shape (chain, draw, ...), as ArviZ has them. At most about
        ``n`` draws are used, evenly spaced. Weights are ignored: from an approximation, take
        ``sample(correct='resample')``.
    random_seed : int, Generator, RandomState, optional
        Without one, draws continue the approximation's own stream.

    Returns
    -------
    Report

    Raises
    ------
    ArgumentError
        If ``approx`` is not an approximation, ``n`` is not an integer of at least 100, or the
        reference lacks a variable or has no draw with a density.
    ModelError
        If the model's log density is random: a simulator, or a minibatch of unknown rows.
    NotInvertibleError
        If a reference is given and the flow has no inverse.
    """
    if not isinstance(approx, NormalizingFlow):
        raise ArgumentError(
            f"approx must be a NormalizingFlow, got {type(approx).__name__}\n"
            "Fit first and report on the result: approx = pymc_flows.fit(model=model), or the "
            "attribute approx of an NFVI."
        )
    if n is None:
        has_rows = stream_of(approx.density) is not None
        n = DRAWS_OF_STREAM if has_rows else int(DRAWS * share_for(approx.density))
    n = check_integer("n", n, minimum=THRESHOLDS.min_draws)
    approx.density.check_shapes()
    if isinstance(approx.q, FieldState):
        return report_structured(approx, approx.q, n, reference, random_seed)
    passes = Passes(approx, n, random_seed)
    log_weights = passes.log_weights()
    quality, smoothed = weigh(log_weights)
    plain, weighted = passes.moments(np.exp(smoothed))
    if not np.isfinite(smoothed).any():
        nothing = np.full(approx.ddim, np.nan)
        weighted = Moments(nothing, nothing)
    errors = [*differences(plain, weighted)]
    coverage, error, noise = None, None, 0.0
    if reference is not None:
        coverage, truth = cover(approx, reference, log_weights, quality)
        errors += differences(plain, truth)
        # Errors that trusted weights remove do not count against the approximation.
        left = differences(weighted if quality.is_trusted else plain, truth)
        error, noise = contradiction(left, truth, quality.ess)
    return Report(
        title=f"{approx}: {n:,} draws",
        quality=quality,
        n_without_density=int((~np.isfinite(log_weights)).sum()),
        coordinates=tuple(Coordinate(*row) for row in worst_first(approx, errors)),
        n_coordinates=approx.ddim,
        worst=float(np.abs(errors[:2]).max()),
        coverage=coverage,
        contradiction=error,
        contradiction_noise=noise,
        is_framed=approx.is_framed,
        lacking=0.0 if approx.ladder is None else approx.ladder.lacking(quality),
        resamples=approx.correction == "resample",
    )
