"""Functions that are compiled once for each structure, and serve any data."""

import pickle
import threading

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from pytensor.graph.basic import Apply
from pytensor.graph.op import Op

from behind import function_behind
from pymc_flows.backends import functions
from pymc_flows.backends.functions import counts, forget, function_of
from pymc_flows.backends.modes import NUMPY, no_compiler
from pymc_flows.model.logp import ModelDensity

RNG = np.random.default_rng(1)


@pytest.fixture(autouse=True)
def nothing_kept():
    forget()


def made(function, *args, **kwargs):
    """What a call returns, and how many functions were made in it."""
    before = counts().made
    result = function(*args, **kwargs)
    return result, counts().made - before


def line(x, slope=2.0, offset=None):
    """slope·x plus data, with the function that computes it."""
    offset = RNG.normal(size=3) if offset is None else offset
    z = pt.vector("z", shape=(3,))
    return function_of([z], [slope * z * x + pt.exp(pt.constant(offset))], mode=NUMPY), offset


# ------------------------------------------------------------------------------------ graphs


def test_other_data_of_the_same_shape_find_the_function_and_are_used():
    z = np.array([1.0, -2.0, 0.5])
    first, second = RNG.normal(size=(2, 3))
    (one, offset), n = made(line, first)
    assert n == 1
    (other, other_offset), n = made(line, second)
    assert n == 0
    assert_allclose(one(z)[0], 2 * z * first + np.exp(offset), rtol=1e-14)
    assert_allclose(other(z)[0], 2 * z * second + np.exp(other_offset), rtol=1e-14)
    assert_allclose(one(z)[0], 2 * z * first + np.exp(offset), rtol=1e-14)


@pytest.mark.parametrize(
    "change",
    [
        {"slope": 3.0},
        {"x": np.ones((1, 3))},
        {"x": np.ones(3, dtype="float32")},
        {"x": np.arange(3)},
        {"x": 1.0},
    ],
    ids=["scalar", "shape", "float32", "integers", "a number"],
)
def test_what_is_not_data_is_part_of_the_structure(change):
    line(np.ones(3))
    arguments = {"x": np.ones(3), **change}
    (function, offset), n = made(line, **arguments)
    assert n == 1
    z = np.array([1.0, -2.0, 0.5])
    expected = arguments.get("slope", 2.0) * z * arguments["x"] + np.exp(offset)
    assert_allclose(function(z)[0], expected)


def test_shapes_and_masks_are_part_of_the_structure():
    def parts(shape, mask):
        z = pt.vector("z", shape=(6,))
        outputs = [z.reshape(pt.constant(shape)), z[pt.constant(mask)]]
        return function_of([z], outputs, mode=NUMPY)

    z, mask = np.arange(6.0), np.arange(6) > 3
    for shape, chosen in (((2, 3), mask), ((3, 2), mask), ((2, 3), ~mask)):
        function, n = made(parts, shape, chosen)
        assert n == 1
        matrix, some = function(z)
        assert_array_equal(matrix, z.reshape(shape))
        assert_array_equal(some, z[chosen])


def test_indices_and_counts_are_data():
    def gathered(index, count):
        z = pt.vector("z", shape=(4,))
        return function_of([z], z[pt.constant(index)] * pt.constant(count), mode=NUMPY)

    z = RNG.normal(size=4)
    for k in range(3):
        index, count = RNG.integers(4, size=7), RNG.integers(9, size=7)
        function, n = made(gathered, index, count)
        assert n == (k == 0)
        assert_allclose(function(z), z[index] * count, rtol=1e-15)


def test_a_shared_variable_is_read_at_each_call():
    z, shared = pt.scalar("z"), pytensor.shared(np.arange(3.0), shape=(3,))
    function = function_of([z], z + pt.exp(shared).sum(), mode=NUMPY)
    assert_allclose(function(1.0), 1 + np.exp([0, 1, 2]).sum())
    shared.set_value(np.zeros(3))
    assert_allclose(function(1.0), 4)
    other, n = made(
        function_of, [z], z + pt.exp(pytensor.shared(np.ones(3), shape=(3,))).sum(), mode=NUMPY
    )
    assert n == 0
    assert_allclose(other(1.0), 1 + 3 * np.e)
    assert_allclose(function(1.0), 4)


def test_what_data_alone_give_is_computed_once():
    calls = []

    class Counted(Op):
        def make_node(self, x):
            return Apply(self, [x], [x.type()])

        def perform(self, node, inputs, outputs):
            calls.append(1)
            outputs[0][0] = np.exp(inputs[0])

    z, op = pt.vector("z", shape=(3,)), Counted()
    function = function_of([z], z * op(pt.constant(np.arange(3.0))), mode=NUMPY)
    for _ in range(3):
        assert_allclose(function(np.ones(3)), np.exp(np.arange(3.0)))
    assert len(calls) == 1
    assert function_behind(function).maker.fgraph.inputs[1].type.shape == (3,)


def test_a_strange_op_is_equal_to_itself_alone():
    class Power(Op):
        __props__ = ()  # which is wrong: it is equal to another one with another exponent

        def __init__(self, exponent):
            self.exponent = exponent

        def make_node(self, x):
            return Apply(self, [x], [x.type()])

        def perform(self, node, inputs, outputs):
            outputs[0][0] = inputs[0] ** self.exponent

    z = pt.vector("z", shape=(2,))
    square, cube = Power(2), Power(3)
    assert square == cube
    for op, expected, n_expected in ((square, 4, 1), (cube, 8, 1), (square, 4, 0)):
        function, n = made(function_of, [z], op(z), mode=NUMPY)
        assert n == n_expected
        assert_allclose(function(np.full(2, 2.0)), expected)


def test_a_random_graph_is_not_kept():
    z, rng = pt.scalar("z"), pytensor.shared(np.random.default_rng(3))
    before = counts()
    noise = pt.random.normal.make_node(rng, None, pt.constant(0.0), pt.constant(1.0)).outputs[1]
    function = function_of([z], z + noise, mode=NUMPY)
    assert counts().unkept == before.unkept + 1
    assert np.isfinite(function(1.0))


def test_threads_share_a_function_and_keep_their_data():
    found = [line(np.full(3, float(k)), offset=np.zeros(3))[0] for k in range(8)]
    failed = []

    def work(k):
        for _ in range(50):
            if not np.allclose(found[k](np.ones(3))[0], 2 * k + 1):
                failed.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_a_thread_that_builds_and_one_that_asks_do_not_wait_for_each_other(monkeypatch):
    builds, makes = threading.Event(), threading.Event()

    class Noted(functions._Functions):
        def __init__(self, *args):
            makes.set()
            super().__init__(*args)

    monkeypatch.setattr(functions, "_Functions", Noted)

    def build():
        with no_compiler():
            builds.set()
            makes.wait(0.2)
            line(np.ones(3))

    def ask():
        builds.wait()
        line(np.ones(3), slope=3.0)

    threads = [threading.Thread(target=f, daemon=True) for f in (build, ask)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)


def test_a_function_can_be_pickled():
    function, offset = line(np.arange(3.0))
    function(np.ones(3))
    copied = pickle.loads(pickle.dumps(function))
    assert_allclose(copied(np.ones(3))[0], 2 * np.arange(3.0) + np.exp(offset))


# ------------------------------------------------------------------------------------ models


def schools(y, sigma, prior=5.0, names=None):
    with pm.Model(coords={"school": names or range(len(y))}):
        mu = pm.Normal("mu", 0, prior)
        tau = pm.HalfCauchy("tau", 5)
        eta = pm.Normal("eta", 0, 1, dims="school")
        pm.Normal("y", mu + tau * eta, sigma, observed=y)
        return pm.modelcontext(None)


def value_and_grad(model):
    """Log density and gradient at a point, by a function of ours and by one of PyMC's."""
    density = ModelDensity(model)
    z = pt.vector("z", shape=(density.dim,))
    total = sum(density.single(z))
    function = function_of([z], [total, pytensor.grad(total, z)], mode=NUMPY)
    point = np.linspace(-0.7, 0.9, density.dim)
    with model:
        named = {slot.name: point[slot.slice].reshape(slot.shape) for slot in density.slots}
        expected = [
            model.compile_logp(mode=NUMPY)(named),
            model.compile_dlogp(mode=NUMPY)(named),
        ]
    found = function(point)
    assert_allclose(found[0], expected[0], rtol=1e-12)
    assert_allclose(found[1], expected[1], rtol=1e-9)


@pytest.mark.parametrize(
    ("change", "is_found"),
    [
        ({}, True),
        ({"y": RNG.normal(size=8)}, True),
        ({"sigma": np.linspace(1.0, 2.0, 8)}, True),
        ({"names": list("abcdefgh")}, True),
        ({"prior": 10.0}, False),
        ({"y": RNG.normal(size=6), "sigma": np.ones(6)}, False),
        ({"sigma": 2.0}, False),
    ],
    ids=["nothing", "data", "vector", "coords", "prior", "shape", "broadcast"],
)
def test_models_of_one_structure_are_compiled_once(change, is_found):
    given = {"y": RNG.normal(size=8), "sigma": np.arange(1.0, 9.0)}
    value_and_grad(schools(**given))
    _, n = made(value_and_grad, schools(**{**given, **change}))
    assert (n == 0) is is_found
