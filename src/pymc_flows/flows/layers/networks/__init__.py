"""Coupling and autoregressive layers: a network maps some coordinates to parameters of others."""
