"""Gaussians, copulas and mixtures fitted to weighted draws, without training."""
