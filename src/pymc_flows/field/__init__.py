"""Posteriors of hierarchies: few hyperparameters, and a large Gaussian-like field given them."""

from pymc_flows.field.fit import fit_field
from pymc_flows.field.gradient import BatchedGradient, batched_gradient
from pymc_flows.field.options import FieldOptions
from pymc_flows.field.posterior import Posterior
from pymc_flows.field.result import FieldApproximation

__all__ = [
    "BatchedGradient",
    "FieldApproximation",
    "FieldOptions",
    "Posterior",
    "batched_gradient",
    "fit_field",
]
