"""Contours are where the density has the value of their level."""

import subprocess
import sys

import numpy as np
import pytest

from pymc_flows import plots, targets
from pymc_flows.errors import FlowShapeError

plt = pytest.importorskip("matplotlib.pyplot")

NORMAL = targets.gaussian([0.0, 0.0], np.eye(2), name="normal")


def contours(ax):
    """The filled contours of the axes, and the vertices of each."""
    [contour] = ax.collections
    return contour, [path.vertices for path in contour.get_paths()]


def test_density_contour_is_at_the_levels_of_the_density():
    _, axes = plt.subplots(1, 2)
    ax = plots.density_contour(NORMAL, axes[1], limits=(-3, 3), levels=5, points=301)
    assert ax is axes[1]
    contour, regions = contours(ax)
    np.testing.assert_allclose(contour.levels, [0, 0.2, 0.4, 0.6, 0.8, 1])
    assert contour.get_cmap().name == "inferno"
    for low, high, vertices in zip([0.2, 0.4, 0.6], [0.4, 0.6, 0.8], regions[1:4], strict=True):
        radius = np.linalg.norm(vertices, axis=-1)
        inner, outer = np.sqrt(-2 * np.log([high, low]))
        assert np.all(np.isclose(radius, inner, atol=1e-3) | np.isclose(radius, outer, atol=1e-3))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("normal[0]", "normal[1]")
    assert ax.get_title() == "normal"
    assert ax.get_xlim() == ax.get_ylim() == (-3, 3)


def test_density_contour_of_a_function_does_not_depend_on_its_constant():
    ax = plots.density_contour(targets.pot1, limits=((-4, 4), (-3, 3)), points=50)
    shifted = plots.density_contour(
        lambda z: targets.pot1.log_density(z) + 1e4, limits=((-4, 4), (-3, 3)), points=50, title="t"
    )
    assert shifted is not ax
    assert (shifted.get_xlim(), shifted.get_ylim()) == ((-4, 4), (-3, 3))
    assert (shifted.get_xlabel(), shifted.get_title()) == ("z[0]", "t")
    for one, other in zip(contours(ax)[1], contours(shifted)[1], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_density_contour_leaves_unknown_densities_blank():
    def log_density(z):
        return np.where(z[:, 0] < 0, np.nan, NORMAL.log_density(z))

    with pytest.warns(UserWarning, match="50 of 100 log densities are NaN or \\+inf"):
        ax = plots.density_contour(log_density, points=10)
    _, regions = contours(ax)
    assert min(vertices[:, 0].min() for vertices in regions if len(vertices)) > 0


@pytest.mark.parametrize(
    ("log_density", "error", "message"),
    [
        (lambda z: np.full(len(z), -np.inf), ValueError, "expected a positive density"),
        (lambda z: np.full(len(z), np.nan), ValueError, "got 100 log densities of NaN"),
        (lambda z: z, FlowShapeError, r"shape \(100,\) .*\n.*got shape|got shape \(100, 2\)"),
        (targets.gaussian([0.0], [[1.0]]), FlowShapeError, "expected points of shape"),
    ],
)
def test_density_contour_refuses(log_density, error, message):
    with pytest.raises(error, match=message):
        plots.density_contour(log_density, points=10)
    assert plt.get_fignums() == []


@pytest.mark.parametrize("limits", [(5, -5), (0, np.inf), (1, 2, 3), ((0, 1), (1, 1))])
def test_limits_are_checked(limits):
    with pytest.raises(ValueError, match="expected limits"):
        plots.density_contour(NORMAL, limits=limits)


def test_approximation_density_calls_log_prob_once():
    class Approximation:
        shapes = ()

        def log_prob(self, points):
            self.shapes += (points.shape,)
            return NORMAL.log_density(points) - NORMAL.log_z

    approx = Approximation()
    ax = plots.approximation_density(approx, limits=(-3, 3), points=60, levels=4, title="q")
    assert approx.shapes == ((3600, 2),)
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title()) == ("z[0]", "z[1]", "q")
    expected = plots.density_contour(NORMAL, limits=(-3, 3), points=60, levels=4)
    for one, other in zip(contours(ax)[1], contours(expected)[1], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-9)


def test_without_matplotlib():
    program = """
import sys
sys.modules["matplotlib"] = None
from pymc_flows import plots
try:
    plots.draws([[0.0, 0.0]])
except ModuleNotFoundError as error:
    sys.stdout.write(str(error))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.endswith("not installed\ninstall matplotlib"), done.stderr
