"""Optimisation of a flow: the loss, schedules of step size and temperature, and the compiled loop.

Nothing here knows of PyMC's variational classes.
"""
