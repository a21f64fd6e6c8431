"""Sums over many rows in a log density, evaluated in tiles that fit into the cache."""

from pymc_flows.model.tiles.evaluate import tiled_value_and_grad
from pymc_flows.model.tiles.find import RowSum, row_sums

__all__ = ["RowSum", "row_sums", "tiled_value_and_grad"]
