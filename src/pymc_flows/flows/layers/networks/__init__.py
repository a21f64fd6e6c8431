"""Layers whose parameters a network computes from other coordinates: coupling, autoregressive."""

from pymc_flows.flows.layers.networks.autoregressive import IAF, MAF
from pymc_flows.flows.layers.networks.coupling import NVP
from pymc_flows.flows.layers.networks.nsf import NSF

__all__ = ["IAF", "MAF", "NSF", "NVP"]
