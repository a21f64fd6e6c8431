"""Autoregressive layers: equation, triangular Jacobians, both ways of solving."""

import numpy as np
import pytest
from scipy.integrate import trapezoid

from flow_cases import evaluate, fixed, jacobian, normal_params, one_block
from pymc_flows.flows import IAF, MAF
from pymc_flows.flows.layers.networks import autoregressive


def conditionals(matrices, layer, order):
    """Log-scale and shift of each coordinate from those before it in ``order``, MADE by hand."""
    dim = len(order)
    rank = np.argsort(order)
    units = [int((dim - 1) * j / layer.hidden) for j in range(layer.hidden)]

    def given(seen):
        x, ranks = seen, list(rank)
        for index, raw in enumerate(matrices):
            is_last = index == len(matrices) - 1
            targets = list(rank) * 2 if is_last else units
            out = raw[-1].copy()
            for j, r in enumerate(targets):
                for i, q in enumerate(ranks):
                    if q < r or (q == r and not is_last):
                        out[j] += x[i] * raw[i, j] / np.sqrt(len(raw) - 1)
            x, ranks = (out if is_last else np.tanh(out)), units
        return layer.clip * np.tanh(x[:dim] / layer.clip), x[dim:]

    return given


@pytest.mark.parametrize(
    "layer",
    [IAF(hidden=7), IAF(hidden=7, shift="before"), MAF(hidden=7), MAF(hidden=7, shift="before")],
)
@pytest.mark.parametrize("dim", [1, 2, 4])
def test_the_equation(layer, dim, rng):
    chain = one_block(layer, 2, dim)
    (params,) = normal_params(chain, rng)
    points = rng.standard_normal((3, dim))
    value, log_det = evaluate(*chain.forward_and_log_det(fixed(points), [params]))
    for n, point in enumerate(points):
        total = 0
        for k, order in enumerate([range(dim), range(dim)[::-1]]):
            matrices = [params[name].get_value()[k] for name in sorted(params)]
            given = conditionals(matrices, layer, list(order))
            new = np.zeros(dim)
            for i in order:
                s, t = given(new if layer.word == "maf" else point)
                factor = np.exp(s[i])
                is_before = layer.shift == "before"
                new[i] = factor * (point[i] + t[i]) if is_before else factor * point[i] + t[i]
                total += s[i]
            point = new
        np.testing.assert_allclose(value[n], point, rtol=1e-12, atol=1e-12)
        assert log_det[n] == pytest.approx(total, abs=1e-12)


@pytest.mark.parametrize("layer", [IAF(hidden=24), IAF(depth=0), MAF(hidden=24, depth=1)])
def test_one_layer_has_a_full_triangular_jacobian_and_two_a_full_one(layer, rng):
    points = rng.standard_normal((5, 6))
    chain = one_block(layer, 1, 6)
    params = normal_params(chain, rng)
    _, _, rows = jacobian(lambda z: chain.forward_and_log_det(z, params), points)
    np.testing.assert_array_equal(np.any(rows != 0, axis=0), np.tri(6, dtype=bool))
    chain = one_block(layer, 2, 6)
    pair = normal_params(chain, rng)
    _, _, rows = jacobian(lambda z: chain.forward_and_log_det(z, pair), points)
    assert np.all(np.any(rows != 0, axis=0))


@pytest.mark.parametrize("dim", [2, 7])
def test_maf_is_the_inverse_of_iaf_with_other_signs(dim, rng):
    # z = (y − t) exp(−s) is an IAF with log-scale −s and shift −t exp(−s); the layers share masks,
    # so that the inverse of one is the map of the other wherever t = 0.
    chains = [one_block(cls(hidden=5, depth=1), 1, dim) for cls in (IAF, MAF)]
    (params,) = normal_params(chains[0], rng)
    last = params["dense1"].get_value()
    last[..., dim:] = 0
    negative = last.copy()
    negative[..., :dim] *= -1
    points = fixed(rng.standard_normal((4, dim)))
    forward = chains[0].forward_and_log_det(points, [{**params, "dense1": fixed(last)}])
    back = chains[1].inverse_and_log_det(points, [{**params, "dense1": fixed(negative)}])
    one, log_det, other, log_det_back = evaluate(*forward, *back)
    np.testing.assert_allclose(one, other, rtol=1e-13)
    np.testing.assert_allclose(log_det, -log_det_back, rtol=1e-13)


@pytest.mark.parametrize("dim", [1, 5])
def test_a_loop_over_coordinates_equals_copies(dim, rng, monkeypatch):
    chain = one_block(IAF(hidden=5), 2, dim)
    params = normal_params(chain, rng)
    points = fixed(rng.standard_normal((4, dim)))
    copies = chain.inverse_and_log_det(points, params)
    monkeypatch.setattr(autoregressive, "_MOST_COPIES", 0)
    loop = chain.inverse_and_log_det(points, params)
    values = evaluate(*copies, *loop)
    np.testing.assert_allclose(values[2], values[0], rtol=1e-14)
    np.testing.assert_allclose(values[3], values[1], rtol=1e-14)


@pytest.mark.parametrize("layer", [IAF(hidden=6), MAF(hidden=6), IAF(hidden=6, shift="before")])
def test_the_density_integrates_to_one(layer, rng):
    chain = one_block(layer, 2, 2)
    params = normal_params(chain, rng)
    axis = np.linspace(-40, 40, 801)
    points = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1)
    z0, log_det = evaluate(*chain.inverse_and_log_det(fixed(points), params))
    density = np.exp(-0.5 * (z0**2).sum(axis=-1) - log_det) / (2 * np.pi)
    assert trapezoid(trapezoid(density, axis), axis) == pytest.approx(1, abs=1e-4)


def test_notes_say_which_direction_is_slow():
    assert IAF().note(20) == "fast to fit; densities of given points take 20 passes"
    assert MAF().note(20) == "slow to fit: each step takes 20 passes; iaf takes one"
    assert IAF().note(1) == MAF().note(1) == "in 1 dimension an affine map"
