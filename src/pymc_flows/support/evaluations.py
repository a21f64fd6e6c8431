"""Counts of the evaluations of a model."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass
class Evaluations:
    """Numbers of evaluations of a model; each point counts, also in a batch.

    Attributes
    ----------
    densities : int
        Log densities without a gradient.
    gradients : int
        Log densities with their gradient, also those for Hessians by differences.
    curvatures : int
        Hessians.
    factors : int
        Factorisations of Hessians.
    """

    densities: int = 0
    gradients: int = 0
    curvatures: int = 0
    factors: int = 0

    def copy(self) -> Evaluations:
        """The counts so far."""
        return self + Evaluations()

    def __add__(self, other: Evaluations) -> Evaluations:
        """The counts of both."""
        names = [field.name for field in fields(self)]
        return Evaluations(*(getattr(self, name) + getattr(other, name) for name in names))

    def __str__(self) -> str:
        """The counts in words."""
        return (
            f"{self.densities:,} densities, {self.gradients:,} gradients, "
            f"{self.curvatures:,} Hessians"
        )
