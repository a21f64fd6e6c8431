"""`NormalizingFlow`: a chain of flow layers as a PyMC approximation.

`_pymc` alone knows PyMC's variational base classes. Draws, densities, moments and files come from a
`State`, such as the `FlowState` of a flow.
"""

from pymc_flows.approximation._pymc import NormalizingFlowGroup
from pymc_flows.approximation.flow import NormalizingFlow
from pymc_flows.approximation.mixture import MixtureState
from pymc_flows.approximation.pickling import deep_copy
from pymc_flows.approximation.saving import (
    check_log_density,
    contents,
    field_state,
    flow_arguments,
    mixture_state,
    restore,
    versions,
)

__all__ = [
    "MixtureState",
    "NormalizingFlow",
    "NormalizingFlowGroup",
    "check_log_density",
    "contents",
    "deep_copy",
    "field_state",
    "flow_arguments",
    "mixture_state",
    "restore",
    "versions",
]
