"""Fits of flows to models and to draws: `NFVI`, `fit`, `fit_draws`, `resume`."""
