"""The compiled loop: takes the graph of one optimizer step, and runs many steps per call.

`TrainingLoop` knows of steps, settings, noise and failures, not of models or flows. Between calls
all state is in shared variables, as NumPy arrays, and that of one step.
"""

from pymc_flows.training.loop.batched import BatchedLoop
from pymc_flows.training.loop.compiled import MAX_CHUNK, Chunk, StepError, TrainingLoop
from pymc_flows.training.loop.graph import MAX_FAILURES, Step
from pymc_flows.training.loop.noise import Batches, Source
from pymc_flows.training.loop.packing import Packing, join, split_by_block

__all__ = [
    "MAX_CHUNK",
    "MAX_FAILURES",
    "BatchedLoop",
    "Batches",
    "Chunk",
    "Packing",
    "Source",
    "Step",
    "StepError",
    "TrainingLoop",
    "join",
    "split_by_block",
]
