"""The picture of a structure shows each of its entries."""

import numpy as np
import pytest

import pymc_flows as pmf
from models import ZOO
from pymc_flows.errors import ArgumentError
from pymc_flows.plots import sparsity


@pytest.mark.parametrize("most_cells", [300, 7])
def test_every_entry_is_seen_and_nothing_else(most_cells, monkeypatch):
    monkeypatch.setattr(sparsity, "_MAX_CELLS", most_cells)
    found = pmf.structure(ZOO["eight_schools"]())
    ax = pmf.plots.structure(found)
    [image] = ax.get_images()
    order = np.concatenate([found.hyperparameters, found.field])
    pattern = found.hessian.toarray()[np.ix_(order, order)]
    cells = min(most_cells, 10)
    cell = np.arange(10) * cells // 10
    expected = np.zeros((cells, cells), dtype=bool)
    np.logical_or.at(expected, np.ix_(cell, cell), pattern)
    np.testing.assert_array_equal(np.any(image.get_array() < 0.99, axis=-1), expected)


def test_parts_are_named_with_their_sizes():
    ax = pmf.plots.structure(ZOO["eight_schools"]())
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["hyperparameters (2)", "8 groups (8)"]
    assert ax.get_title() == "44.00% of the Hessian of 10 latents"


def test_it_must_be_a_structure():
    with pytest.raises(ArgumentError, match="expected a structure or a model\ngot int"):
        pmf.plots.structure(3)
