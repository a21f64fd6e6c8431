"""Points are where each layer puts them; the animation is a file of such pictures."""

import numpy as np
import pymc as pm
import pytest
from scipy import stats

import pymc_flows as pmf
from pymc_flows import plots
from pymc_flows.errors import ArgumentError, FlowShapeError
from pymc_flows.flows.frame import Frame

plt = pytest.importorskip("matplotlib.pyplot")
Image = pytest.importorskip("PIL.Image")

FRAME = Frame(np.array([1.0, 2.0, -1.0]), np.array([1.0, 3.0, 2.0]))


def flow(formula, **options):
    with pm.Model() as model:
        pm.Normal("x")
        pm.LogNormal("s", shape=2)
    return pmf.NormalizingFlow(formula, model=model, start=FRAME, random_seed=1, **options)


def titles(axes):
    return [ax.get_title() for ax in axes]


def test_every_panel_is_one_layer_further():
    params = {0: {"rho": np.log(np.expm1([2.0, 3.0, 4.0]))}, 1: {"loc": [1.0, 0, -1]}}
    approx = flow("scale-loc-hh*2-planar*2", params=params)
    z = np.random.default_rng(0).normal(size=(50, 3))
    axes = plots.layers(approx, points=z, coordinates=(2, 0))
    assert titles(axes) == ["base", "1: scale", "2: loc", "3: hh*2", "4: planar", "5: planar"]
    seen = [np.asarray(ax.collections[0].get_offsets()) for ax in axes]
    np.testing.assert_allclose(seen[0], FRAME.forward(z)[:, [2, 0]])
    np.testing.assert_allclose(seen[1], FRAME.forward(z * [2, 3, 4])[:, [2, 0]])
    np.testing.assert_allclose(seen[2], FRAME.forward(z * [2, 3, 4] + [1, 0, -1])[:, [2, 0]])
    np.testing.assert_allclose(seen[-1], approx.forward(z)[:, [2, 0]])
    figure = axes[0].figure
    assert (figure.get_supxlabel(), figure.get_supylabel()) == ("s_log__[1]", "x")
    assert len({(ax.get_xlim(), ax.get_ylim()) for ax in axes}) == 1


def test_the_points_of_the_base_are_normal():
    axes = plots.layers(flow("loc"))
    z = FRAME.inverse(np.c_[np.asarray(axes[0].collections[0].get_offsets()), np.zeros(3_000)])[
        :, :2
    ]
    assert stats.kstest((z**2).sum(1), stats.chi2(2).cdf).statistic < 1e-3
    assert abs(z.mean(0)).max() < 0.01
    colours = axes[0].collections[0].get_facecolors()
    np.testing.assert_array_equal(colours, axes[1].collections[0].get_facecolors())


def test_of_many_layers_some_are_shown():
    figure = plt.figure()
    axes = plots.layers(flow("planar*20"), figure, max_panels=5, limits=(-3, 3))
    assert titles(axes) == ["base", "5: planar", "10: planar", "15: planar", "20: planar"]
    assert figure.axes == axes.tolist()
    assert axes[3].get_xlim() == (-3, 3)


def test_the_animation_shows_every_layer(tmp_path):
    path = plots.layers_animation(
        flow("scale-loc"), tmp_path / "flow.gif", frames_per_layer=3, fps=5, limits=(-9, 9)
    )
    with Image.open(path) as picture:
        assert picture.n_frames == 1 + 2 * 3  # the same picture again makes one last longer
        durations, pictures = [], []
        for i in range(picture.n_frames):
            picture.seek(i)
            durations.append(picture.info["duration"])
            pictures.append(picture.convert("RGB").tobytes())
    assert durations == [1_000, *[200] * 5, 1_000]  # a pause of 0.8 s at each end
    assert len(set(pictures)) == 7
    assert plt.get_fignums() == []


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"coordinates": (0, 3)}, ArgumentError, r"from 0 to 2, got \(0, 3\)"),
        ({"coordinates": (1, 1)}, ArgumentError, "two different ones"),
        ({"points": np.zeros((5, 2))}, FlowShapeError, r"expected points of shape \(n, 3\)"),
        ({"max_panels": 1}, ArgumentError, "max_panels must be at least 2"),
    ],
)
def test_what_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        plots.layers(flow("loc"), **options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("flow.mp4", {}, "path must end in .gif"),
        ("flow.gif", {"fps": 0}, "fps must be at least 1"),
        ("flow.gif", {"frames_per_layer": 0}, "frames_per_layer and fps"),
    ],
)
def test_what_no_animation_can_be_made_of(tmp_path, name, options, message):
    with pytest.raises(ArgumentError, match=message):
        plots.layers_animation(flow("loc"), tmp_path / name, **options)
    assert list(tmp_path.iterdir()) == []
