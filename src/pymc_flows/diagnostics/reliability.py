"""Errors of means and standard deviations by importance weights, coordinate by coordinate."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pymc as pm

from pymc_flows.approximation import NormalizingFlow
from pymc_flows.model.examine import check_has_weights
from pymc_flows.model.layout import Slot
from pymc_flows.model.log_density import LogDensity
from pymc_flows.support.seeds import RandomState


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation (dim,) of draws in the unconstrained space.

    ``effective``, of a reference, is how many independent draws of a normal distribution have the
    same noise.
    """

    mean: np.ndarray
    std: np.ndarray
    effective: np.ndarray | float = math.inf


class Passes:
    """Iterates over the same draws several times without keeping them.

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


def worst_first(*errors: np.ndarray) -> np.ndarray:
    """Coordinates (dim,) by decreasing error; NaN counts as the largest."""
    largest = np.max(np.abs(errors), axis=0)
    return np.argsort(-np.where(np.isnan(largest), math.inf, largest), kind="stable")
