"""Variables may have any name that PyMC takes: bambi's have bars, spaces and brackets in them."""

import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest

import pymc_flows as pmf
from pymc_flows.flows.evaluate import forward_and_log_det
from pymc_flows.model.logp import density_of

NAMES = ["1|island", "float", "i4", "a,b", "x[0]", "σ", "two words", "f4", "V3", "a:b", "1.5"]


def hierarchy(name: str) -> pm.Model:
    with pm.Model(coords={"island": ["a", "b", "c"]}) as model:
        sigma = pm.HalfNormal(f"{name}_sigma", 1.0)
        effect = pm.Normal(name, 0, sigma, dims="island")
        pm.Deterministic(f"{name}_twice", 2 * effect, dims="island")
        pm.Normal("y", effect, 1.0, observed=np.zeros(3))
    return model


@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_drawn_and_evaluated(name):
    with hierarchy(name) as model:
        approx = pmf.NormalizingFlow("scale-loc", random_seed=1)
        tree = approx.sample(5)
        posterior = tree.posterior
        assert posterior[name].dims == ("chain", "draw", "island")
        np.testing.assert_array_equal(posterior[f"{name}_twice"], 2 * posterior[name])
        points, log_q = approx.sample_and_log_prob(4)
        slots = {s.name: points[:, s.slice].reshape((4, *s.shape)) for s in approx.density.slots}
        np.testing.assert_allclose(approx.log_prob(slots), log_q)
        assert approx.log_prob(tree).shape == (1, 5)
        start = {name: [1.0, 2.0, 3.0], f"{name}_sigma": 2.0}
        flat = density_of(model).start(start)
        np.testing.assert_allclose(flat, [np.log(2), 1, 2, 3])


def test_any_name_is_kept_in_a_file(tmp_path):
    with hierarchy("1|island") as model:
        approx = pmf.NormalizingFlow("scale-loc", random_seed=1)
    approx.save(tmp_path / "approx.nc")
    loaded = pmf.load(tmp_path / "approx.nc", model=model)
    np.testing.assert_array_equal(
        loaded.sample(3, random_seed=2).posterior["1|island"],
        approx.sample(3, random_seed=2).posterior["1|island"],
    )


def test_a_name_may_be_that_of_a_dim_of_another_variable():
    with pm.Model(coords={"mu": [0, 1]}):
        mu = pm.Normal("x", dims="mu")
        pm.Normal("y", mu, 1, observed=np.zeros(2), dims="mu")
        tree = pmf.NormalizingFlow("scale-loc").sample(3)
    assert tree.posterior["x"].dims == ("chain", "draw", "mu")


def test_parameters_of_ones_own_flow_may_have_any_name():
    from dataclasses import dataclass

    from pymc_flows.flows.base import Flow
    from pymc_flows.flows.chain import Block, Chain

    @dataclass(frozen=True)
    class Odd(Flow):
        word = "odd"
        has_inverse = False
        is_affine = True
        is_elementwise = True

        def param_shapes(self, dim):
            return {"f4": (dim,)}

        def reference_params(self, dim):
            return {"f4": np.zeros(dim)}

        def constrain(self, raw):
            return raw

        def forward_and_log_det(self, z, params):
            return z + params["f4"], pt.zeros_like(z[..., 0])

    chain = Chain(2, (Block(Odd(), 1),))
    z, _ = forward_and_log_det(chain, np.zeros((3, 2)), [{"f4": np.ones((1, 2))}])
    np.testing.assert_array_equal(z, np.ones((3, 2)))
