"""From a flow to MCMC: NUTS in the coordinates of a flow, and its draws as proposals."""
