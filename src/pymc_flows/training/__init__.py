"""Optimisation of a flow, by whatever objective: one `Trainer`, one compiled loop.

`FitConfig` holds the checked arguments of a fit; an objective (`objectives`) makes the graph of a
step of them, `TrainingLoop` (`loop`) takes many steps in one call, and `Trainer` lets hooks act
between calls: callbacks, the stopping rule, checkpoints, held-out draws. How far a fit is stands in
`FitState`, which files keep. Nothing here knows of approximations or of PyMC's variational classes.
"""
