"""Sums over many rows in a log density, evaluated tile by tile: the cache holds one."""

from pymc_flows.model.tiles.evaluate import tiled_value_and_grad
from pymc_flows.model.tiles.find import TILE_BYTES, RowSum, row_sums

__all__ = ["TILE_BYTES", "RowSum", "row_sums", "tiled_value_and_grad"]
