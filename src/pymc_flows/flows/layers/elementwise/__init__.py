"""Layers that map each coordinate by itself: splines, tails, a guard of the range."""
