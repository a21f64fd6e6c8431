"""Layers that map each coordinate by itself: splines, tails, a guard of the range."""

from pymc_flows.flows.layers.elementwise.loft import Loft
from pymc_flows.flows.layers.elementwise.spline import Spline
from pymc_flows.flows.layers.elementwise.tail import Tail

__all__ = ["Loft", "Spline", "Tail"]
