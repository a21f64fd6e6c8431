"""Where a fit begins: a Gaussian at a mode of the posterior, and one with its moments."""
