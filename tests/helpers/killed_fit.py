"""A fit that is made to be killed: ``python killed_fit.py {fit,resume} PATH``."""

import sys

import pymc_flows as pmf
from fits import JAX, inference, minibatch_model

STEPS = 3_000
EVERY = 40
ARGUMENTS = {"obj_n_mc": 3, "random_seed": 5, **JAX}


def start(**kwargs):
    inf = inference(minibatch_model(), "planar*2-scale", jitter=0.5)
    inf.fit(STEPS, **ARGUMENTS, **kwargs)
    return inf


def resume(path):
    return pmf.resume(path, minibatch_model(), progressbar=False)


if __name__ == "__main__":
    command, path = sys.argv[1:]
    if command == "fit":
        start(checkpoint=path, every=EVERY)
    else:
        resume(path)
