"""What PyTensor computes number by number through Python is computed for whole arrays."""

import inspect

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor import scalar as ps
from pytensor.compile.mode import Mode
from pytensor.graph.basic import Apply
from pytensor.scalar import basic
from pytensor.scalar import math as scalar_math
from pytensor.scalar.loop import ScalarLoop
from scipy import special

from pymc_flows.backends.modes import NUMPY, PLAIN
from pymc_flows.backends.rewrites import ON_ARRAYS, ArrayLoop, loop_work
from pymc_flows.model import log_density as _log_density
from pymc_flows.model.log_density import LogDensity
from pymc_flows.model.logp import density_of

# As PyTensor has it: each number on its own.
ONE_BY_ONE = Mode(linker="py", optimizer="fast_compile")


def positive(rng, n=30):
    return 0.1 + rng.gamma(2.0, 1.0, n)


def share(rng, n=30):
    return rng.uniform(0.02, 0.9, n)


CASES = {
    "gammainc": (pt.gammainc, special.gammainc, [positive, positive]),
    "gammaincc": (pt.gammaincc, special.gammaincc, [positive, positive]),
    "betainc": (pt.betainc, special.betainc, [positive, positive, share]),
    "hyp2f1": (pt.hyp2f1, special.hyp2f1, [positive, positive, positive, share]),
}


@pytest.mark.parametrize("mode", [NUMPY, PLAIN], ids=["numpy", "plain"])
@pytest.mark.parametrize("name", CASES)
def test_derivatives_of_series_are_those_of_scipy_and_of_pytensor(name, mode, rng):
    function, exact, makers = CASES[name]
    values = [make(rng) for make in makers]
    inputs = [pt.vector() for _ in values]
    slopes = pytensor.grad(function(*inputs).sum(), inputs)
    arrays = pytensor.function(inputs, slopes, mode=mode)
    ops = {type(node.op) for node in arrays.maker.fgraph.toposort()}
    assert ArrayLoop in ops
    found = arrays(*values)
    few = [value[:3] for value in values]
    one_by_one = pytensor.function(inputs, slopes, mode=ONE_BY_ONE)(*few)
    for k, (slope, expected) in enumerate(zip(found, one_by_one, strict=True)):
        np.testing.assert_allclose(slope[:3], expected, rtol=1e-11)
        step = 1e-5 * values[k]
        above, below = (
            exact(*values[:k], values[k] + sign * step, *values[k + 1 :]) for sign in (1, -1)
        )
        np.testing.assert_allclose(slope, (above - below) / (2 * step), rtol=1e-5, atol=1e-6)


def loop(until):
    """Doubles x, adds c, until it is above 10 or for as many steps as given."""
    n, x, c = ps.int64("n"), ps.float64("x"), ps.float64("c")
    after = x * 2 + c
    stops = ps.gt(after, 10.0) if until else None
    return ScalarLoop([x], [after], [c], until=stops), [n, x, c]


@pytest.mark.parametrize("until", [False, True])
def test_each_number_takes_its_own_steps(until):
    op, _ = loop(until)
    steps, x, c = pt.lvector("n"), pt.vector("x"), pt.scalar("c")
    outputs = pt.elemwise.Elemwise(op)(steps, x, c, return_list=True)
    function = pytensor.function([steps, x, c], outputs, mode=NUMPY)
    counts, begin = np.array([0, 1, 3, 5, 2]), np.array([1.0, 2.0, 3.0, np.nan, 6.0])
    state, ended = [], []
    for n, value in zip(counts, begin, strict=True):
        has_ended = True
        for _ in range(n):
            value = value * 2 + 0.5
            has_ended = value > 10
            if until and has_ended:
                break
        state.append(value)
        ended.append(has_ended)
    found = function(counts, begin, 0.5)
    np.testing.assert_array_equal(found[0], state)
    if until:
        np.testing.assert_array_equal(found[1], ended)
    empty = function(np.zeros(0, int), np.zeros(0), 0.5)
    assert empty[0].shape == (0,)


def test_single_precision_stays(rng):
    k, x = pt.vector("k", dtype="float32"), pt.vector("x", dtype="float32")
    slope = pytensor.function([k, x], pytensor.grad(pt.gammainc(k, x).sum(), k), mode=NUMPY)
    values = [positive(rng).astype("float32") for _ in range(2)]
    found = slope(*values)
    assert found.dtype == np.float32
    wide = pt.vectors("k", "x")
    exact = pytensor.function(wide, pytensor.grad(pt.gammainc(*wide).sum(), wide[0]), mode=NUMPY)
    np.testing.assert_allclose(found, exact(*values), rtol=2e-3, atol=1e-4)


# Ops of one number that need no array function: they copy, or no log density has them.
PLAIN_OPS = {"Cast", "Complex", "Identity", "RoundHalfAwayFromZero", "Second"}
ABSTRACT = {"ScalarOp", "ScalarInnerGraphOp"}


def test_every_scalar_function_of_pytensor_has_one_of_arrays():
    missing = {
        name
        for module in (basic, scalar_math)
        for name, op in vars(module).items()
        if inspect.isclass(op)
        and issubclass(op, ps.ScalarOp)
        and op.__module__ == module.__name__
        and "impl" in vars(op)
        and getattr(op, "nfunc_spec", None) is None
        and op not in ON_ARRAYS
    }
    assert missing <= PLAIN_OPS | ABSTRACT


class OnlyNumbers(ps.UnaryScalarOp):
    """A function that arrays cannot be given to."""

    def impl(self, x):
        return 1.0 if x > 0 else -1.0

    def grad(self, inputs, cotangents):
        return [ps.zeros_like(inputs[0])]


def test_an_op_of_numbers_alone_is_called_for_each():
    x = ps.float64("x")
    op = ScalarLoop([x], [x + OnlyNumbers(ps.upgrade_to_float, name="only")(x)])
    rows = pt.vector("x")
    node = pt.elemwise.Elemwise(op).make_node(pt.constant(3), rows)
    assert isinstance(node, Apply)
    found = pytensor.function([rows], node.outputs, mode=NUMPY)(np.array([1.0, -1.0]))
    np.testing.assert_array_equal(found[0], [4.0, -4.0])


def test_series_that_take_numpy_long_are_compiled(monkeypatch):
    with pm.Model() as model:
        k = pm.Gamma("k", 2, 1)
        pm.Potential("term", pt.log(pt.gammainc(k, 2.0)))
    log_density = LogDensity(density_of(model))
    points = np.linspace(-1, 1, 11)[:, None]
    by_numpy = log_density.value_and_grad(points)
    monkeypatch.setattr(_log_density, "MOST_LOOP_WORK", 0)
    log_density.value_and_grad(points[:1])  # compiles
    before = loop_work()
    compiled = log_density.value_and_grad(points)
    assert loop_work() == before
    for found, expected in zip(compiled, by_numpy, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12)
