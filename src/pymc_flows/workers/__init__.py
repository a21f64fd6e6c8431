"""Tasks that need nothing of each other: in this process, in others, or on any executor.

What a task returns does not depend on who runs it, or when. Knows of no models and no flows.
"""

from pymc_flows.workers.attempt import Failed, Finished
from pymc_flows.workers.options import Workers
from pymc_flows.workers.run import Tally, run_tasks

__all__ = ["Failed", "Finished", "Tally", "Workers", "run_tasks"]
