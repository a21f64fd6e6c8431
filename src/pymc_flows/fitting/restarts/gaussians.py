"""Gaussians at the modes, whose mixture may be good without any training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pymc as pm

from pymc_flows.approximation import NormalizingFlow
from pymc_flows.fitting.candidates import gaussian_of
from pymc_flows.fitting.restarts.starts import Begin
from pymc_flows.fitting.tried import GOOD_ENOUGH
from pymc_flows.importance import Quality
from pymc_flows.model.log_density import LogDensity
from pymc_flows.model.logp import density_of
from pymc_flows.start.weighted.mixture import match_modes


@dataclass(frozen=True, eq=False)
class Gaussians:
    """A Gaussian at each mode.

    Attributes
    ----------
    places : tuple of Begin
        Where restarts begin, each with its Gaussian.
    quality : Quality
        Of the mixture.
    """

    places: tuple[Begin, ...]
    quality: Quality

    @classmethod
    def at(cls, model: pm.Model, places: Sequence[Begin], seed: int) -> Gaussians | None:
        """Fit Gaussians if restarts begin at several modes; else None."""
        frames = [place.frame for place in places if place.frame is not None]
        if len(frames) < 2:
            return None
        value = LogDensity(density_of(model)).value
        found = match_modes(value, frames, np.random.default_rng(seed))
        better = [
            # A restart of a field given hyperparameters begins at a point.
            replace(place, frame=frame, start=frame if place.start is place.frame else place.start)
            for place, frame in zip(places, found.frames, strict=False)
        ]
        return cls(tuple(better), found.quality)

    @property
    def are_good(self) -> bool:
        """Whether their mixture leaves nothing to gain."""
        q = self.quality
        return q.is_trusted and q.log_evidence - q.elbo < GOOD_ENOUGH

    def fits(self, model: pm.Model, seeds: Sequence[int]) -> list[NormalizingFlow]:
        """The Gaussians, each with a seed for its draws."""
        return [
            gaussian_of(model, place.frame, seed)
            for place, seed in zip(self.places, seeds, strict=False)
            if place.frame is not None
        ]
