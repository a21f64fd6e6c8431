"""The Tracker on its own: what it keeps, what it drops, and what it calls it."""

import numpy as np
import pytest

from pymc_flows.callbacks import Tracker
from pymc_flows.errors import ArgumentError
from pymc_flows.flows import build_chain
from pymc_flows.formula import Formula


def chain(formula="planar*3-scale", dim=2):
    return build_chain(Formula(formula), dim)


def values(first, n, formula="planar*3-scale", dim=2):
    """Records whose every entry is the number of the step; gradients are negative."""
    numbers = np.arange(first, first + n, dtype=float)
    made = {}
    for i, (block, shapes) in enumerate(
        zip(chain(formula, dim).blocks, chain(formula, dim).param_shapes(), strict=True)
    ):
        for name, shape in shapes.items():
            value = np.multiply.outer(numbers, np.ones(shape))
            made[f"{i}_{block.layer.word}_{name}"] = value
            made[f"grad_{i}_{block.layer.word}_{name}"] = -value
    return made


def fed(lengths, **kwargs):
    tracker = Tracker(**kwargs)
    tracker.prepare(chain())
    first = 1
    for n in lengths:
        tracker.record(values(first, n))
        first += n
    return tracker


def test_the_dataset_says_what_is_what():
    dataset = fed([3, 4]).dataset
    assert {name: variable.dims for name, variable in dataset.data_vars.items()} == {
        f"{grad}{name}": ("step", *dims)
        for grad in ("", "grad_")
        for name, dims in {
            "0_planar_b": ("layer_0",),
            "0_planar_u": ("layer_0", "dim"),
            "0_planar_w": ("layer_0", "dim"),
            "1_scale_rho": ("layer_1", "dim"),
        }.items()
    }
    assert dataset["step"].values.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert dataset["layer_0"].values.tolist() == [0, 1, 2]
    assert dataset["layer_1"].values.tolist() == [3]
    for name, variable in dataset.data_vars.items():
        sign = -1 if name.startswith("grad_") else 1
        np.testing.assert_array_equal(
            variable, sign * np.broadcast_to(dataset["step"], variable.T.shape).T
        )


def test_a_single_block_has_the_dimension_layer():
    tracker = Tracker(grads=False)
    tracker.prepare(chain("planar*2", 1))
    tracker.record(values(1, 2, "planar*2", 1))
    dataset = tracker.dataset
    assert dataset["0_planar_w"].dims == ("step", "layer", "dim")
    assert dict(dataset.sizes) == {"step": 2, "layer": 2, "dim": 1}
    assert list(dataset.data_vars) == ["0_planar_b", "0_planar_u", "0_planar_w"]


def test_only_what_was_asked_for_is_kept():
    assert all(name.startswith("grad_") for name in fed([2], params=False).dataset.data_vars)
    assert not any(name.startswith("grad_") for name in fed([2], grads=False).dataset.data_vars)


RECORD = 8 + 2 * 8 * (3 + 6 + 6 + 2)  # step; parameters and gradients of planar*3-scale in 2-D


@pytest.mark.parametrize("lengths", [[100], [1] * 100, [37, 63], [50, 1, 49]])
@pytest.mark.parametrize(
    ("room", "stride"), [(100, 1), (99, 2), (50, 2), (49, 4), (13, 8), (2, 64)]
)
def test_what_is_full_keeps_every_second_record(lengths, room, stride):
    tracker = fed(lengths, max_bytes=room * RECORD)
    steps = np.arange(1, 101, stride)
    assert tracker.stride == stride
    assert tracker.dataset["step"].values.tolist() == steps.tolist()
    np.testing.assert_array_equal(tracker["1_scale_rho"], values(1, 100)["1_scale_rho"][::stride])
    assert tracker.nbytes <= room * RECORD


def test_records_once_read_do_not_change():
    tracker = fed([5], max_bytes=8 * RECORD)
    before = tracker.dataset
    tracker.record(values(6, 10))
    assert before["step"].values.tolist() == [1, 2, 3, 4, 5]
    np.testing.assert_array_equal(before["0_planar_b"][:, 0], [1, 2, 3, 4, 5])
    assert tracker.dataset["step"].values.tolist() == [1, 3, 5, 7, 9, 11, 13, 15]


def test_a_further_fit_of_the_same_flow_goes_on():
    tracker = fed([3])
    tracker.prepare(chain())
    tracker.record(values(4, 2))
    assert tracker.dataset["step"].values.tolist() == [1, 2, 3, 4, 5]
    with pytest.raises(ArgumentError, match="records of another flow"):
        tracker.prepare(chain("planar*2-scale"))
    with pytest.raises(ArgumentError, match="records of another flow"):
        tracker.prepare(chain(dim=3))
    tracker.clear()
    assert len(tracker.dataset) == 0
    tracker.prepare(chain("planar*2-scale"))


def test_unknown_names_are_answered_with_the_known_ones():
    with pytest.raises(KeyError, match="no record of 'u'; recorded: step, 0_planar_b, "):
        fed([3])["u"]
    with pytest.raises(KeyError, match="nothing yet"):
        Tracker()["u"]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"params": False, "grads": False}, "records nothing"),
        ({"max_bytes": 1.5}, "max_bytes must be an integer"),
        ({"max_bytes": True}, "max_bytes must be an integer"),
        ({"max_bytes": "1 GB"}, "max_bytes must be an integer"),
    ],
)
def test_a_tracker_that_makes_no_sense(kwargs, message):
    with pytest.raises(ArgumentError, match=message):
        Tracker(**kwargs)


def test_a_limit_without_room_is_refused_before_the_fit():
    with pytest.raises(ArgumentError, match=f"no room for two records.*\n.*takes {RECORD} bytes"):
        Tracker(max_bytes=2 * RECORD - 1).prepare(chain())


def test_a_tracker_in_another_inference():
    with pytest.raises(ArgumentError, match=r"use pymc\.variational\.callbacks\.Tracker"):
        Tracker()(None, None, 1)
