"""Distributions by weighted draws: Gaussians, copulas and mixtures for which nothing is trained."""
