"""Masks and lengths that come from data: what JAX must know of them, and data that change."""

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from numpy.testing import assert_allclose

from pymc_flows import NFVI
from pymc_flows.backends.modes import NUMPY
from pymc_flows.errors import ModelError
from pymc_flows.model.dry_run import dry_run
from pymc_flows.model.log_density import LogDensity
from pymc_flows.model.logp import density_of
from pymc_flows.model.tiles import find

X = np.linspace(-1.0, 2.0, 7)
MASK = np.array([True, False, True, True, False, False, True])


def masked():
    x, mask = pm.Data("x", X), pm.Data("mask", MASK)
    b = pm.Normal("b")
    pm.Normal("y", (b * x)[~mask], 1.0, observed=np.zeros(3))
    pm.Potential("tail", -pt.softplus((b * x)[mask]).sum())


def filled():
    x, mask = pm.Data("x", X), pm.Data("mask", MASK)
    b = pm.Normal("b", shape=2)
    pm.Normal("y", pt.set_subtensor((b[0] * x)[mask], b[1]), 1.0, observed=np.zeros(7))


def counted():
    x, start = pm.Data("x", X), pm.Data("start", np.int64(2))
    b = pm.Normal("b")
    rows = pt.arange(start, x.shape[0])
    pm.Potential("y", -((b * x[rows] - rows) ** 2).sum())


def stepped():
    x = pm.Data("x", X)
    b = pm.Normal("b")
    step = {"sequences": [x], "outputs_info": [pt.zeros(())], "non_sequences": [b]}
    states = pytensor.scan(lambda x, s, b: 0.5 * s + b * x, **step, return_updates=False)
    pm.Normal("y", states[-1], 1.0, observed=0.3)


def joined():
    men, women = pm.Data("men", X), pm.Data("women", X[:3])
    b = pm.Normal("b", shape=2)
    both = pt.concatenate([b[0] * men, b[1] * women])
    pm.Potential("y", -pt.exp(both).sum() + both[::2].sum())


CASES = {
    masked: {"mask": np.roll(MASK, 1)},
    filled: {"mask": np.zeros(7, bool)},
    counted: {"start": np.int64(4)},
    stepped: {"x": X[1:]},
    joined: {"women": X[:5]},
}


@pytest.mark.parametrize("build", CASES, ids=lambda f: f.__name__)
@pytest.mark.jax
def test_lengths_from_data_run_on_jax_and_may_change(build, rng):
    with pm.Model() as model:
        build()
    held = []  # densities that have lost their lengths are no model's any more
    for change in ({}, CASES[build]):
        pm.set_data(change, model=model)
        density = density_of(model)
        assert all(density is not other for other in held)
        held.append(density)
        points = rng.normal(size=(3, density.dim))
        assert dry_run(density).why_not_jax(points[0]) == ""
        value = model.compile_logp(mode=NUMPY)
        expected = [value({"b": p.reshape(density.slots[0].shape)}) for p in points]
        assert_allclose(LogDensity(density).value(points), expected, rtol=1e-12)
        assert density_of(model) is density


@pytest.mark.jax
def test_what_is_compiled_is_not_used_with_another_mask():
    with pm.Model() as model:
        masked()
    fit = NFVI("loc", model=model)
    fit.fit(2, obj_n_mc=2, progressbar=False, backend="jax")
    before = fit.approx.density
    fit.refine(2, progressbar=False)
    pm.set_data({"x": X + 1}, model=model)  # not a length
    assert fit.approx.density is before
    fit.refine(2, progressbar=False)
    pm.set_data({"mask": np.roll(MASK, 1)}, model=model)
    assert fit.approx.density is not before
    with pytest.raises(ModelError, match="the data mask have changed"):
        fit.refine(2, progressbar=False)
    fit.fit(2, obj_n_mc=2, progressbar=False, backend="jax")
    fit.refine(1, progressbar=False)


@pytest.mark.jax
def test_masks_of_replacements_are_checked():
    with pm.Model() as model:
        x, b = pm.Data("x", X[:4]), pm.Normal("b")
        pm.Normal("y", b * x, 1.0, observed=np.zeros(4))
    mask = pytensor.shared(MASK, "mask", shape=MASK.shape)
    density = density_of(model)
    assert density.replaced({x: pt.constant(X)[mask]}).terms
    density.check_lengths()
    mask.set_value(np.roll(MASK, 1))
    with pytest.raises(ModelError, match="the data mask have changed"):
        density.check_lengths()


@pytest.mark.jax
def test_rows_in_tiles_may_become_more(monkeypatch, rng):
    monkeypatch.setattr(find, "TILE_BYTES", 8 * 8 * 4)
    x = rng.normal(size=90)
    with pm.Model() as model:
        b = pm.Normal("b")
        pm.Normal("y", pm.Data("x", x[:40]) * b, 1.0, observed=pm.Data("seen", x[:40] + 1))
    fit = NFVI("scale-loc", model=model)
    for n in (40, 90):
        pm.set_data({"x": x[:n], "seen": x[:n] + 1}, model=model)
        assert [s.tile.n for s in fit.approx.density.rows_in_tiles(8)] == [n]
        expected = x[:n] @ (x[:n] + 1) / (x[:n] @ x[:n] + 1)
        rate = {"obj_optimizer": pm.adam(learning_rate=0.05)}
        fit.fit(400, obj_n_mc=8, progressbar=False, backend="jax", random_seed=1, **rate)
        assert_allclose(fit.approx.mean.eval(mode=NUMPY), expected, atol=0.02)
