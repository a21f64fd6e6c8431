"""The field given hyperparameters: its mode, a Gaussian around it, and weights of groups."""

from pymc_flows.field.conditional.gaussian import FieldGaussian
from pymc_flows.field.conditional.mapping import ConditionalField, Expectation, Surface
from pymc_flows.field.conditional.newton import FieldModes
from pymc_flows.field.conditional.noise import NormalNoise, quadrature
from pymc_flows.field.conditional.weights import GroupWeights, weigh_groups

__all__ = [
    "ConditionalField",
    "Expectation",
    "FieldGaussian",
    "FieldModes",
    "GroupWeights",
    "NormalNoise",
    "Surface",
    "quadrature",
    "weigh_groups",
]
