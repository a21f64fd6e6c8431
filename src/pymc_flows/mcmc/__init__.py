"""From a flow to MCMC: sampling in the coordinates of a flow, and jumps by its draws."""
