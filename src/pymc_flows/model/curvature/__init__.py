"""Exact sparse second derivatives of a log density."""

from pymc_flows.model.curvature.hessian import Curvature, curvature_of
from pymc_flows.model.curvature.long_rows import LowRankSum

__all__ = ["Curvature", "LowRankSum", "curvature_of"]
