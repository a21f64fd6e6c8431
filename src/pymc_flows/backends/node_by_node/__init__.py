"""Runs graphs in NumPy, node by node: the linker of modes that are ready at once.

`ArrayLinker` gives the arrays of PyTensor's own Python linker, which copies what it sums, gathers
with general indexing, and allocates every result anew. Other packages take the linker alone.
"""
