"""Ops with an inner graph in batches, and which values a graph needs to be compiled."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from numpy.testing import assert_allclose
from pytensor.graph.replace import vectorize_graph
from pytensor.graph.traversal import toposort
from pytensor.tensor.blockwise import Blockwise
from scipy.special import logsumexp

from pymc_flows.backends.graphs import open_batches
from pymc_flows.backends.modes import NUMPY, PLAIN
from pymc_flows.backends.ops import values_needed
from pymc_flows.support.compat import rewrite_graph


def test_a_batch_of_an_elementwise_op_is_no_loop():
    row, rows = pt.vector("row", shape=(2,)), pt.matrix("rows", shape=(5, 2))
    [value] = open_batches(vectorize_graph([pt.logaddexp(row[0], 2 * row[1])], {row: rows}))
    assert not any(isinstance(node.op, Blockwise) for node in toposort([value]))
    gradient = pytensor.grad(value.sum(), rows)
    points = np.random.default_rng(0).normal(size=(5, 2)) * 300
    found, slope = pytensor.function([rows], [value, gradient], mode=NUMPY)(points)
    x, y = points[:, 0], 2 * points[:, 1]
    assert_allclose(found, np.logaddexp(x, y), rtol=1e-14)
    share = np.exp(x - np.logaddexp(x, y))
    assert_allclose(slope, np.stack([share, 2 * (1 - share)], axis=1), atol=1e-12)


@pytest.mark.parametrize("mode", [NUMPY, PLAIN])
def test_numpy_takes_sums_of_exponentials_along_an_axis_for_all_draws_at_once(mode):
    row, rows = pt.matrix("row", shape=(3, 2)), pt.tensor3("rows", shape=(4, 3, 2))
    sums = rewrite_graph(pt.log(pt.exp(row).sum(axis=0)), include=("canonicalize", "stabilize"))
    value = vectorize_graph(sums, {row: rows})
    gradient = pytensor.grad(value.sum(), rows)
    function = pytensor.function([rows], [value, gradient], mode=mode)
    assert not any(isinstance(node.op, Blockwise) for node in function.maker.fgraph.toposort())
    points = np.random.default_rng(0).normal(size=(4, 3, 2)) * 300
    points[0, :2, 0] = -np.inf
    found, slope = function(points)
    expected = logsumexp(points, axis=1)
    assert_allclose(found, expected, rtol=1e-14)
    assert_allclose(slope, np.exp(points - expected[:, None]), atol=1e-12)


def test_shapes_are_needed_however_they_are_computed():
    z, size, count = pt.vector("z"), pt.constant([2, 3]), pt.constant([4, 5])
    assert size in values_needed([z.reshape(2 * size - size)])
    assert count not in values_needed([z[:2] * count])
    assert count not in values_needed([z[pt.constant([1, 0])] + count**2])


def test_masks_are_needed_and_conditions_are_not():
    z, mask = pt.vector("z", shape=(3,)), pt.constant([True, False, True])
    assert mask in values_needed([z[mask]])
    assert mask not in values_needed([pt.switch(mask, z, 0.0)])


def test_floats_are_needed_where_they_become_shapes():
    z, length = pt.vector("z"), pt.constant([6.0, 2.0])
    assert length in values_needed([z.reshape((length / 2).astype("int64"))])
    assert length not in values_needed([z[:2] * length])
