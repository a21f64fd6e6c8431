"""Residual layers, z plus a bounded bend: planar, radial, Sylvester; and their inverses."""

from pymc_flows.flows.layers.residual.planar import Planar
from pymc_flows.flows.layers.residual.radial import Radial
from pymc_flows.flows.layers.residual.sylvester import Sylvester

__all__ = ["Planar", "Radial", "Sylvester"]
