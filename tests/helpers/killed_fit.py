"""Fits that are made to be killed: ``python killed_fit.py PATH``, with "fit" or "resume" as input.

Each runs in a copy of this process, which has imported everything.
"""

import os
import sys

import pymc_flows as pmf
from fits import JAX, inference, minibatch_model

STEPS = 3_000
EVERY = 100
ARGUMENTS = {"obj_n_mc": 3, "random_seed": 5, **JAX}


def start(**kwargs):
    inf = inference(minibatch_model(), "planar-scale", jitter=0.5)
    inf.fit(STEPS, **ARGUMENTS, **kwargs)
    return inf


def resume(path):
    return pmf.resume(path, minibatch_model(), progressbar=False)


def tell(what):
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


def main(path):
    """Run commands as they come: say which process each has, and when that has ended."""
    for line in sys.stdin:
        process = os.fork()
        if not process:
            start(checkpoint=path, every=EVERY) if line == "fit\n" else resume(path)
            os._exit(0)
        tell(process)
        os.waitpid(process, 0)
        tell("ended")


if __name__ == "__main__":
    main(sys.argv[1])
