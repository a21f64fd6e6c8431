"""The hyperparameters: the mode of their marginal, its profiles, and a flow over them."""

from pymc_flows.field.hyper.mode import HyperMode, curve, find_mode
from pymc_flows.field.hyper.rounds import HyperValues, sample_hyper

__all__ = ["HyperMode", "HyperValues", "curve", "find_mode", "sample_hyper"]
