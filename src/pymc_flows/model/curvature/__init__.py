"""Exact sparse second derivatives of a log density."""

from pymc_flows.model.curvature.hessian import Curvature

__all__ = ["Curvature"]
