"""Blocks of repeated layers as single PyTensor Ops, with their derivatives, for numba.

`stack_op` has the contract: kernels of one layer, forward and reverse; each other module, those of
one kind of layer.
"""
