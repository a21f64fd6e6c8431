"""Layers that map each coordinate on its own: splines, tails, a logarithmic range."""
