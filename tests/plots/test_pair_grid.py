"""Pairs of coordinates are the draws, and those of a reference."""

import numpy as np
import pytest
import xarray as xr

from pymc_flows import plots
from pymc_flows.errors import ArgumentError, FlowShapeError

plt = pytest.importorskip("matplotlib.pyplot")

Z = np.random.default_rng(0).normal(size=(1, 500, 3))
NAMED = xr.Dataset(
    {"mu": (("chain", "draw"), Z[..., 0]), "theta": (("chain", "draw", "school"), Z[..., 1:])},
    coords={"school": ["A", "B"]},
)


def test_each_pair_below_the_diagonal():
    axes = plots.pairs(Z)
    assert axes.shape == (3, 3)
    assert all((axes[i, j] is None) == (j > i) for i, j in np.ndindex(3, 3))
    for i, j in [(1, 0), (2, 0), (2, 1)]:
        [dots] = axes[i, j].collections
        np.testing.assert_array_equal(dots.get_offsets(), Z[0][:, [j, i]])
    assert [ax.get_xlabel() for ax in axes[2]] == ["z[0]", "z[1]", "z[2]"]
    assert [ax.get_ylabel() for ax in axes[:, 0]] == ["", "z[1]", "z[2]"]
    assert axes[0, 0].figure.legends == []
    low, high = axes[2, 1].get_xlim()
    assert 0.99 <= ((Z[0, :, 1] > low) & (Z[0, :, 1] < high)).mean() <= 1


def test_a_reference_is_drawn_below_the_draws():
    reference = xr.DataTree.from_dict({"posterior": NAMED * 2})
    figure = plt.figure()
    axes = plots.pairs(NAMED, figure, reference=reference, labels=("flow", "NUTS"))
    under, over = sorted(axes[2, 0].collections, key=lambda dots: dots.get_zorder())
    np.testing.assert_array_equal(over.get_offsets(), Z[0][:, [0, 2]])
    np.testing.assert_array_equal(under.get_offsets(), 2 * Z[0][:, [0, 2]])
    assert [ax.get_xlabel() for ax in axes[2]] == ["mu", "theta[A]", "theta[B]"]
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["flow", "NUTS"]
    heights = [sum(p.get_xy()[:, 1].max() > 0 for p in axes[i, i].patches) for i in range(3)]
    assert heights == [2, 2, 2]


def test_many_draws_are_thinned_and_many_coordinates_cut():
    z = np.random.default_rng(1).normal(size=(7_000, 4))
    with pytest.warns(UserWarning, match="showing the first 2 of 4 coordinates; a larger"):
        axes = plots.pairs(z, max_coordinates=2)
    assert axes.shape == (2, 2)
    [dots] = axes[1, 0].collections
    np.testing.assert_array_equal(dots.get_offsets(), z[::4, :2])


@pytest.mark.parametrize(
    ("samples", "options", "error", "message"),
    [
        (np.zeros(5), {}, FlowShapeError, r"got shape \(5,\)"),
        (Z, {"var_names": "mu"}, TypeError, "got ndarray"),
        (NAMED, {"var_names": "nu"}, ValueError, "expected names among: mu, theta"),
        (NAMED, {"reference": NAMED[["mu"]]}, ArgumentError, r"got 1; what differs: theta\[A\]"),
        (np.zeros((0, 2)), {}, ArgumentError, "expected draws of at least one coordinate"),
    ],
)
def test_what_is_refused(samples, options, error, message):
    with pytest.raises(error, match=message):
        plots.pairs(samples, **options)
    assert plt.get_fignums() == []
