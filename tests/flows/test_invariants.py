"""What every flow must fulfil, alone, repeated and in a chain."""

import pickle

import numpy as np
import pytensor.tensor as pt
import pytest

from flow_cases import (
    LAYERS,
    Stretch,
    chains,
    compiled,
    evaluate,
    fixed,
    flat,
    jacobian,
    layers,
    loops,
    normal_params,
    one_block,
    shared_params,
)
from pymc_flows.errors import NotInvertibleError
from pymc_flows.flows import FLOWS, Block, FusedFlow, build_chain, register_flow
from pymc_flows.flows.state import base_log_prob

# Flows that have no parameters, or are not the identity at jitter 0.
NO_IDENTITY = {"hh", "loft", "perm", "stretch", "tail"}
EPS = np.finfo("float64").eps


def norm(points):
    return np.linalg.norm(points, axis=-1)


def test_every_registered_flow_has_a_case():
    ours = {word for word, cls in FLOWS.items() if cls.__module__.startswith("pymc_flows.")}
    assert ours <= {layer.word for layer in LAYERS}


def test_a_flow_of_the_user_enters_formulas_once_registered(monkeypatch):
    monkeypatch.setitem(FLOWS, "stretch", None)
    del FLOWS["stretch"]
    register_flow(Stretch)
    chain = build_chain("stretch(gain=2.0)*2-loc", 3)
    assert chain.blocks[0] == Block(Stretch(gain=2.0), 2)
    z, log_det = chain.forward_and_log_det(
        np.zeros(3), chain.initial_params(jitter=0, rng=np.random.default_rng(0), dtype="float64")
    )
    # At 0 the slope is 1 + gain softplus(0) in each of two layers and three coordinates.
    z, log_det = evaluate(z, log_det)
    assert z.tolist() == [0, 0, 0]
    assert log_det == pytest.approx(6 * np.log1p(2 * np.log(2)), rel=1e-14)


def derivatives(function, for_rows, for_slopes):
    """Jacobians of a map at points (n, dim), and gradients of a log density at others (m, dim).

    ``function`` gives values, log-determinants and log densities. Returned are the values (n, dim),
    log-determinants (n,) and Jacobians (n, dim, dim) at the first points, which are repeated dim
    times, so that one gradient gives everything; at the others values, log densities and gradients.
    """
    n, dim = for_rows.size, for_rows.shape[-1]
    points = fixed(np.concatenate([np.repeat(for_rows, dim, axis=0), for_slopes]))
    value, log_det, log_q = function(points)
    cost = (value[:n] * np.tile(np.eye(dim), (len(for_rows), 1))).sum() + log_q[n:].sum()
    value, log_det, log_q, slopes = evaluate(value, log_det, log_q, pt.grad(cost, points))
    rows = slopes[:n].reshape(-1, dim, dim)
    return (value[:n:dim], log_det[:n:dim], rows), (value[n:], log_q[n:], slopes[n:])


@pytest.mark.parametrize("chain", chains())
def test_log_det_is_that_of_the_autodiff_jacobian_and_the_inverse_leads_back(chain, rng):
    params = normal_params(chain, rng)
    draws = rng.standard_normal((26, chain.dim)) * np.repeat([1, 2], (6, 20))[:, None]
    y, log_det, rows = jacobian(lambda z: chain.forward_and_log_det(z, params), draws)
    assert_log_det(log_det, rows)
    if not chain.has_inverse:
        return

    def inverse(points):
        z, log_det = chain.inverse_and_log_det(points, params)
        return z, log_det, base_log_prob(z) - log_det

    near, far = rng.standard_normal((6, chain.dim)), rng.standard_normal((60, chain.dim))
    far *= (np.geomspace(1e-3, 1e3, 60) / norm(far))[:, None]
    far[0] = 0
    (_, inverse_log_det, inverse_rows), back = derivatives(inverse, near, np.concatenate([y, far]))
    assert_log_det(-inverse_log_det, inverse_rows)
    log_q = -0.5 * (norm(draws) ** 2 + chain.dim * np.log(2 * np.pi)) - log_det
    assert_as_good_as_their_condition(draws, y, log_q, rows, [part[:26] for part in back])
    assert_forward_returns(chain, params, far, back[0][26:])


def assert_log_det(log_det, rows):
    np.testing.assert_allclose(log_det, np.linalg.slogdet(rows).logabsdet, rtol=0, atol=1e-9)


def assert_as_good_as_their_condition(draws, y, log_q, rows, back):
    """Draws that came back, and log densities on the way."""
    z, log_q_again, slope = back
    allowed = 100 * EPS * (1 + norm(y))
    stretch = np.linalg.norm(np.linalg.inv(rows), 2, axis=(1, 2))
    assert np.all(norm(z - draws) <= allowed * np.maximum(1, stretch))
    assert np.all(np.abs(log_q_again - log_q) <= allowed * np.maximum(1, norm(slope)))


def assert_forward_returns(chain, params, y, z):
    (again,) = evaluate(chain.forward_and_log_det(fixed(z), params)[0])
    assert np.all(norm(again - y) <= 1e-12 * (1 + norm(y) + norm(z)))


@pytest.mark.parametrize("chain", chains((2, 5), with_inverse=True))
def test_the_score_is_the_gradient_of_log_q(chain, rng):
    """By the chain rule: J' score = grad of (ln q0 - log_det) by the base draw."""
    params = normal_params(chain, rng)
    draws = rng.standard_normal((6, chain.dim))

    def forward(z):
        y, log_det = chain.forward_and_log_det(z, params)
        return y, log_det, base_log_prob(z) - log_det

    (_, _, rows), (_, _, by_draw) = derivatives(forward, draws, draws)
    scores = [chain.score(fixed(draws), params, loop=loop) for loop in loops(chain)]
    expected = np.linalg.solve(rows.transpose(0, 2, 1), by_draw[..., None])[..., 0]
    tolerance = 1e-12 * np.linalg.cond(rows)[:, None] * (1 + norm(expected)[:, None])
    for score in evaluate(*scores):
        assert np.all(np.abs(score - expected) <= tolerance)


@pytest.mark.parametrize("chain", chains(dims=(3,)))
def test_batches_are_loops_over_their_points(chain, rng):
    params = normal_params(chain, rng)
    maps = [chain.forward_and_log_det]
    if chain.has_inverse:
        maps.append(chain.inverse_and_log_det)
    single = pt.dvector("single")
    one = compiled([single], [output for one_map in maps for output in one_map(single, params)])
    for shape in ((), (4,), (3, 2)):
        z = rng.standard_normal((*shape, 3))
        outputs = [output for one_map in maps for output in one_map(fixed(z), params)]
        assert [output.type.shape for output in outputs] == [(*shape, 3), shape] * len(maps)
        found = evaluate(*outputs)
        points = z.reshape(-1, 3)
        expected = [np.array(each) for each in zip(*map(one, points), strict=True)]
        for value, by_point in zip(found[::2], expected[::2], strict=True):
            np.testing.assert_allclose(value.reshape(-1, 3), by_point, rtol=1e-13)
        for log_det, by_point in zip(found[1::2], expected[1::2], strict=True):
            np.testing.assert_allclose(log_det.ravel(), by_point, rtol=0, atol=1e-13)


@pytest.mark.parametrize("chain", chains(dims=(1, 3)))
def test_scan_equals_unroll_equals_the_layers_by_hand(chain, rng):
    params = normal_params(chain, rng)
    points = fixed(rng.standard_normal((4, chain.dim)))
    steps = [
        (block.layer, {name: value[k] for name, value in block.layer.constrain(raw).items()})
        for block, raw in zip(chain.blocks, params, strict=True)
        for k in range(block.count)
    ]
    directions = ["forward_and_log_det"] + ["inverse_and_log_det"] * chain.has_inverse
    for direction in directions:
        by_hand, total = points, 0
        for layer, values in steps if direction.startswith("forward") else reversed(steps):
            by_hand, log_det = getattr(layer, direction)(by_hand, values)
            total = total + log_det
        whole = getattr(chain, direction)
        by_loop = [whole(points, params, loop=loop) for loop in loops(chain)]
        assert by_loop[-1][0].type.shape == (4, chain.dim)
        expected, total, *values = evaluate(by_hand, total, *sum(by_loop, ()))
        for value, by_layers in zip(values, [expected, total] * len(by_loop), strict=True):
            np.testing.assert_allclose(value, by_layers, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("layer", layers(lambda layer: not isinstance(layer, FusedFlow)))
def test_gradients_pass_through_a_scan(layer, rng):
    chain = one_block(layer, 3, 2)
    params = normal_params(chain, rng)
    points = fixed(rng.standard_normal((4, 2)))
    gradients = []
    for loop in ("unroll", "scan"):
        z, log_det = chain.forward_and_log_det(points, params, loop=loop)
        gradients += pt.grad(pt.sin(z).sum() + log_det.sum(), [points, *flat(params)])
    values = evaluate(*gradients)
    half = len(values) // 2
    for unrolled, scanned in zip(values[:half], values[half:], strict=True):
        np.testing.assert_allclose(scanned, unrolled, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("layer", layers())
def test_promises(layer, rng):
    chain = one_block(layer, 1, 3)
    params = normal_params(chain, rng)
    points = rng.standard_normal((5, 3))
    _, log_det, rows = jacobian(lambda z: chain.forward_and_log_det(z, params), points)
    coupling = np.abs(rows * (1 - np.eye(3))).max()
    bend = np.abs(rows - rows[0]).max()
    assert layer.is_volume_preserving == bool(np.all(log_det == 0))
    assert layer.is_elementwise == bool(coupling == 0)
    assert layer.is_affine == bool(bend < 1e-14)
    for promise in ("is_volume_preserving", "is_elementwise", "is_affine", "has_inverse"):
        assert getattr(chain, promise) is getattr(layer, promise)


@pytest.mark.parametrize("layer", layers(lambda layer: not layer.has_inverse))
def test_a_missing_inverse_is_an_error(layer):
    chain = one_block(layer, 2, 2)
    params = normal_params(chain, np.random.default_rng(0))
    with pytest.raises(NotInvertibleError, match=layer.word):
        layer.inverse_and_log_det(fixed(np.zeros(2)), {})
    with pytest.raises(NotInvertibleError, match=layer.word):
        chain.inverse_and_log_det(fixed(np.zeros(2)), params)


@pytest.mark.parametrize("layer", layers(lambda layer: layer.word not in NO_IDENTITY))
@pytest.mark.parametrize("dim", [1, 2, 20])
def test_without_jitter_the_map_is_the_identity_with_a_gradient(layer, dim, rng):
    chain = one_block(layer, 3, dim)
    params = shared_params(chain.initial_params(jitter=0, rng=rng, dtype="float64"))
    z = rng.standard_normal((9, dim))
    z_new, log_det = chain.forward_and_log_det(fixed(z), params)
    # A loss with its minimum elsewhere.
    gradients = pt.grad(pt.sqr(z_new - 2).sum() - log_det.sum(), flat(params))
    z_new, log_det, *gradients = evaluate(z_new, log_det, *gradients)
    np.testing.assert_allclose(z_new, z, rtol=0, atol=1e-14)
    np.testing.assert_allclose(log_det, 0, rtol=0, atol=1e-14)
    assert max(np.abs(gradient).max(initial=0) for gradient in gradients) > 1e-2


@pytest.mark.parametrize("layer", layers())
def test_reference_params_are_float64_of_the_declared_shape(layer):
    for dim in (1, 4):
        block = Block(layer, 3)
        reference = layer.reference_params(dim, 3, np.random.default_rng(0))
        shapes = block.param_shapes(dim)
        assert list(shapes) == sorted(reference)
        assert {name: value.shape for name, value in reference.items()} == shapes
        assert {value.dtype for value in reference.values()} <= {np.dtype("float64")}


@pytest.mark.parametrize("layer", layers())
def test_a_stack_is_constrained_as_its_layers_are(layer, rng):
    shapes = layer.param_shapes(3)
    raw = {name: rng.standard_normal((2, 5, *shape)) for name, shape in shapes.items()}
    stacked = layer.constrain({name: fixed(value) for name, value in raw.items()})
    # The third of the repeats is like the first for every period up to two.
    assert layer.period <= 2
    single = layer.constrain({name: fixed(value[1, 2]) for name, value in raw.items()})
    assert stacked.keys() == single.keys()
    for whole, part in zip(evaluate(*stacked.values()), evaluate(*single.values()), strict=True):
        assert whole.shape[:2] == (2, 5)
        np.testing.assert_allclose(whole[1, 2], part, rtol=1e-15)


@pytest.mark.parametrize("layer", layers())
def test_layers_blocks_and_chains_are_values(layer):
    chain = one_block(layer, 2, 3)
    for value in (layer, chain.blocks[0], chain):
        again = pickle.loads(pickle.dumps(value))
        assert again == value
        assert hash(again) == hash(value)
    assert chain != one_block(layer, 3, 3)
    assert chain != one_block(layer, 2, 4)
    assert [other for other in LAYERS if other == layer] == [layer]
