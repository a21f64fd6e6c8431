"""What PyTensor needs to be right and fast on numba and JAX.

Modes, rewrites and Ops for one backend, and surgery on graphs. Everything works on PyTensor graphs;
nothing here knows of models or flows.
"""
