"""Convergence warnings from the losses of a fit."""

from __future__ import annotations

import numpy as np

# Nats over the second half of a fit: a smaller fall of the loss hardly matters.
STILL_FALLING = 0.1


def convergence_warnings(
    losses: np.ndarray, formula: str, *, is_framed: bool = False, learns: bool = True
) -> tuple[str, ...]:
    """Return warnings by the losses (steps,) of a fit, in nats; none for a fit below 200 steps.

    If the flow no longer ``learns``, a loss that falls is no reason to fit for longer.
    """
    width = len(losses) // 10
    if width < 20:
        return ()
    first, last = (x[np.isfinite(x)] for x in (losses[:width], losses[-width:]))
    if not len(first) or not len(last):
        return ()
    found = []
    before, after = np.median(first), np.median(last)
    # The spread of losses from step to step: at a constant step size a converged fit wanders by
    # less.
    spread = np.hypot(*(np.subtract(*np.quantile(x, [0.75, 0.25])) for x in (first, last)))
    if after - before > spread:
        found.append(
            f"The loss of {formula!r} rose, from {before:,.5g} to {after:,.5g} (medians of the "
            f"first and last {width:,} steps): the fit diverges, or the step size is too large."
        )
    middle = losses[5 * width : 6 * width]
    middle = middle[np.isfinite(middle)]
    fall = np.median(middle) - after if len(middle) else 0.0
    if learns and fall > max(STILL_FALLING, 2 * np.subtract(*np.quantile(last, [0.75, 0.25]))):
        found.append(
            f"The loss of {formula!r} was still falling, by {fall:,.3g} nats over the second half "
            "of the steps: fit for longer"
            + ("." if is_framed else ", or with start=pymc_flows.find_frame(model).")
        )
    low, high = np.quantile(last, [0.05, 0.95])
    if last.mean() - after > 10 * (high - low):
        found.append(
            f"Rare draws dominate the loss of {formula!r}: in the last {width:,} steps its mean is "
            f"{last.mean():,.5g}, its median {after:,.5g}. More draws (obj_n_mc=), "
            "total_grad_norm_constraint=, or a narrower start (params=) may help."
        )
    return tuple(found)
