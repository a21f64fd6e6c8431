"""Affine layers: shift and scale, reflections, triangular and low-rank matrices, permutations."""
