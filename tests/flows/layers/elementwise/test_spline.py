"""Rational-quadratic splines, alone and in a coupling."""

import numpy as np
import pytensor.tensor as pt
import pytest
from scipy.integrate import trapezoid
from scipy.special import softmax

from flow_cases import evaluate, fixed, jacobian, normal_params, one_block
from pymc_flows.errors import ArgumentError
from pymc_flows.flows import NSF, Spline, build_chain
from pymc_flows.flows.layers.elementwise.rational_quadratic import raw_of_knots

BOUND = 3.0
LAYER = Spline(bins=5, bound=BOUND)


def knots(raw, bins, bound):
    """Positions and slopes of the knots, from the text of Durkan et al., section 3.1."""
    corners = []
    for part in (raw[:bins], raw[bins : 2 * bins]):
        shares = 1e-3 + (1 - 1e-3 * bins) * softmax(part)
        corners.append(np.concatenate([[0], np.cumsum(shares)]) * 2 * bound - bound)
    shift = np.log(np.expm1(1 - 1e-3))
    slopes = 1e-3 + np.log1p(np.exp(raw[2 * bins :] + shift))
    return *corners, np.concatenate([[1], slopes, [1]])


def rational_quadratic(z, raw, bins, bound):
    """Value and slope at one number: equations 4 and 5 of Durkan et al., as they stand there."""
    if abs(z) >= bound:
        return z, 1.0
    x, y, d = knots(raw, bins, bound)
    k = np.flatnonzero(z >= x[:-1])[-1]
    s = (y[k + 1] - y[k]) / (x[k + 1] - x[k])
    xi = (z - x[k]) / (x[k + 1] - x[k])
    below = s + (d[k + 1] + d[k] - 2 * s) * xi * (1 - xi)
    value = y[k] + (y[k + 1] - y[k]) * (s * xi**2 + d[k] * xi * (1 - xi)) / below
    above = d[k + 1] * xi**2 + 2 * s * xi * (1 - xi) + d[k] * (1 - xi) ** 2
    return value, s**2 * above / below**2


def spline_of(raw, layer=LAYER):
    """Functions of points (n,) with the raw parameters of one coordinate."""
    chain = one_block(layer, 1, 1)
    params = [{"bins": fixed(raw[None, None])}]

    def run(points, direction="forward"):
        one = getattr(chain, f"{direction}_and_log_det")
        value, log_det = evaluate(*one(fixed(np.asarray(points)[:, None]), params))
        return value[:, 0], log_det

    return run


@pytest.mark.parametrize("bins", [2, 3, 8])
def test_the_equation(bins, rng):
    raw = 2 * rng.standard_normal(3 * bins - 1)
    points = np.concatenate([rng.uniform(-4, 4, 200), [0, -BOUND, BOUND]])
    value, log_det = spline_of(raw, Spline(bins=bins, bound=BOUND))(points)
    expected = [rational_quadratic(z, raw, bins, BOUND) for z in points]
    np.testing.assert_allclose(value, [v for v, _ in expected], rtol=0, atol=1e-12)
    np.testing.assert_allclose(log_det, np.log([s for _, s in expected]), rtol=0, atol=1e-12)


def test_value_and_slope_are_continuous_at_knots_and_edges(rng):
    raw = rng.standard_normal(14)
    run = spline_of(raw)
    x, y, slopes = knots(raw, 5, BOUND)
    step = 1e-9
    for side in (-step, 0, step):
        value, log_det = run(x + side)
        np.testing.assert_allclose(value, y, rtol=0, atol=20 * step)
        np.testing.assert_allclose(np.exp(log_det), slopes, rtol=1e-5)
    back, log_det = run(y, "inverse")
    np.testing.assert_allclose(back, x, rtol=0, atol=1e-12)
    np.testing.assert_allclose(np.exp(log_det), slopes, rtol=1e-10)


def test_outside_of_the_box_nothing_happens_and_gradients_are_finite(rng):
    chain = one_block(LAYER, 2, 2)
    (params,) = normal_params(chain, rng)
    points = fixed([[BOUND, -BOUND], [7.0, -1e8], [1e300, -1e300]])
    for one in (chain.forward_and_log_det, chain.inverse_and_log_det):
        value, log_det = one(points, [params])
        slopes = pt.grad(value.sum() + log_det.sum(), [points, params["bins"]])
        value, log_det, by_point, by_bins = evaluate(value, log_det, *slopes)
        np.testing.assert_array_equal(value, points.get_value())
        np.testing.assert_array_equal(log_det, 0)
        np.testing.assert_array_equal(by_point, 1)
        np.testing.assert_array_equal(by_bins, 0)


@pytest.mark.parametrize("size", [3.0, 30.0, 1e6])
def test_the_inverse_is_stable_for_steep_splines(size, rng):
    for _ in range(5):
        run = spline_of(size * rng.choice([-1, 1], 14))
        y = np.linspace(-BOUND, BOUND, 401)
        z, log_det = run(y, "inverse")
        assert np.all(np.diff(z) >= 0)
        again, log_det_again = run(z)
        # What the map returns is as good as the rounding of z allows.
        allowed = 1e-13 * (1 + np.exp(np.maximum(log_det, log_det_again)))
        assert np.all(np.abs(again - y) <= allowed)


def test_the_density_integrates_to_one_in_one_dimension(rng):
    raw = rng.standard_normal(14)
    run = spline_of(raw)

    # Between knots the density is smooth: Gauss–Legendre on each piece. Pieces are narrow before
    # and after the map, for it may be flat or steep near a knot.
    x, y, _ = knots(raw, 5, BOUND)
    shares = np.linspace(0, 1, 33)[:, None]
    z = np.array([-12, *x, 12])
    y = np.array([-12, *y, 12])
    images, _ = run((z[:-1] + shares * np.diff(z)).ravel())
    edges = np.union1d(images, y[:-1] + shares * np.diff(y))
    nodes, weights = np.polynomial.legendre.leggauss(16)
    half = np.diff(edges)[:, None] / 2
    points = ((edges[:-1] + edges[1:])[:, None] / 2 + half * nodes).ravel()
    z, log_det = run(points, "inverse")
    density = np.exp(-0.5 * z**2 - log_det) / np.sqrt(2 * np.pi)
    assert np.sum((half * weights).ravel() * density) == pytest.approx(1, abs=1e-8)


def test_the_density_of_a_coupling_integrates_to_one(rng):
    chain = one_block(NSF(hidden=6, bins=4), 2, 2)
    params = normal_params(chain, rng)
    axis = np.linspace(-6, 6, 481)
    points = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1)
    z0, log_det = evaluate(*chain.inverse_and_log_det(fixed(points), params))
    density = np.exp(-0.5 * (z0**2).sum(axis=-1) - log_det) / (2 * np.pi)
    assert trapezoid(trapezoid(density, axis), axis) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("depth", [0, 2])
@pytest.mark.parametrize("dim", [1, 2, 5])
def test_the_equation_of_a_coupling(dim, depth, rng):
    layer = NSF(hidden=6, depth=depth, bins=4, bound=BOUND)
    chain = one_block(layer, 2, dim)
    (params,) = normal_params(chain, rng)
    points = rng.standard_normal((5, dim))
    value, log_det = evaluate(*chain.forward_and_log_det(fixed(points), [params]))
    n_moved = (dim + 1) // 2
    for n, point in enumerate(points):
        total = 0
        for k in range(2):
            point = point[::-1] if k else point
            x = point[: dim - n_moved] if dim > 1 else np.zeros(1)
            for name in sorted(params):
                raw = params[name].get_value()[k]
                x = x @ raw[:-1] / np.sqrt(len(raw) - 1) + raw[-1]
                x = x if name == max(params) else np.tanh(x)
            new = point.copy()
            for i, raw in enumerate(x.reshape(n_moved, -1)):
                at = dim - n_moved + i
                new[at], slope = rational_quadratic(point[at], raw, 4, BOUND)
                total += np.log(slope)
            point = new[::-1] if k else new
        np.testing.assert_allclose(value[n], point, rtol=0, atol=1e-12)
        assert log_det[n] == pytest.approx(total, abs=1e-12)


def test_halves_take_turns(rng):
    points = rng.standard_normal((2, 2))
    for loop in ("unroll", "scan"):
        for count, pattern in ((1, [[True, False], [True, True]]), (2, [[True] * 2] * 2)):
            chain = one_block(NSF(hidden=4, depth=1, bins=3), count, 2)
            params = normal_params(chain, rng)
            _, _, rows = jacobian(
                lambda z, c=chain, p=params, o=loop: c.forward_and_log_det(z, p, loop=o), points
            )
            assert np.any(rows != 0, axis=0).tolist() == pattern


def test_options():
    spline, coupling = build_chain("spline(bins=16, bound=8.0)-nsf(hidden=8, bins=4)*2", 3).blocks
    assert spline.layer == Spline(bins=16, bound=8.0)
    assert coupling.layer == NSF(hidden=8, bins=4)
    assert NSF().note(1) == "in 1 dimension a spline"
    for cls in (Spline, NSF):
        with pytest.raises(ArgumentError, match=f"bins of {cls.word} .* from 2 to 256, got 1"):
            cls(bins=1)
        with pytest.raises(ArgumentError, match=f"bound of {cls.word} must be positive"):
            cls(bound=-1.0)


def test_raw_parameters_of_given_knots():
    x, y = np.array([-2.0, 0.5, 2.0]), np.array([-1.0, 0.0, 2.5])
    slopes = np.array([0.4, 1.0, 3.0])
    raw = raw_of_knots(x, y, slopes, BOUND)
    found_x, found_y, found_slopes = knots(raw, 4, BOUND)
    np.testing.assert_allclose(found_x[1:-1], x, atol=1e-12)
    np.testing.assert_allclose(found_y[1:-1], y, atol=1e-12)
    np.testing.assert_allclose(found_slopes[1:-1], slopes, rtol=1e-12)
    narrow = raw_of_knots(x, np.array([0.0, 1e-9, 2e-9]), slopes, BOUND)
    assert (np.diff(knots(narrow, 4, BOUND)[1]) > 0).all()
