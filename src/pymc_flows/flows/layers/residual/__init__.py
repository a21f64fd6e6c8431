"""Residual layers, z plus a bounded bend: planar, radial, Sylvester; and their inverses."""
