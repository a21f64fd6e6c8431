"""Seeds are PyMC's: what was recorded with one stays reproducible."""

import numpy as np
import pytest
from pymc.util import _get_seeds_per_chain

from pymc_flows.errors import ArgumentError
from pymc_flows.support.seeds import integer_seed, integer_seeds


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize(
    "make",
    [
        lambda n: 7,
        lambda n: np.int64(2**40),
        lambda n: np.array(3),
        lambda n: np.random.default_rng(3),
        lambda n: np.random.RandomState(3),
        lambda n: list(range(n)),
        lambda n: tuple(range(n)),
        lambda n: np.arange(n) + 5,
    ],
)
def test_seeds_are_those_of_pymc(make, n):
    assert integer_seeds(make(n), n) == list(_get_seeds_per_chain(make(n), n))


def test_a_generator_goes_on():
    ours, theirs = np.random.default_rng(1), np.random.default_rng(1)
    assert integer_seeds(ours, 3) == _get_seeds_per_chain(theirs, 3)
    assert ours.bit_generator.state == theirs.bit_generator.state


def test_no_seed_is_a_new_one_each_time():
    assert integer_seed(None) != integer_seed(None)


@pytest.mark.parametrize(
    ("seed", "message"),
    [
        ("seven", "got 'seven'"),
        ("7", "got '7'"),
        (1.5, "got 1.5"),
        ([1, 2, 3], "holds 3 seeds, expected 1"),
        (object(), "must be an integer"),
        ([None], "got None"),
    ],
)
def test_what_is_no_seed_is_refused(seed, message):
    with pytest.raises(ArgumentError, match=message):
        integer_seed(seed)
