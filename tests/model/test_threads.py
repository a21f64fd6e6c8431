"""Several threads at once: drawing, evaluating and fitting give what they give one by one."""

from concurrent.futures import ThreadPoolExecutor

import cloudpickle
import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt

import pymc_flows as pmf
from fits import JAX, normal_mean, parameters
from pymc_flows.backends.modes import NUMPY, no_compiler
from pymc_flows.model.log_density import LogDensity

CALLS = 200


def two_approximations():
    models = []
    for mu in (0.0, 5.0):
        with pm.Model() as model:
            x = pm.Normal("x", mu, 1, shape=2)
            pm.Deterministic("twice", 2 * x)
            pm.Normal("y", x, 1, observed=[mu, mu])
        models.append(model)
    return [
        pmf.NormalizingFlow("planar*2-scale-loc", model=model, random_seed=i, jitter=0.3)
        for i, model in enumerate(models)
    ]


def use(approx, seed):
    """Draws, both densities, deterministics and a report: whatever runs a shared function."""
    points, log_q = approx.sample_and_log_prob(1 + seed % 3, random_seed=seed)
    log_p = LogDensity(approx.density).value(points)
    draws = approx.draws_at(points, approx.model, np.random.default_rng(seed))["twice"]
    found = [points, log_q, log_p, draws, approx.log_prob({"x": points})]
    if seed % 20 == 0:
        found.append(pmf.report(approx, 200, random_seed=seed).quality.elbo)
    return found


def test_two_threads_draw_what_they_draw_alone():
    approximations = two_approximations()
    alone = [[use(approx, seed) for seed in range(CALLS)] for approx in approximations]
    # Anew, so that functions are made by several threads as well.
    approximations = two_approximations()
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(lambda a: [use(a, s) for s in range(CALLS)], a) for a in approximations]
        together = [run.result() for run in runs]
    for found, expected in zip(together, alone, strict=True):
        for values, others in zip(found, expected, strict=True):
            for value, other in zip(values, others, strict=True):
                np.testing.assert_array_equal(value, other)


def test_one_approximation_serves_several_threads():
    approx = two_approximations()[0]
    alone = [use(approx, seed) for seed in range(40)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda seed: use(approx, seed), range(40)))
    for values, others in zip(together, alone, strict=True):
        for value, other in zip(values, others, strict=True):
            np.testing.assert_array_equal(value, other)


def test_two_threads_fit_what_they_fit_alone():
    def fitted(mu):
        inference = pmf.NFVI("scale-loc", model=normal_mean(mu), random_seed=1)
        inference.fit(50, obj_n_mc=4, **JAX)
        return [inference.hist, *parameters(inference)]

    alone = [fitted(mu) for mu in (0.0, 3.0)]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(fitted, (0.0, 3.0)))
    for values, others in zip(together, alone, strict=True):
        for value, other in zip(values, others, strict=True):
            np.testing.assert_array_equal(value, other)


def test_the_compiler_is_back_after_threads_that_overlap():
    def build(i):
        with no_compiler():
            x = pt.vector("x")
            return pytensor.function([x], pt.special.softmax(x) + i, mode=NUMPY)(np.zeros(2))[0]

    with pytensor.config.change_flags(cxx="g++"):
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(build, range(12))) == [i + 0.5 for i in range(12)]
        assert pytensor.config.cxx == "g++"


def test_functions_that_threads_share_can_be_copied():
    x = pt.scalar("x")
    copy = cloudpickle.loads(cloudpickle.dumps(pytensor.function([x], 2 * x, mode=NUMPY)))
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(copy, range(50))) == [2 * i for i in range(50)]
