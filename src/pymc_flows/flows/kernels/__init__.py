"""Blocks of repeated layers as single PyTensor Ops, with their derivatives, for numba.

`stack_op` has the contract, `scalar` the functions that kernels share. Each other module has the
kernels of one kind of layer: the map of a block and its pullback.
"""
