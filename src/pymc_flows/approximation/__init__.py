"""`NormalizingFlow`: a chain of flow layers as a PyMC approximation.

With `inference`, the only modules that build on PyMC's variational base classes; what they need is
one group that knows its parameters, its draws and its log q.
"""

from pymc_flows.approximation.flow import NormalizingFlow
from pymc_flows.approximation.group import NormalizingFlowGroup
from pymc_flows.approximation.pickling import deep_copy
from pymc_flows.approximation.saving import (
    check_log_density,
    contents,
    flow_arguments,
    restore,
    versions,
)

__all__ = [
    "NormalizingFlow",
    "NormalizingFlowGroup",
    "check_log_density",
    "contents",
    "deep_copy",
    "flow_arguments",
    "restore",
    "versions",
]
