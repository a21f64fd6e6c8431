"""The layers, one file per word of the formula language, in families by the kind of their map.

Each is a frozen dataclass with the contract of `pymc_flows.flows.base.Flow`; importing this package
registers them all.
"""

from pymc_flows.flows.layers.affine import Householder, Loc, LowRank, Perm, Scale, Tril
from pymc_flows.flows.layers.elementwise import Loft, Spline, Tail
from pymc_flows.flows.layers.networks import IAF, MAF, NSF, NVP
from pymc_flows.flows.layers.residual import Planar, Radial, Sylvester

__all__ = [
    "IAF",
    "MAF",
    "NSF",
    "NVP",
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
]
