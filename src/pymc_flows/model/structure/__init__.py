"""What the graph of a model says about its posterior.

Sets of latents are carried through the graph of the log density, node by node. From them follow its
factors, the pattern of its Hessian, hyperparameters and field, and the groups that are independent
given the rest.
"""

from pymc_flows.model.structure.grouped import GroupedDensity
from pymc_flows.model.structure.reader import structure, structure_of
from pymc_flows.model.structure.result import Structure

__all__ = ["GroupedDensity", "Structure", "structure", "structure_of"]
