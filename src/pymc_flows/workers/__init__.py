"""Independent tasks: in this process, in others, or on any executor.

The result of a task does not depend on who runs it, or when. Nothing here knows of models or flows.
"""

from pymc_flows.workers.attempt import Failed, Finished
from pymc_flows.workers.options import Workers
from pymc_flows.workers.run import Tally, run_tasks

__all__ = ["Failed", "Finished", "Tally", "Workers", "run_tasks"]
