"""Errors of means and standard deviations, coordinate by coordinate."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pymc as pm

from pymc_flows.approximation import NormalizingFlow
from pymc_flows.diagnostics.thresholds import THRESHOLDS
from pymc_flows.model.examine import check_has_weights
from pymc_flows.model.layout import Slot
from pymc_flows.model.log_density import LogDensity
from pymc_flows.support.seeds import RandomState


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation (dim,) of draws in the unconstrained space.

    ``effective`` (dim,) is the number of independent draws of a normal distribution with the same
    noise; only the moments of a reference have it.
    """

    mean: np.ndarray
    std: np.ndarray
    effective: np.ndarray | float = math.inf

    @classmethod
    def of(cls, points: np.ndarray) -> Moments:
        """Moments of draws (n, dim), all of the same weight."""
        return cls(points.mean(axis=0, dtype=float), points.std(axis=0, dtype=float))

    @classmethod
    def of_reference(cls, points: np.ndarray) -> Moments:
        """The same, with their effective numbers of draws."""
        return replace(cls.of(points), effective=effective_sizes(points))


def effective_sizes(points: np.ndarray) -> np.ndarray:
    """Effective number of draws (n, dim) for means and standard deviations, by coordinate (dim,).

    That is, how many independent draws of a normal distribution have the same noise: fewer if the
    draws are autocorrelated or have heavy tails. For kurtosis κ, the relative variance of the
    standard deviation of n draws is (κ − 1)/4n, for a normal distribution 1/2n; that of a mean 1/n.
    """
    from arviz_stats.base.array import array_stats  # slow to import

    n = len(points)
    z = points.astype(float) - points.mean(axis=0, dtype=float)
    std = z.std(axis=0)
    z /= np.where(std > 0, std, 1.0)
    with np.errstate(all="ignore"):  # of a constant coordinate
        each = [array_stats.ess(x.T, chain_axis=None, method="mean") for x in (z, z**2)]
        found = np.nanmin([*each, np.full(z.shape[1], n)], axis=0)
    return found / np.maximum((np.mean(z**4, axis=0) - 1) / 4, 1)


class Passes:
    """The same draws several times, without keeping them.

    Parameters
    ----------
    approx : NormalizingFlow
    n_draws : int
    random_seed : int, Generator, RandomState, optional
    """

    def __init__(self, approx: NormalizingFlow, n_draws: int, random_seed: RandomState):
        self._approx, self._n_draws = approx, n_draws
        [self._seed] = approx.draw_seeds(1, random_seed)

    def _points(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return self._approx.draw_parts(self._n_draws, random_seed=self._seed)

    def log_weights(self) -> np.ndarray:
        """Log p − log q (n,), in nats.

        Raises
        ------
        ModelError
            If the model's log density is random.
        """
        check_has_weights(self._approx.density)
        density = LogDensity(self._approx.density)
        parts = [density.value(points) - log_q for points, log_q in self._points()]
        return np.concatenate(parts)

    def moments(self, weights: np.ndarray) -> tuple[Moments, Moments]:
        """Moments of the draws as they are, and of the draws with normalised weights (n,)."""
        center = self._approx.center_point().astype(float)
        sums = np.zeros((4, len(center)))
        n = len(weights)
        begin = 0
        for points, _ in self._points():
            z = points - center
            w = weights[begin : begin + len(z)]
            begin += len(z)
            # A point of weight 0 may be anything, even infinite.
            kept = np.where(w[:, None] > 0, z, 0.0)
            sums += [z.sum(axis=0) / n, (z**2).sum(axis=0) / n, w @ kept, w @ kept**2]
        with np.errstate(invalid="ignore"):
            plain = Moments(center + sums[0], np.sqrt(np.maximum(sums[1] - sums[0] ** 2, 0)))
            weighted = Moments(center + sums[2], np.sqrt(np.maximum(sums[3] - sums[2] ** 2, 0)))
        return plain, weighted


def differences(found: Moments, truth: Moments) -> tuple[np.ndarray, np.ndarray]:
    """Errors of means, in standard deviations, and relative errors of standard deviations."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return (found.mean - truth.mean) / truth.std, found.std / truth.std - 1


def contradiction(left: Sequence[np.ndarray], truth: Moments, ess: float) -> tuple[float, float]:
    """The error against a reference that is furthest above its noise, and that noise.

    Parameters
    ----------
    left : sequence of ndarray, shape (dim,)
        Errors against the reference, as from `differences`. NaN counts as the furthest.
    truth : Moments
        Of the reference.
    ess : float
        Effective number of draws of the approximation.
    """
    error = np.abs(left).max(axis=0)
    noise = THRESHOLDS.standard_errors * np.sqrt(1 / truth.effective + 1 / max(ess, 1))
    index = int(np.argmax(error - noise))
    return float(error[index]), float(noise[index])


def worst_first(approx: NormalizingFlow, errors: Sequence[np.ndarray]) -> list[tuple[Any, ...]]:
    """Names and errors of the coordinates with the largest errors (dim,), by decreasing error.

    NaN counts as the largest.
    """
    largest = np.max(np.abs(errors), axis=0)
    order = np.argsort(-np.where(np.isnan(largest), math.inf, largest), kind="stable")
    name = partial(coordinate_name, approx.model, approx.density.slots)
    return [(name(int(i)), *(float(e[i]) for e in errors)) for i in order[: THRESHOLDS.named]]


def coordinate_name(model: pm.Model, slots: tuple[Slot, ...], index: int) -> str:
    """Name a coordinate of the unconstrained space, as in ``"theta[Choate]"``.

    The labels are the model's coords where the transform of the variable keeps its shape,
    otherwise positions.
    """
    slot = next(s for s in slots if s.slice.stop > index)
    if not slot.shape:
        return slot.name
    place = np.unravel_index(index - slot.slice.start, slot.shape)
    names = {model.rvs_to_values[rv].name: rv for rv in model.free_RVs}
    rv = names[slot.name]
    dims = model.named_vars_to_dims.get(rv.name) or (None,) * len(place)
    same = all(
        static in (None, n) for static, n in zip(rv.type.shape, slot.shape, strict=False)
    ) and rv.ndim == len(slot.shape)
    labels = []
    for position, dim, length in zip(place, dims, slot.shape, strict=False):
        coords = model.coords.get(dim) if same and dim is not None else None
        if coords is not None and len(coords) == length:
            labels.append(str(coords[position]))
        else:
            labels.append(str(position))
    return f"{slot.name}[{', '.join(labels)}]"
