"""Long fits: losses are appended to a file beside the checkpoint, not written anew each time."""

import pytest
from numpy.testing import assert_array_equal

import pymc_flows as pmf
from fits import QUIET, all_state, assert_identical, begin, normal_mean
from pymc_flows.errors import StorageError
from pymc_flows.fitting import checkpoint as _checkpoint
from pymc_flows.io import files as _files
from pymc_flows.io import growing as _growing


@pytest.fixture(scope="module")
def whole():
    return begin()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """What is in the folder at each checkpoint of a fit, and after it."""
    folder, found, original = tmp_path_factory.mktemp("fit"), [], _checkpoint.write

    def write(path, content, *rest):
        original(path, content, *rest)
        found.append(packed(folder))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_growing, "MOST_INSIDE", 10)
        patch.setattr(_checkpoint, "write", write)
        begin(checkpoint=folder / "fit.nc", every=8)
    return [*found, packed(folder)]


def packed(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def unpack(files, folder):
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder / "fit.nc"


def test_many_losses_are_appended_to_a_file_of_their_own(whole, folders, tmp_path):
    assert [len(files) for files in folders] == [1, 1, 2, 2, 2, 1]
    [beside] = folders[2].keys() - {"fit.nc"}
    sixteen, twenty_four = folders[2][beside], folders[3][beside]
    assert (len(sixteen), len(twenty_four)) == (16 * 8, 24 * 8)
    assert twenty_four.startswith(sixteen)
    assert len(_files.read(unpack(folders[-1], tmp_path)).arrays["hist"]) == 30
    path = unpack(folders[2], tmp_path)
    assert_array_equal(pmf.load(path, normal_mean()).hist, whole.hist[:16])
    # Killed before the main file was replaced: more losses than it counts, the last of them torn.
    (tmp_path / beside).write_bytes(twenty_four + b"\x00\x01")
    other = pmf.resume(path, normal_mean(), **QUIET)
    assert_identical(all_state(other), all_state(whole))
    assert list(packed(tmp_path)) == ["fit.nc"]


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("is missing\nCopy and rename both", lambda data: None),
        ("is cut off: it should have 16 values", lambda data: data[:-1]),
        ("has another digest", lambda data: data[:-1] + bytes([data[-1] ^ 1])),
    ],
)
def test_losses_that_are_missing_or_damaged_are_noticed(message, change, folders, tmp_path):
    [beside] = folders[2].keys() - {"fit.nc"}
    path = unpack({"fit.nc": folders[2]["fit.nc"]}, tmp_path)
    data = change(folders[2][beside])
    if data is not None:
        (tmp_path / beside).write_bytes(data)
    with pytest.raises(StorageError, match=message):
        pmf.resume(path, normal_mean(), **QUIET)


@pytest.mark.parametrize(
    "change", [{"file": "../../x"}, {"count": -1}, {"count": True}, {"name": "a/b"}, {"sha256": 1}]
)
def test_what_a_forged_file_says_of_losses_beside_it(change, tmp_path):
    said = {"name": "hist", "file": "0" * 8, "count": 1, "sha256": "0" * 64}
    with pytest.raises(StorageError, match="malformed"):
        _growing.read_growing(tmp_path / "fit.nc", {**said, **change})
