"""How good an approximation is, by importance weights and by draws of a reference.

`report` judges, for people to read. `measure` gives its numbers alone (ELBO, k-hat, log evidence)
from fresh draws, and `quality` gives them from log weights. Nothing here trains or plots.
"""

from pymc_flows.diagnostics.coverage import Coverage
from pymc_flows.diagnostics.quality import measure, quality
from pymc_flows.diagnostics.verdict import Coordinate, Report, report
from pymc_flows.importance import Quality

__all__ = ["Coordinate", "Coverage", "Quality", "Report", "measure", "quality", "report"]
