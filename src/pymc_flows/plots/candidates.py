"""The formulas that ``fit(formula='auto')`` tried."""

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pymc_flows.errors import ArgumentError
from pymc_flows.fitting.ladder import Ladder
from pymc_flows.plots.axes import STYLE, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure


def ladder(ladder: Any, figure: "Figure | SubFigure | None" = None) -> npt.NDArray[np.object_]:
    """Draw the ELBO and the k-hat of each formula that was tried, from first to last.

    On the left are ELBOs with two standard errors, and the log evidence by the importance weights
    of the formula that was taken: the distance to it is KL(q ‖ p). On the right are k-hat, and the
    value up to which it is trusted. The formula that was taken is in bold.

    Parameters
    ----------
    ladder : Ladder, or approximation with ``ladder``
        The result of ``pymc_flows.fit`` without a formula.
    figure : matplotlib.figure.Figure or SubFigure, optional
        Where to put the axes.

    Returns
    -------
    ndarray of matplotlib.axes.Axes, shape (2,)

    Raises
    ------
    ArgumentError
        If there is no ladder, or a formula was not judged, as with minibatches.
    """
    found = getattr(ladder, "ladder", ladder)
    if not isinstance(found, Ladder) or any(rung.quality is None for rung in found.rungs):
        what = "one without numbers" if isinstance(found, Ladder) else type(found).__name__
        raise ArgumentError(
            f"expected the ladder of a fit of several formulas\ngot {what}\n"
            "take approx.ladder of approx = pymc_flows.fit(model=model)"
        )
    names = [f"{rung.formula}, {rung.steps:,} steps" for rung in found.rungs]
    qualities = [rung.quality for rung in found.rungs if rung.quality is not None]
    rows = np.arange(len(names))
    figure = new_figure((9, 1.4 + 0.45 * len(names))) if figure is None else figure
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))

    elbos = np.array([q.elbo for q in qualities])
    errors = np.array([2 * q.elbo_error for q in qualities])
    best = qualities[found.taken]
    colours = ["tab:blue" if i == found.taken else "grey" for i in rows]
    for row, elbo, error, colour in zip(rows, elbos, errors, colours, strict=True):
        if np.isfinite(elbo):
            left.errorbar(elbo, row, xerr=error, fmt="o", color=colour, capsize=3)
    label = f"log evidence {best.log_evidence:,.3f}"
    left.axvline(best.log_evidence, color="black", linestyle="--", linewidth=1, label=label)
    left.set_xlabel("ELBO ± 2 standard errors (nats)")
    left.legend(loc="upper left", fontsize="small")

    khats = np.array([q.khat for q in qualities])
    shown = np.clip(khats, -0.5, STYLE.khat)
    right.barh(rows, shown, color=colours, height=0.5)
    for row, khat, end in zip(rows, khats, shown, strict=True):
        right.annotate(
            f" {khat:.2f} ", (max(end, 0), row), va="center", fontsize="small", annotation_clip=True
        )
    label = f"trusted up to {best.threshold:.2f}"
    right.axvline(best.threshold, color="black", linestyle=":", linewidth=1, label=label)
    right.set_xlim(min(0, shown.min()), max(1.0, 1.2 * shown.max()))
    right.set_xlabel("Pareto k-hat")
    right.legend(loc="upper right", fontsize="small")

    left.set_yticks(rows, names)
    left.get_yticklabels()[found.taken].set_fontweight("bold")
    left.set_ylim(len(names) - 0.3, -0.9)
    return np.array([left, right], dtype=object)
