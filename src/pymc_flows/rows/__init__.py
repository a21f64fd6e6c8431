"""Rows of data that need not fit into memory: batches of them, shuffled, seeded and read ahead.

`Rows` has the columns, the sizes and the source; `Order` is the order of all rows; `Feed` reads the
batches of consecutive steps, and `Scan` all rows once, in the order in which they are stored.
Nothing here knows of models or flows.
"""

from pymc_flows.rows.feed import Feed, Scan
from pymc_flows.rows.rows import Rows, rows_of

__all__ = ["Feed", "Rows", "Scan", "rows_of"]
