"""Lines and dots are the losses, parameters and gradients that were given."""

from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr
from pymc.variational.callbacks import Tracker

from pymc_flows import plots
from pymc_flows.errors import FlowShapeError

plt = pytest.importorskip("matplotlib.pyplot")


def legend_texts(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


# ---------------------------------------------------------------------- history


def test_history_lines():
    losses = np.random.default_rng(5).normal(size=200)
    ax = plots.history(losses, window=5, log_z=1.5)
    each, mean, bound = ax.get_lines()
    np.testing.assert_array_equal(each.get_xydata(), np.stack([np.arange(1, 201), losses], -1))
    np.testing.assert_array_equal(mean.get_xdata(), np.arange(1, 201))
    np.testing.assert_allclose(mean.get_ydata()[2:-2], np.convolve(losses, np.ones(5) / 5, "valid"))
    assert mean.get_ydata()[0] == pytest.approx(losses[:3].mean())
    np.testing.assert_array_equal(bound.get_ydata(), [-1.5, -1.5])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("step", "loss (nats)")
    assert legend_texts(ax) == [
        "each step",
        "mean over 5 steps",
        "± 2 standard errors",
        "−log Z",
    ]
    [band] = ax.collections
    at_100 = band.get_paths()[0].vertices
    low, high = np.unique(at_100[at_100[:, 0] == 100][:, 1])
    half_width = 2 * losses[97:102].std(ddof=1) / np.sqrt(5)
    np.testing.assert_allclose(
        ((low + high) / 2, (high - low) / 2), (losses[97:102].mean(), half_width)
    )


def test_history_of_an_inference():
    class Inference:
        hist = np.array([3.0, 2.0, 1.0])

    _, ax = plt.subplots()
    assert plots.history(Inference(), ax) is ax
    np.testing.assert_array_equal(ax.get_lines()[0].get_ydata(), [3, 2, 1])


def test_history_thins_without_losing_spikes():
    losses = np.random.default_rng(6).normal(size=100_000)
    losses[51_234], losses[77_777] = 40, -30
    ax = plots.history(losses)
    each, mean = ax.get_lines()
    assert len(each.get_xdata()) <= 4_000
    shown = dict(each.get_xydata())
    assert (shown[51_235], shown[77_778]) == (40, -30)
    np.testing.assert_array_equal(each.get_ydata(), losses[each.get_xdata().astype(int) - 1])
    assert (mean.get_xdata()[0], mean.get_xdata()[-1]) == (1, 100_000)
    assert "mean over 2,000 steps" in legend_texts(ax)


def test_history_mean_does_not_remember_a_huge_loss():
    losses = np.concatenate([[1e30], np.full(99, 0.25)])
    _, mean = plots.history(losses, window=3).get_lines()
    np.testing.assert_array_equal(mean.get_ydata()[2:], np.full(98, 0.25))


def test_history_marks_what_is_not_finite():
    losses = np.ones(100)
    losses[[10, 11, 60]] = np.nan, np.inf, -np.inf
    ax = plots.history(losses, window=1)
    each, mean, marks = ax.get_lines()
    np.testing.assert_array_equal(marks.get_xdata(), [11, 12, 61])
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(each.get_ydata())), [10, 11, 60])
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(mean.get_ydata())), [10, 11, 60])
    assert legend_texts(ax)[-1] == "not finite (3 steps)"


def test_history_without_any_finite_loss():
    ax = plots.history([np.nan, np.inf])
    assert legend_texts(ax)[-1] == "not finite (2 steps)"


def test_history_frame_leaves_out_the_first_losses_and_says_so():
    losses = np.concatenate([1e6 * 0.1 ** np.arange(5), np.linspace(-1, 1, 200)])
    ax = plots.history(losses)
    low, high = ax.get_ylim()
    assert -1.5 < low < -1
    assert 1 < high < 20
    outside = ((losses < low) | (losses > high)).sum()
    assert legend_texts(ax)[0] == f"each step ({outside} outside the frame)"


def test_histories_can_be_compared():
    ax = plots.history([5.0, 4.0, 3.0], label="planar*2")
    plots.history([2.0, 1.0, 0.0], ax, label="planar*8")
    low, high = ax.get_ylim()
    assert low < 0 < 5 < high
    first, _, second, mean = ax.get_lines()
    assert first.get_color() != second.get_color() == mean.get_color()
    assert legend_texts(ax)[3:5] == ["planar*8: each step", "planar*8: mean over 1 steps"]


@pytest.mark.parametrize(
    ("stops", "texts"), [([60], [""]), ({60: "refine", 90: ""}, ["refine", ""])]
)
def test_history_marks_stops(stops, texts):
    ax = plots.history(np.zeros(100), stops=stops)
    lines = ax.get_lines()[2:]
    assert [line.get_xdata()[0] for line in lines] == [stop + 0.5 for stop in stops]
    assert [text.get_text() for text in ax.texts] == texts


@pytest.mark.parametrize(
    ("hist", "options", "message"),
    [
        ([], {}, r"got shape \(0,\)"),
        (np.ones((3, 2)), {}, r"got shape \(3, 2\)"),
        ([1.0], {"window": 0}, "expected a window of at least 1 step"),
        ([1.0], {"stops": [2]}, "expected stops from 0 to 1"),
    ],
)
def test_history_refuses(hist, options, message):
    with pytest.raises(ValueError, match=message):
        plots.history(hist, **options)


# ---------------------------------------------------------------------- traces


def tracked(*, gradients=True):
    """A tracker's dataset for 'scale-planar*2' in two dimensions, every tenth step."""
    rng = np.random.default_rng(7)
    dims = {
        "0_scale_log_sigma": ("step", "axis"),
        "1_planar_b": ("step", "layer_1"),
        "1_planar_u": ("step", "layer_1", "axis"),
    }
    sizes = {"step": 40, "layer_1": 2, "axis": 2}
    variables = {
        prefix + name: (d, rng.normal(size=[sizes[dim] for dim in d]))
        for prefix in (["", "grad_"] if gradients else [""])
        for name, d in dims.items()
    }
    coords = {"step": 10 * np.arange(1, 41), "layer_1": [0, 1]}
    return xr.Dataset(variables, coords=coords)


ROWS = ["log_sigma", "b_0", "u_0", "b_1", "u_1"]


def test_traces_of_a_dataset():
    ds = tracked()
    axes = plots.traces(ds)
    assert axes.shape == (5, 2)
    assert [ax.get_title() for ax in axes[:, 0]] == ROWS
    assert [ax.get_title() for ax in axes[:, 1]] == [f"gradient of {row}" for row in ROWS]
    left, right = axes[4]
    for ax, name, lines in (
        (left, "1_planar_u", left.get_lines()),
        (right, "grad_1_planar_u", right.get_lines()[1:]),  # the first is the line at 0
    ):
        assert len(lines) == 2, ax
        for component, line in enumerate(lines):
            np.testing.assert_array_equal(line.get_xdata(), ds["step"])
            np.testing.assert_array_equal(line.get_ydata(), ds[name][:, 1, component])
    assert [line.get_linestyle() for line in left.get_lines()] == ["-", "-"]
    assert [line.get_marker() for line in right.get_lines()[1:]] == [".", "."]
    assert [line.get_color() for line in left.get_lines()] == [
        line.get_color() for line in right.get_lines()[1:]
    ]
    assert legend_texts(right) == ["u_1[0]", "u_1[1]"]
    assert axes[1, 1].get_legend() is None  # a scalar needs none
    assert [ax.get_xlabel() for ax in axes[-1]] == ["step", "step"]


def test_traces_of_an_object_with_a_dataset():
    class Recorder:
        dataset = tracked()

    figure = plt.figure()
    axes = plots.traces(Recorder(), figure, var_names="b_1")
    assert figure.axes == axes.ravel().tolist()
    np.testing.assert_array_equal(
        axes[0, 0].get_lines()[0].get_ydata(), Recorder.dataset["1_planar_b"][:, 1]
    )


def test_traces_of_pymcs_tracker():
    values = iter(range(100))
    tracker = Tracker(
        u_0=lambda: np.array([next(values), 5.0]),
        b_0=lambda: np.array(3.0),
        grad_u_0=lambda: np.array([1.0, 2.0]),
    )
    for i in range(4):
        tracker(None, None, i)
    axes = plots.traces(tracker)
    assert [ax.get_title() for ax in axes[:, 0]] == ["u_0", "b_0"]
    first, second = axes[0, 0].get_lines()
    np.testing.assert_array_equal(first.get_xydata(), [[1, 0], [2, 1], [3, 2], [4, 3]])
    np.testing.assert_array_equal(second.get_ydata(), [5, 5, 5, 5])
    assert [text.get_text() for text in axes[1, 1].texts] == ["not tracked"]


def test_traces_without_gradients_have_one_column():
    axes = plots.traces(tracked(gradients=False))
    assert axes.shape == (5, 1)
    assert legend_texts(axes[0, 0]) == ["log_sigma[0]", "log_sigma[1]"]


@pytest.mark.parametrize(
    ("var_names", "rows"),
    [
        ("b", ["b_0", "b_1"]),
        (["1_planar_b", "log_sigma"], ["log_sigma", "b_0", "b_1"]),
        (["u_1"], ["u_1"]),
    ],
)
def test_traces_can_be_chosen(var_names, rows):
    axes = plots.traces(tracked(), var_names=var_names)
    assert [ax.get_title() for ax in axes[:, 0]] == rows


@pytest.mark.parametrize(
    ("second_layers", "rows"),
    [
        ([2, 3], ["b_0", "b_1", "b_2", "b_3"]),
        ([0, 1], ["1_planar_b_0", "1_planar_b_1", "3_planar_b_0", "3_planar_b_1"]),
    ],
)
def test_traces_keep_the_block_in_names_only_where_they_need_it(second_layers, rows):
    ds = tracked(gradients=False)[["1_planar_b"]]
    second = ds["1_planar_b"].rename(layer_1="layer_3").assign_coords(layer_3=second_layers)
    axes = plots.traces(ds.assign({"3_planar_b": second}))
    assert [ax.get_title() for ax in axes[:, 0]] == rows


def test_traces_of_many_rows_show_the_first():
    with pytest.warns(UserWarning, match=r"first 3 of 5 rows; choose others with var_names="):
        axes = plots.traces(tracked(), max_rows=3)
    assert [ax.get_title() for ax in axes[:, 0]] == ROWS[:3]


def test_traces_refuse():
    with pytest.raises(ValueError, match="expected tracked parameters"):
        plots.traces(Tracker(b=lambda: 1.0))
    with pytest.raises(ValueError, match=r"expected names among: .*b_0.*\ngot 'w'"):
        plots.traces(tracked(), var_names="w")


def test_a_fit_that_trained_nothing():
    approx = SimpleNamespace(hist=np.zeros(0), ladder=object())
    with pytest.raises(FlowShapeError, match=r"nothing was trained\nlook at approx\.ladder"):
        plots.history(approx)
