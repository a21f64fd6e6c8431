"""Files: one format, written whole or not at all, with a digest that is checked on reading.

The modules that write a file decide what its arrays and its record mean.
"""

from pymc_flows.io.files import Content, check_target, read, require_netcdf, write
from pymc_flows.io.growing import Growing

__all__ = ["Content", "Growing", "check_target", "read", "require_netcdf", "write"]
