"""Optimisation of a flow for any objective: one `Trainer`, one compiled loop.

`FitConfig` holds the checked arguments of a fit. An objective (`objectives`) makes the graph of a
step, `TrainingLoop` (`loop`) takes many steps in one call, and `Trainer` lets hooks act between
calls: callbacks, the stopping rule, checkpoints, held-out draws. `FitState` says how far a fit is;
files keep it. Nothing here knows of approximations or of PyMC's variational classes.
"""
