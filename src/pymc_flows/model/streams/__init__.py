"""Models whose data come batch by batch: where all rows are, and functions of all of them."""

from pymc_flows.model.streams.find import stream_of
from pymc_flows.model.streams.stream import Stream

__all__ = ["Stream", "stream_of"]
