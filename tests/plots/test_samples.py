"""Dots are the draws; density estimates are checked against the exact density."""

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from pymc_flows import plots, targets
from pymc_flows.errors import FlowShapeError

plt = pytest.importorskip("matplotlib.pyplot")

NORMAL = targets.gaussian([0.0, 0.0], np.eye(2), name="normal")
DRAWS = np.random.default_rng(0).normal(size=(2, 30, 2))
FLAT = DRAWS.reshape(-1, 2)


def dataset(**variables):
    """Chains and draws of variables, as PyMC returns them."""
    return xr.Dataset(
        {
            name: (("chain", "draw", *(f"{name}_dim_{i}" for i in range(np.ndim(v) - 2))), v)
            for name, v in variables.items()
        }
    ).pipe(lambda ds: ds.assign_coords({dim: np.arange(ds.sizes[dim]) for dim in ds.sizes}))


VECTOR = dataset(pot1=DRAWS)
SCALARS = dataset(mu=DRAWS[..., 0], tau=DRAWS[..., 1])


@pytest.mark.parametrize(
    ("samples", "var_names", "labels"),
    [
        (FLAT, None, ("z[0]", "z[1]")),
        (DRAWS, None, ("z[0]", "z[1]")),
        (FLAT.tolist(), None, ("z[0]", "z[1]")),
        (VECTOR, None, ("pot1[0]", "pot1[1]")),
        (VECTOR["pot1"], None, ("pot1[0]", "pot1[1]")),
        (VECTOR.transpose("pot1_dim_0", "draw", "chain"), None, ("pot1[0]", "pot1[1]")),
        (VECTOR.assign_coords(pot1_dim_0=["a", "b"]), "pot1", ("pot1[a]", "pot1[b]")),
        (SCALARS, None, ("mu", "tau")),
        (SCALARS.merge(VECTOR), ["mu", "tau"], ("mu", "tau")),
        (xr.DataTree.from_dict({"posterior": VECTOR}), None, ("pot1[0]", "pot1[1]")),
        (xr.DataTree.from_dict({"posterior": VECTOR})["posterior"], None, ("pot1[0]", "pot1[1]")),
        (dataset(v=DRAWS[..., None]), "v", ("v[0, 0]", "v[1, 0]")),
    ],
)
def test_draws_are_dots(samples, var_names, labels):
    ax = plots.draws(samples, var_names=var_names, title="NUTS")
    [dots] = ax.collections
    np.testing.assert_array_equal(dots.get_offsets(), FLAT)
    assert (ax.get_xlabel(), ax.get_ylabel()) == labels
    assert ax.get_title() == "NUTS"


def test_draws_options():
    _, ax = plt.subplots()
    assert plots.draws(FLAT, ax, limits=(-5, 5), color="red", alpha=0.5) is ax
    [dots] = ax.collections
    assert ax.get_xlim() == ax.get_ylim() == (-5, 5)
    np.testing.assert_array_equal(dots.get_facecolor(), [[1, 0, 0, 0.5]])


def test_draws_are_fainter_the_more_there_are():
    alphas = [plots.draws(np.zeros((n, 2))).collections[0].get_alpha() for n in (10, 5_000, 10**5)]
    assert alphas == [0.8, 0.3, 0.1]


def test_draws_leave_out_what_is_not_finite():
    with pytest.warns(UserWarning, match="2 of 62 draws are not finite"):
        ax = plots.draws(np.concatenate([FLAT, [[0, np.nan], [np.inf, 0]]]))
    np.testing.assert_array_equal(ax.collections[0].get_offsets(), FLAT)


@pytest.mark.parametrize("plot", [plots.draws, plots.joint_kde])
@pytest.mark.parametrize(
    ("samples", "var_names", "error", "message"),
    [
        (DRAWS[..., 0], None, FlowShapeError, r"got shape \(2, 30\)"),
        (np.zeros((5, 3)), None, FlowShapeError, r"got shape \(5, 3\)"),
        (FLAT, "z", TypeError, "got ndarray"),
        (SCALARS.merge(VECTOR), None, FlowShapeError, r"got mu \(\), tau \(\), pot1 \(2,\)"),
        (SCALARS, "mu", FlowShapeError, r"got mu \(\)"),
        (VECTOR, ["pot2"], ValueError, "expected names among: pot1\ngot 'pot2'"),
    ],
)
def test_samples_are_checked(plot, samples, var_names, error, message):
    with pytest.raises(error, match=message):
        plot(samples, var_names=var_names)
    assert plt.get_fignums() == []


# ---------------------------------------------------------------------- density estimates


def test_joint_kde_regions_hold_their_share_of_the_draws():
    z = targets.pot1.sample(2_000, random_seed=1)
    joint, above, beside = plots.joint_kde(z, levels=10, points=60, title="pot1")
    [contour] = joint.collections
    # A point is in a Path if it is inside any of its closed lines: in the region, here, since no
    # region of pot1's two crescents has a hole.
    shares = [path.contains_points(z).mean() for path in contour.get_paths()]
    np.testing.assert_allclose(shares, np.linspace(0.95, 0.05, 10), atol=0.03)
    assert (joint.get_xlabel(), joint.get_ylabel()) == ("z[0]", "z[1]")
    assert above.get_title() == "pot1"
    assert above.get_xlim() == joint.get_xlim()
    assert beside.get_ylim() == joint.get_ylim()


@pytest.mark.parametrize("axis", [0, 1])
def test_joint_kde_marginals_are_densities(axis):
    z = np.random.default_rng(2).normal([1.0, -2.0], [3.0, 0.5], size=(3_000, 2))
    marginal = plots.joint_kde(z)[1 + axis]
    [line] = marginal.get_lines()
    data = line.get_xydata()
    positions, density = data.T if axis == 0 else data.T[::-1]
    exact = stats.norm([1.0, -2.0][axis], [3.0, 0.5][axis]).pdf(positions)
    np.testing.assert_allclose(density, exact, atol=0.1 * exact.max())
    assert np.trapezoid(density, positions) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(("target", "factor"), [(NORMAL, 1.5), (targets.pot1, 0.6)])
def test_joint_kde_narrows_the_bandwidth_for_modes_far_apart(target, factor):
    z = target.sample(3_000, random_seed=3)

    def error(bw_method):
        [line] = plots.joint_kde(z, bw_method=bw_method, points=40)[1].get_lines()
        positions, density = line.get_xydata().T
        points = np.stack(np.meshgrid(positions, np.linspace(-6, 6, 301)), axis=-1)
        exact = np.exp(target.log_density(points) - target.log_z).sum(0) * 12 / 300
        return np.abs(density - exact).mean() / exact.max()

    assert error(None) < factor * error("scott")
    assert error(None) < 0.02


def test_joint_kde_of_a_frame_is_of_the_draws_in_it():
    # The spread of all draws, some 14 along x, would hide the wave, of period 4.
    z = targets.pot2.sample(4_000, random_seed=4)
    joint, *_ = plots.joint_kde(z, limits=(-3, 3), points=60)
    assert joint.get_xlim() == joint.get_ylim() == (-3, 3)
    x = np.arange(-2, 3)
    wave = np.sin(np.pi / 2 * x)
    bands = joint.collections[0].get_paths()

    def is_coloured(*points):
        return np.any([band.contains_points(np.stack(points, axis=-1)) for band in bands], axis=0)

    assert is_coloured(x, wave).all()
    np.testing.assert_array_equal(is_coloured(x, -wave), [True, False, True, False, True])


def test_joint_kde_goes_where_it_is_told():
    figure = plt.figure()
    left, right = figure.subfigures(1, 2)
    axes = plots.joint_kde(FLAT, right, cmap="Reds")
    assert axes.shape == (3,)
    assert set(right.axes) == set(axes)
    assert left.axes == []
    assert plt.get_fignums() == [figure.number]


def test_joint_kde_survives_repeated_draws():
    z = np.repeat(FLAT, 20, axis=0)
    [line] = plots.joint_kde(z)[1].get_lines()
    assert line.get_ydata().max() < 1  # not a spike at each draw


def test_joint_kde_of_draws_of_equal_density():
    # At the corners of a triangle the density is the same, up to rounding, so that the regions
    # have equal levels; contours need increasing ones.
    angle = 2 * np.pi * np.arange(3) / 3
    corners = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    joint, *_ = plots.joint_kde(corners, points=20, bw_method=0.5)
    [contour] = joint.collections
    assert np.all(np.diff(contour.levels) > 0)
    assert contour.levels[0] == pytest.approx(
        stats.gaussian_kde(corners.T, 0.5)(corners[0]), rel=1e-9
    )


@pytest.mark.parametrize(
    ("samples", "limits"),
    [
        (np.outer(np.arange(50.0), [1, 2]), None),
        (np.ones((50, 2)), None),
        (FLAT[:2], None),
        (np.zeros((0, 2)), None),
        (FLAT, (50, 60)),
    ],
)
def test_joint_kde_refuses_draws_without_a_density(samples, limits):
    with pytest.raises(ValueError, match="expected draws that spread over the plane"):
        plots.joint_kde(samples, limits=limits)
