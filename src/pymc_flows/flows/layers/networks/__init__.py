"""Coupling and autoregressive layers: a network maps some coordinates to parameters of others."""

from pymc_flows.flows.layers.networks.autoregressive import IAF, MAF
from pymc_flows.flows.layers.networks.coupling import NVP
from pymc_flows.flows.layers.networks.nsf import NSF

__all__ = ["IAF", "MAF", "NSF", "NVP"]
