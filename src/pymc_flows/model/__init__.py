"""A `pymc.Model` as a log density over flat unconstrained vectors, for many draws at once.

`layout` and `logp` read the model; everything else asks them. `batching` turns graphs of one draw
into graphs of all. `dry_run` and `examine` find out what a backend can do with a density, `backend`
chooses one; `log_density` and `terms` evaluate it outside of training, `points` and `draws` go from
values by name to flat vectors and back.
"""
