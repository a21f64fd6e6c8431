"""Which rows come when: every row once an epoch, from the seed alone."""

import numpy as np
import pytest

from pymc_flows.errors import ArgumentError, StorageError
from pymc_flows.rows import Rows

TOTAL, BATCH = 1_000, 64
DATA = {"x": np.arange(2.0 * TOTAL).reshape(TOTAL, 2), "k": np.arange(TOTAL)}


class Chunked:
    """An array in chunks of unequal lengths, as Dask has them, which counts what is read."""

    chunks = ((170, 30, 1, 299, 250, 250),)
    shape, dtype = (TOTAL,), np.dtype("int64")

    def __init__(self):
        self.read = []

    def __getitem__(self, rows):
        self.read.append((rows.start, rows.stop))
        return DATA["k"][rows]


def rows_in(pool_rows=300):
    return Rows.arrays({"k": Chunked()}, batch_size=BATCH, pool_rows=pool_rows)


def steps(rows, first, n, seed=7, feed=None):
    """The rows of n steps, one after the other."""
    arrays = rows.buffers(n, ["k"])
    (feed or rows.feed(["k"], seed)).fill(first, arrays)
    return arrays[0].ravel()


def test_each_epoch_has_every_row_once_in_another_order():
    found = steps(rows_in(), 0, 32)[: 2 * TOTAL].reshape(2, TOTAL)
    np.testing.assert_array_equal(np.sort(found, axis=1), [DATA["k"]] * 2)
    assert (found[0] != found[1]).mean() > 0.9
    assert (found[0] != DATA["k"]).mean() > 0.9
    assert (steps(rows_in(), 0, 15, seed=8) != found[0, : 15 * BATCH]).mean() > 0.9


def test_rows_of_a_pool_are_permuted_together():
    """Neighbours on disk come apart, but not farther than a pool."""
    epoch = steps(rows_in(), 0, 16)[:TOTAL]
    step_of = np.argsort(epoch) // BATCH
    assert len(np.unique(step_of[:170])) > 3  # rows of one block
    whole = np.argsort(steps(rows_in(TOTAL), 0, 16)[:TOTAL]) // BATCH
    assert len(np.unique(whole[:170])) > 13


def test_any_step_is_found_at_once():
    rows = rows_in()
    expected = steps(rows, 0, 60)
    feed = rows.feed(["k"], 7)
    for first, n in [(0, 1), (1, 20), (5, 3), (40, 20), (0, 2), (59, 1)]:
        found = steps(rows, first, n, feed=feed)
        np.testing.assert_array_equal(found, expected[first * BATCH : (first + n) * BATCH])


def test_the_next_pool_is_read_ahead_and_nothing_else():
    rows = rows_in()
    [source] = rows._source._arrays.values()
    feed = rows.feed(["k"], 7)
    steps(rows, 0, 1, feed=feed)
    feed._pools._next[1].result()
    order = feed._order
    first = order.pool_at(0)
    blocks = [*first.blocks, *order.after(first).blocks]
    bounds = rows._source._bounds
    assert source.read == [(bounds[b], bounds[b + 1]) for b in blocks]


def test_columns_stay_together():
    rows = Rows.arrays(DATA, batch_size=BATCH)
    x, k = rows.buffers(3, ["x", "k"])
    rows.feed(["x", "k"], 1).fill(11, [x, k])
    np.testing.assert_array_equal(x, DATA["x"][k])


def test_a_scan_has_all_rows_with_equal_weight():
    rows = rows_in()
    arrays = [a[0] for a in rows.buffers(1, ["k"])]
    weight, total = np.zeros(TOTAL), 0.0
    for share in rows.scan(["k"], arrays):
        np.add.at(weight, arrays[0], share / BATCH)
        total += share
    np.testing.assert_allclose(weight, 1 / TOTAL, rtol=1e-12)
    assert total == pytest.approx(1)


def test_a_feed_goes_on_from_its_state():
    rows = rows_in()
    feed = rows.feed(["k"], 3)
    feed.load_state_dict(rows.feed(["k"], 7).state_dict())
    np.testing.assert_array_equal(steps(rows, 20, 4, feed=feed), steps(rows, 20, 4))
    other = Rows.arrays({"k": DATA["k"]}, batch_size=BATCH + 1).feed(["k"], 7)
    with pytest.raises(StorageError, match="has read other rows"):
        feed.load_state_dict(other.state_dict())


def test_what_is_wrong_with_rows_on_the_way_is_said():
    values = np.zeros(TOTAL)
    values[700] = np.nan
    rows = Rows.arrays({"k": values}, batch_size=BATCH)
    with pytest.raises(ArgumentError, match="'k' has NaN in row 700 of the rows from 0 on"):
        steps(rows, 0, 1)
