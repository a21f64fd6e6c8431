"""Affine coupling: equation, halves that take turns, options."""

import numpy as np
import pytest

from flow_cases import evaluate, fixed, jacobian, normal_params, one_block, shared_params
from pymc_flows.errors import ArgumentError, FormulaError
from pymc_flows.flows import NVP, build_chain
from pymc_flows.flows import evaluate as numpy_maps
from pymc_flows.formula import Formula

ACTIVATIONS = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x / (1 + np.exp(-x)),
}


def network(x, matrices, activation):
    """Raw matrices with a row of biases; weights count 1 / √inputs."""
    for index, raw in enumerate(matrices):
        weights, bias = raw[:-1], raw[-1]
        x = x @ weights / np.sqrt(len(weights)) + bias
        if index < len(matrices) - 1:
            x = ACTIVATIONS[activation](x)
    return x


def coupled(z, matrices, layer, moves):
    """Equations 4 and 5 of Dinh et al. with the coordinates where ``moves`` in place of b."""
    out = network(np.where(moves, 0, z), matrices, layer.activation)
    s = layer.clip * np.tanh(out[..., : z.shape[-1]] / layer.clip)
    t = out[..., z.shape[-1] :]
    moved = (z + t) * np.exp(s) if layer.shift == "before" else z * np.exp(s) + t
    return np.where(moves, moved, z), np.where(moves, s, 0).sum(axis=-1)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize("dim", [1, 2, 5])
@pytest.mark.parametrize("shift", ["after", "before"])
def test_the_equation(shift, dim, depth, activation, rng):
    layer = NVP(hidden=7, depth=depth, clip=0.8, activation=activation, shift=shift)
    chain = one_block(layer, 3, dim)
    (params,) = normal_params(chain, rng)
    z = rng.standard_normal((6, dim))
    value, log_det = evaluate(*chain.forward_and_log_det(fixed(z), [params]))
    expected, total = z, 0
    half = (dim + 1) // 2
    for k in range(3):
        matrices = [params[name].get_value()[k] for name in sorted(params)]
        moves = np.arange(dim) < half if k % 2 else np.arange(dim) >= dim - half
        expected, one = coupled(expected, matrices, layer, moves)
        total = total + one
    np.testing.assert_allclose(value, expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(log_det, total, rtol=0, atol=1e-12)


def test_halves_take_turns(rng):
    points = rng.standard_normal((4, 2))
    patterns = []
    for count in (1, 2):
        chain = one_block(NVP(hidden=4), count, 2)
        params = normal_params(chain, rng)
        for loop in ("unroll", "scan"):
            _, _, rows = jacobian(
                lambda z, c=chain, p=params, o=loop: c.forward_and_log_det(z, p, loop=o), points
            )
            patterns.append(np.any(rows != 0, axis=0).tolist())
    # One layer moves the last coordinate; two mix everything.
    assert patterns[:2] == [[[True, False], [True, True]]] * 2
    assert patterns[2:] == [[[True, True], [True, True]]] * 2


@pytest.mark.parametrize("word", ["nvp", "iaf", "maf", "nsf"])
def test_draws_and_densities_know_the_place_in_a_block(word, rng):
    chain = build_chain(f"{word}(hidden=4)*3", 3)
    (params,) = normal_params(chain, rng)
    arrays = [{name: value.get_value() for name, value in params.items()}]
    points = rng.standard_normal((4, 3))
    for one in ("forward_and_log_det", "inverse_and_log_det"):
        expected = evaluate(*getattr(chain, one)(fixed(points), [params]))
        for value, graph in zip(
            getattr(numpy_maps, one)(chain, points, arrays), expected, strict=True
        ):
            np.testing.assert_allclose(value, graph, rtol=1e-12, atol=1e-13)


def test_in_one_dimension_the_map_is_affine(rng):
    chain = one_block(NVP(), 3, 1)
    params = normal_params(chain, rng)
    _, _, rows = jacobian(
        lambda z: chain.forward_and_log_det(z, params), rng.standard_normal((9, 1))
    )
    np.testing.assert_allclose(rows[1:], rows[:-1], rtol=1e-14)
    assert "affine" in NVP().note(1)
    assert NVP().note(2) == ""


@pytest.mark.parametrize("word", ["nvp", "iaf", "maf", "nsf"])
@pytest.mark.parametrize("dim", [2, 20])
def test_with_the_default_jitter_the_start_is_near_the_identity(word, dim, rng):
    chain = build_chain(f"{word}*8", dim)
    z = rng.standard_normal((50, dim))
    params = shared_params(chain.initial_params(jitter=0.01, rng=rng, dtype="float64"))
    value, log_det = evaluate(*chain.forward_and_log_det(fixed(z), params))
    assert np.abs(value - z).max() < 0.5
    assert np.sqrt(np.mean((value - z) ** 2)) < 0.1
    assert np.abs(log_det).max() < 0.1 * dim


def test_no_layer_stretches_more_than_its_clip(rng):
    chain = one_block(NVP(clip=0.5), 4, 6)
    (params,) = normal_params(chain, rng)
    for matrix in params.values():
        matrix.set_value(1e3 * matrix.get_value())
    _, log_det = chain.forward_and_log_det(fixed(rng.standard_normal((20, 6))), [params])
    (log_det,) = evaluate(log_det)
    assert np.abs(log_det).max() <= 4 * 3 * 0.5


def test_options_in_a_formula():
    (block,) = build_chain("nvp(hidden=16, depth=2, clip=0.5, activation=relu)*10", 3).blocks
    assert block.layer == NVP(hidden=16, depth=2, clip=0.5, activation="relu")
    assert str(Formula("nvp(hidden=32)*3")) == "nvp*3"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("hidden=0", "hidden of nvp must be an integer from 1 to 65,536, got 0"),
        ("depth=9", "depth of nvp must be an integer from 0 to 8, got 9"),
        ("clip=0", "clip of nvp must be positive and finite, got 0"),
        ("shift=inside", "shift of nvp must be one of after, before, got 'inside'"),
        ("activation=sine", "activation of nvp must be one of relu, silu, tanh, got 'sine'"),
    ],
)
def test_options_that_make_no_network(options, message):
    with pytest.raises(FormulaError) as caught:
        Formula(f"nvp({options})")
    assert message in str(caught.value)
    name, _, value = options.partition("=")
    with pytest.raises(ArgumentError, match=name):
        NVP(**{name: value if name in ("activation", "shift") else int(value)})
