"""Modes, rewrites, Ops and graph surgery that make PyTensor correct and fast on numba and JAX.

Everything here works on PyTensor graphs; nothing knows of models or flows.
"""
