"""Programs: fits on one device, on eight of one process, and on one each of two processes."""

import json
import logging
import sys

import jax
import numpy as np
import pymc as pm
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from pymc.variational.callbacks import CheckParametersConvergence

import pymc_flows as pmf
from pymc_flows.devices import as_devices, shared_out
from pymc_flows.model.logp import density_of
from pymc_flows.training.config import FitConfig

N, K, STEPS = 80, 3, 100


def data():
    rng = np.random.default_rng(0)
    x, group = rng.normal(size=(N, K)), rng.integers(0, 4, N)
    return x, group, (rng.random(N) < 0.4).astype(int)


def logistic(rows=slice(None), *, more=None):
    """A regression with an intercept for each group; ``more`` makes it another model."""
    x, group, y = (values[rows] for values in data())
    with pm.Model() as model:
        b = pm.Normal("b", 0, 1, shape=K)
        a = pm.Normal("a", 0, 1, shape=4)
        pm.Bernoulli("y", logit_p=pm.Data("x", x) @ b + a[group], observed=y)
        if more is not None:
            more(b, len(y))
    return model


def fit(model, **more):
    inference = pmf.NFVI("scale-loc", model=model, random_seed=1)
    # A call of the loop takes no more than 50 steps, so that it need not skip thousands.
    often = CheckParametersConvergence(every=50, tolerance=0)
    given = {"backend": "jax", "obj_n_mc": 4, "progressbar": False, "callbacks": [often]}
    inference.fit(STEPS, random_seed=3, **given, **more)
    return inference


def shares(inference):
    """Bytes of the largest array of data: all of it, and what is on each device that is here."""
    arguments = inference.state.loop.function.arguments()
    array = max(arguments, key=lambda x: x.nbytes)
    return [array.nbytes, *(shard.data.nbytes for shard in array.addressable_shards)]


def refusal(call, *args):
    """What is said instead of a result."""
    try:
        call(*args)
    except (ValueError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def refusals_of_two(each, half, approx, process):
    """What processes with rows of their own are refused."""
    devices = as_devices(each)

    def share(more):
        return refusal(shared_out, devices, density_of(logistic(half, more=more)))

    return {
        "potential": share(lambda b, n: pm.Potential("p", -(b**2).sum())),
        "joint": share(lambda b, n: pm.MvNormal("m", b, np.eye(K), observed=np.zeros(K))),
        "latent": share(lambda b, n: pm.Normal("each", shape=n)),
        "seed": refusal(devices.check_same, {"n=": 100, "random_seed=": process}),
        "report": refusal(pmf.report, approx),
        "search": refusal(lambda: pmf.fit(10, model=logistic(half), devices=each)),
    }


def alone(more):
    """A model of nothing but that."""
    with pm.Model() as model:
        more(pm.Normal("b", shape=2), 0)
    return model


def refusals_of_one(devices):
    """What is refused where one process has all rows; one model is not."""

    def share(model):
        return refusal(shared_out, as_devices(devices), density_of(model))

    def batches(b, n):
        batch = pm.Minibatch(np.arange(80.0), batch_size=8)
        pm.Normal("batch", b[0], observed=batch, total_size=80)

    def stream(b, n):
        rows = pmf.Rows.arrays({"s": np.arange(80.0)}, batch_size=8)
        pm.Normal("stream", b[0], observed=rows["s"], total_size=rows.total)

    with pm.Model() as no_rows:
        pm.Normal("z")
    return {
        "few": share(logistic(more=lambda b, n: pm.Normal("few", b[0], observed=np.zeros(3)))),
        "uneven": share(logistic(slice(0, 78))),
        "no rows": share(no_rows),
        "minibatch": share(logistic(more=batches)),
        "stream": share(alone(stream)),
        "two of one": refusal(as_devices, jax.devices()),
        "of the other": refusal(as_devices, [jax.devices()[-1]]),
        "numba": refusal(lambda: FitConfig(devices=devices, backend="numba")),
        "structured": refusal(
            lambda: pmf.fit(formula="tril-loc | laplace", model=no_rows, devices=devices)
        ),
        "too many": refusal(as_devices, 1000),
        "text": refusal(as_devices, "all"),
        "whole": refusal(as_devices, NamedSharding(Mesh(np.array(devices), "i"), PartitionSpec())),
    }


def main(port, process):
    """Be one of two processes; the first has eight devices, and prints what it found as JSON."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=process)
    log, texts = logging.getLogger("pymc_flows.devices.rows"), []
    handler = logging.Handler()
    handler.emit = lambda record: texts.append(record.getMessage())
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    each = [next(d for d in jax.devices() if d.process_index == p) for p in range(2)]
    half = slice(process * N // 2, (process + 1) * N // 2)
    two = fit(logistic(half), devices=each)
    refused = refusals_of_two(each, half, two.approx, process)
    if process:
        return
    mesh = Mesh(np.array(jax.local_devices()), "i")
    eight, one = fit(logistic(), devices=NamedSharding(mesh, PartitionSpec("i"))), fit(logistic())
    refused |= refusals_of_one(jax.local_devices())
    losses = {"one": list(one.hist), "two": list(two.hist), "eight": list(eight.hist)}
    bytes_ = {"one": shares(one), "two": shares(two), "eight": shares(eight)}
    found = {"losses": losses, "bytes": bytes_, "refused": refused, "texts": texts}
    sys.stdout.write(f"\n{json.dumps(found)}\n")
