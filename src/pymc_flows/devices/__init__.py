"""Rows of data on several devices, of one process or of several, for the compiled loop on JAX."""

from pymc_flows.devices.mesh import Devices, as_devices
from pymc_flows.devices.rows import shared_out
from pymc_flows.devices.sums import AllSum, mesh_mode

__all__ = ["AllSum", "Devices", "as_devices", "mesh_mode", "shared_out"]
