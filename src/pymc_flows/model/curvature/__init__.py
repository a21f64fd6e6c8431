"""Exact sparse second derivatives of a log density."""

from pymc_flows.model.curvature.hessian import Curvature, curvature_of

__all__ = ["Curvature", "curvature_of"]
