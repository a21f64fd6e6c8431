"""A `pymc.Model` as a log density over flat unconstrained vectors, for many draws at once.

`layout` and `logp` read the model; everything else asks them. `trial` and `examine` find out what a
backend can do with it, `log_density` evaluates it outside of training, `points` and `draws` go from
values by name to flat vectors and back.
"""
