"""Layers and chains: PyTensor graphs only, usable without PyMC.

>>> chain = build_chain("scale-planar*2-loc", 3)
>>> len(chain), chain.has_inverse
(4, True)
"""

from pymc_flows.errors import ArgumentError
from pymc_flows.flows.base import Flow, FusedFlow
from pymc_flows.flows.chain import Block, Chain
from pymc_flows.flows.layers.affine.householder import Householder
from pymc_flows.flows.layers.affine.lowrank import LowRank
from pymc_flows.flows.layers.affine.perm import Perm
from pymc_flows.flows.layers.affine.shift_scale import Loc, Scale
from pymc_flows.flows.layers.affine.tril import Tril
from pymc_flows.flows.layers.elementwise.loft import Loft
from pymc_flows.flows.layers.elementwise.spline import Spline
from pymc_flows.flows.layers.elementwise.tail import Tail
from pymc_flows.flows.layers.networks.autoregressive import IAF, MAF
from pymc_flows.flows.layers.networks.coupling import NVP
from pymc_flows.flows.layers.networks.nsf import NSF
from pymc_flows.flows.layers.residual.planar import Planar
from pymc_flows.flows.layers.residual.radial import Radial
from pymc_flows.flows.layers.residual.sylvester import Sylvester
from pymc_flows.formula import Formula
from pymc_flows.formula.registry import FLOWS, register_flow

__all__ = [
    "FLOWS",
    "IAF",
    "MAF",
    "NSF",
    "NVP",
    "Block",
    "Chain",
    "Flow",
    "FusedFlow",
    "Householder",
    "Loc",
    "Loft",
    "LowRank",
    "Perm",
    "Planar",
    "Radial",
    "Scale",
    "Spline",
    "Sylvester",
    "Tail",
    "Tril",
    "build_chain",
    "register_flow",
]


def build_chain(formula: Formula | str, dim: int) -> Chain:
    """Make the chain of a formula.

    Parameters
    ----------
    formula : Formula or str
        Such as ``'scale-hh*4-loc'``; layers apply from left to right.
    dim : int
        Length of the event axis.

    Returns
    -------
    Chain

    Raises
    ------
    FormulaError
        If the text is not a formula.
    FlowShapeError
        If ``dim`` is not a positive integer.
    ArgumentError
        If the formula has a bar, and so is not a chain over all coordinates.
    """
    formula = Formula(formula)
    if formula.conditional is not None:
        raise ArgumentError(
            f"{str(formula)!r} is no chain of layers: the word after the bar is a field given "
            "hyperparameters\n"
            f"Fit it with pymc_flows.fit(formula={str(formula)!r})."
        )
    return Chain(dim, tuple(Block(layer, count) for layer, count in formula.blocks))
