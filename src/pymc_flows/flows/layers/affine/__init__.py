"""Affine layers: shift and scale, reflections, triangular and low-rank matrices, permutations."""

from pymc_flows.flows.layers.affine.householder import Householder
from pymc_flows.flows.layers.affine.lowrank import LowRank
from pymc_flows.flows.layers.affine.perm import Perm
from pymc_flows.flows.layers.affine.shift_scale import Loc, Scale
from pymc_flows.flows.layers.affine.tril import Tril

__all__ = ["Householder", "Loc", "LowRank", "Perm", "Scale", "Tril"]
