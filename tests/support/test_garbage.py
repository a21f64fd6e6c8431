"""The threshold of Python's collector while graphs are built, and after."""

import gc

import pytest

from pymc_flows.support.garbage import NEW_OBJECTS, fewer_collections


@pytest.fixture(autouse=True)
def _threshold():
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)


@pytest.mark.parametrize(
    ("of_user", "inside"), [(700, NEW_OBJECTS), (0, 0), (10 * NEW_OBJECTS, 10 * NEW_OBJECTS)]
)
def test_only_a_lower_threshold_is_raised_and_it_is_put_back(of_user, inside):
    gc.set_threshold(of_user, 11, 12)
    with fewer_collections():
        assert gc.get_threshold()[0] == inside
    assert gc.get_threshold()[:2] == (of_user, 11)


def test_the_last_of_blocks_that_overlap_puts_it_back():
    gc.set_threshold(700)
    first, second = fewer_collections(), fewer_collections()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert gc.get_threshold()[0] == NEW_OBJECTS
    second.__exit__(None, None, None)
    assert gc.get_threshold()[0] == 700
