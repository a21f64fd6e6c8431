"""Importance weights p/q: their histogram and their tail, whose shape is k-hat."""

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from pymc_flows.errors import ArgumentError, FlowShapeError
from pymc_flows.importance import MIN_DRAWS, Quality, weigh
from pymc_flows.plots.axes import STYLE, Floats, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def log_weights(samples: Any, ax: "Axes | None" = None, *, title: str | None = None) -> "Axes":
    """Draw a histogram of log importance weights.

    The better the approximation, the narrower is the histogram: if q is the posterior, all log
    weights equal the log evidence. Their mean is the ELBO. The right side matters, where q has too
    little mass; a long left tail only wastes draws.

    Parameters
    ----------
    samples : DataTree, Dataset or array_like, shape (...)
        The result of ``approx.sample(correct='psis')``, or log p − log q of draws of q, in nats.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    title : str, optional
        Title.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ArgumentError
        If the samples have no weights, have been resampled, or none is finite.
    """
    values, quality, _ = _weights(samples)
    ax = new_axes(figsize=(7, 4)) if ax is None else ax
    finite = values[np.isfinite(values)]
    low, high = np.quantile(finite, STYLE.outermost), finite.max()
    margin = 0.05 * (high - low) or 0.5
    label = f"{len(values):,} draws"
    if outside := len(values) - int((finite >= low).sum()):
        label += f" ({outside:,} of them too low for the frame)"
    bins = np.linspace(low - margin, high + margin, STYLE.weight_bins + 1).tolist()
    ax.hist(finite[finite >= low], bins, label=label)
    if np.isfinite(quality.elbo):
        label = f"ELBO {quality.elbo:,.3f}"
        ax.axvline(quality.elbo, color="black", linestyle="--", label=label)
    label = f"log evidence {quality.log_evidence:,.3f}"
    ax.axvline(quality.log_evidence, color="tab:red", label=label)
    ax.set(xlabel="log p − log q (nats)", ylabel="draws", title=title)
    ax.legend()
    return ax


def pareto_tail(samples: Any, ax: "Axes | None" = None, *, title: str | None = None) -> "Axes":
    """Draw importance weights against their rank, and the Pareto tail fitted to the largest ones.

    On logarithmic axes, the tail of a generalised Pareto distribution is nearly a line of slope
    −k-hat. The dotted line has the steepest slope that can be trusted. If the weights rise more
    steeply to the left, the tails of q are too light, and a few draws outweigh all others.

    Parameters
    ----------
    samples, ax, title
        As in `log_weights`; at least 25 draws.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ArgumentError
        As in `log_weights`, or if there are too few draws, or all weights are equal.
    """
    values, quality, smoothed = _weights(samples)
    finite = np.isfinite(values)
    if finite.sum() < MIN_DRAWS or not np.isfinite(quality.khat):
        raise ArgumentError(
            f"expected at least {MIN_DRAWS} log weights with a tail\n"
            f"got {finite.sum()} that are finite, and k-hat {quality.khat}\n"
            "draw more, or look at them with plots.log_weights"
        )
    ax = new_axes(figsize=(7, 4)) if ax is None else ax
    order = np.argsort(-values[finite])
    raw, fitted = values[finite][order], smoothed[finite][order]
    n = len(raw)
    n_tail = _tail_length(n)
    share = (np.arange(n) + 0.5) / n
    # Relative to the mean weight.
    raw = np.exp(raw - quality.log_evidence)
    fitted = np.exp(fitted + np.log(n))
    fitted *= raw[n_tail] / fitted[n_tail]
    ax.loglog(share, raw, ".", color="grey", markersize=4, label=f"{n:,} weights")
    label = f"Pareto tail, k-hat {quality.khat:.2f}"
    ax.loglog(share[:n_tail], fitted[:n_tail], color="tab:red", label=label)
    cut = raw[n_tail] * (share[:n_tail] / share[n_tail]) ** -quality.threshold
    label = f"slope of k-hat {quality.threshold:.2f}, the largest to be trusted"
    ax.loglog(share[:n_tail], cut, ":", color="black", label=label)
    ax.set(xlabel="share of draws with a larger weight", ylabel="weight, mean 1", title=title)
    ax.set_ylim(bottom=max(raw[-1], 1e-4 * min(raw[n_tail], 1.0)))
    ax.legend()
    return ax


def _tail_length(n: int) -> int:
    """Number of n weights that Pareto smoothing takes as the tail (Vehtari et al. 2024, eq. 7)."""
    return int(np.ceil(min(n / 5, 3 * np.sqrt(n))))


def _weights(samples: Any) -> tuple[Floats, Quality, Floats]:
    """Log weights (n,), their `Quality`, and the smoothed log weights (n,)."""
    if isinstance(samples, xr.DataTree | xr.Dataset):
        values = _stored(samples)
    else:
        values = np.asarray(samples, dtype=float).ravel()
    if not len(values):
        raise FlowShapeError(f"expected log weights\ngot an array of shape {np.shape(samples)}")
    quality, smoothed = weigh(values)
    if not np.isfinite(quality.log_evidence):
        raise ArgumentError(
            "expected log weights that are finite, or −∞ for draws without a density\n"
            f"got {np.isfinite(values).sum():,} finite ones of {len(values):,}\n"
            "look at the model with pymc_flows.report, or fit again"
        )
    return values, quality, smoothed


def _stored(samples: "xr.DataTree | xr.Dataset") -> Floats:
    """Unsmoothed log weights (n,) of ``approx.sample(correct='psis')``."""
    if isinstance(samples, xr.DataTree):
        samples = samples.children.get("sample_stats", samples).to_dataset()
    if not {"lp", "log_q"} <= set(samples) or samples.attrs.get("correct") != "psis":
        raise ArgumentError(
            "expected draws with importance weights, each as it was drawn\n"
            f"got sample_stats with {', '.join(map(str, samples)) or 'nothing'}, "
            f"correct={samples.attrs.get('correct')!r}\n"
            "draw them with approx.sample(correct='psis')"
        )
    difference: Floats = (samples["lp"] - samples["log_q"]).values.ravel()
    return difference
