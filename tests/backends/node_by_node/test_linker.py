"""Functions that run node by node: the results of PyTensor's own Python linker, call after call."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.compile.mode import Mode
from pytensor.ifelse import ifelse

from pymc_flows.backends.modes import NUMPY
from pymc_flows.backends.node_by_node.buffers import LARGEST, SMALLEST, share_buffers
from pymc_flows.backends.node_by_node.linker import ArrayLinker
from pymc_flows.support.compat import Elemwise, compiled_graph

PLAIN = Mode("py", None)
OURS = Mode(ArrayLinker(), None)
# Arrays of these shapes are kept: with 64 bytes for 8 numbers they are above the smallest.
ROWS, COLUMNS = 60, 200
RNG = np.random.default_rng(0)


def both(inputs, outputs):
    """The same function of two linkers."""
    how = {"on_unused_input": "ignore"}
    return [pytensor.function(inputs, outputs, mode=mode, **how) for mode in (PLAIN, OURS)]


def agree(inputs, outputs, *calls, rtol=1e-12):
    """Both functions give the same for all arguments, and nothing they gave changes later."""
    plain, ours = both(inputs, outputs)
    expected, found = [plain(*args) for args in calls], [ours(*args) for args in calls]
    copies = [[np.array(x) for x in one] for one in found]
    for args in calls:
        ours(*args)
    for wanted, got, before in zip(expected, found, copies, strict=True):
        for x, y, z in zip(wanted, got, before, strict=True):
            assert x.dtype == y.dtype
            assert x.shape == y.shape
            np.testing.assert_allclose(y, x, rtol=rtol, atol=1e-12)
            np.testing.assert_array_equal(y, z)


def numbers(*shape):
    return RNG.standard_normal(shape)


def test_arrays_are_kept_between_calls():
    assert SMALLEST <= ROWS * COLUMNS * 8 <= LARGEST


# -------------------------------------------------------------------------------------- elementwise


def test_long_chains_of_operations():
    x, y = pt.matrix("x"), pt.matrix("y")
    a = pt.exp(-(x**2)) + y
    b = a * x - pt.log1p(pt.abs(y))
    c = pt.maximum(b, a) / (1 + y**2)
    calls = [(numbers(n, m), numbers(n, m)) for n, m in ((ROWS, COLUMNS), (3, 2), (ROWS, COLUMNS))]
    agree([x, y], [c, a, (b + c).sum(axis=1)], *calls)


@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_in_any_order(order):
    x = pt.matrix("x")
    value = np.array(numbers(ROWS, COLUMNS), order=order)
    agree([x], [pt.exp(x + 1).sum(axis=0), pt.exp(x.T + 1).sum(axis=1)], (value,), (value[::2],))


def test_partial_results_of_many_operands_are_smaller_than_the_last():
    x, row, column = pt.matrix("x"), pt.row("row"), pt.col("column")
    total = pt.add(row, row, column, x, x, column)
    product = pt.mul(column, column, row)
    values = numbers(ROWS, COLUMNS), numbers(1, COLUMNS), numbers(ROWS, 1)
    agree([x, row, column], [total.sum(), product.sum(), total - product], values, values)


def test_operands_of_several_types():
    x, k, flag = pt.matrix("x"), pt.imatrix("k"), pt.bmatrix("flag")
    outputs = [pt.add(k, k, flag, x).sum(), pt.add(k, flag, flag) + 1, x > k, pt.sqrt(k**2) * x]
    values = (
        numbers(ROWS, COLUMNS),
        RNG.integers(-5, 5, (ROWS, COLUMNS), dtype=np.int32),
        RNG.integers(0, 2, (ROWS, COLUMNS), dtype=np.int8),
    )
    agree([x, k, flag], outputs, values, values)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_switches_with_checks_of_rows(share):
    x, check = pt.matrix("x"), pt.matrix("check", dtype="bool")
    column, whole = check[:, :1], check[0, 0]
    outputs = [
        pt.switch(check, x, -x).sum(axis=0),
        pt.switch(pt.specify_shape(column, (None, 1)), x, -np.inf).max(axis=1),
        pt.switch(whole, x, 1.0) + 1,
        pt.switch(whole, 2.0, x).sum(),
        pt.switch(check, x, -x),
    ]
    values = numbers(ROWS, COLUMNS), RNG.random((ROWS, COLUMNS)) < share
    agree([x, check], outputs, values, values)


def test_a_result_is_what_the_switch_was_given_no_longer():
    x = pt.matrix("x")
    f = pytensor.function([x], pt.switch(pt.all(x < 9), x, 0.0), mode=OURS)
    value = numbers(ROWS, COLUMNS)
    f(value)[:] = 7
    assert not (value == 7).any()


@pytest.mark.parametrize("shapes", [((1, 4), (30, 4)), ((3, 4), (50, 4)), ((0, 4), (50, 4))])
def test_switches_that_hold_hide_no_wrong_shapes(shapes):
    c, x, y = pt.matrix("c", dtype="bool"), pt.matrix("x"), pt.matrix("y")
    for f in both([c, x, y], pt.switch(c, x, y)):
        with pytest.raises(ValueError, match="broadcast"):
            f(np.ones(shapes[0], bool), numbers(50, 4), numbers(*shapes[1]))


def test_an_axis_of_length_one_is_not_broadcast():
    x, y = pt.matrix("x"), pt.matrix("y")
    f = pytensor.function([x, y], pt.exp(x + y), mode=OURS)
    assert f(numbers(1, 3), numbers(1, 3)).shape == (1, 3)
    f(numbers(ROWS, COLUMNS), numbers(ROWS, COLUMNS))
    with pytest.raises(ValueError, match="broadcast"):
        f(numbers(ROWS, COLUMNS), numbers(1, COLUMNS))


def test_nothing_warns():
    x = pt.matrix("x")
    f = pytensor.function([x], [pt.log(x), pt.exp(1000 * x), x / x], mode=OURS)
    f(np.array([[-1.0, 0.0, 1.0]]))


# --------------------------------------------------------------------------------------- reductions


@pytest.mark.parametrize("last", [1, 2, 7, 8, 9])
@pytest.mark.parametrize("name", ["sum", "prod", "max", "min"])
def test_short_last_axes(name, last):
    x = pt.tensor3("x")
    reduced = getattr(pt, name)(x, axis=-1)
    values = [numbers(ROWS, COLUMNS, last), numbers(2, 3, last)]
    agree([x], [reduced * 2, reduced], *[(v,) for v in values], (values[0][:, ::2],))


def test_sums_of_nothing():
    x = pt.tensor3("x")
    agree([x], [x.sum(axis=-1), x.prod(axis=0)], (numbers(ROWS, COLUMNS, 0),))


def test_products_that_leave_out_zeros_and_the_gradient_of_a_product():
    x = pt.matrix("x")
    gradient = pytensor.grad(x.prod(axis=-1).sum(), x)
    value = numbers(5_000, 3)
    value[::7, 1] = 0
    agree([x], [gradient], (value,), (value[:4],))


def test_all_axes_and_other_types():
    x, flag = pt.tensor3("x"), pt.tensor3("flag", dtype="bool")
    outputs = [
        x.sum(),
        x.sum(axis=(0, 2)),
        x.mean(axis=0),
        pt.all(flag, axis=-1),
        pt.any(flag, axis=(1, 2)),
        flag.sum(axis=-1),
    ]
    value = numbers(20, 60, 2)
    agree([x, flag], outputs, (value, value < 2), (value[:, :0], value[:, :0] < 2))


# ----------------------------------------------------------------------------- gathers and scatters

ONE = RNG.integers(-5, 5, 300)
OTHER = RNG.integers(0, 4, 300)
GATHERS = {
    "one": lambda x, i, j: x[i],
    "one after an axis": lambda x, i, j: x[:, i],
    "last": lambda x, i, j: x[:, :, i],
    "two": lambda x, i, j: x[i, j],
    "two after an axis": lambda x, i, j: x[:, i, j],
    "all": lambda x, i, j: x[i, i, j],
    "an index and a number": lambda x, i, j: x[:, i, 1],
    "a matrix": lambda x, i, j: x[:, i.reshape((30, 10)), j.reshape((30, 10))],
    "apart": lambda x, i, j: x[i, :, j],
    "a range": lambda x, i, j: x[1:, i],
}


@pytest.mark.parametrize("are_constant", [True, False])
@pytest.mark.parametrize("name", GATHERS)
def test_gathers_and_their_gradients(name, are_constant):
    x, i, j = pt.tensor3("x"), pt.lvector("i"), pt.lvector("j")
    shapes = [(12, 12, 12), (12, 20, 12)]
    fixed = ONE.copy(), OTHER.copy()
    for index in fixed:
        index.flags.writeable = False
    calls = [
        (numbers(*shape), *indices)
        for shape in (*shapes, shapes[0])
        for indices in ((ONE, OTHER), fixed, (OTHER, ONE % 4))
    ]
    given = [x, i, j]
    if are_constant:
        given, calls = [x], [call[:1] for call in calls]
        i, j = pt.constant(ONE), pt.constant(OTHER)
    taken = GATHERS[name](x, i, j)
    gradient = pytensor.grad((pt.exp(taken) * 2).sum(), x)
    agree(given, [taken.sum(axis=0), taken, gradient, gradient.sum()], *calls)


def test_rows_are_set_and_repeated_ones_added_once():
    x, y, i = pt.matrix("x"), pt.matrix("y"), pt.lvector("i")
    outputs = [
        pt.set_subtensor(x[i], y),
        pt.inc_subtensor(x[i], y, ignore_duplicates=True),
        pt.inc_subtensor(x[i], pt.specify_broadcastable(y[:1], 0)),
        pt.inc_subtensor(x[:, i], 2.0),
    ]
    calls = [(numbers(12, n), numbers(300, n), ONE) for n in (12, 40)]
    agree([x, y, i], outputs, *calls)


def test_numbers_of_another_shape_are_not_added():
    x, y, i = pt.matrix("x"), pt.matrix("y"), pt.lvector("i")
    for target, shape in ((x[i], (200, 50)), (x[:, i], (50, 60))):
        for f in both([x, y, i], pt.inc_subtensor(target, y)):
            with pytest.raises(ValueError, match="broadcast"):
                f(numbers(60, 200), numbers(*shape), np.arange(50))


def test_single_precision_is_kept():
    x, i = pt.fmatrix("x"), pt.constant(ONE)
    gradient = pytensor.grad(pt.exp(x[:, i]).sum(), x)
    value = numbers(20, 30).astype(np.float32)
    agree([x], [gradient, x[:, i], x.sum(axis=0)], (value,), rtol=1e-5)


def test_integers_that_change_in_place_are_read_again():
    x, i, j = pt.matrix("x"), pt.lvector("i"), pt.lvector("j")
    f = pytensor.function([x, i, j], x[i, j], mode=OURS)
    value, one, other = numbers(12, 12), ONE.copy(), OTHER.copy()
    f(value, one, other)
    one[:] = 3
    np.testing.assert_array_equal(f(value, one, other), value[3, OTHER])


@pytest.mark.parametrize("are_constant", [True, False])
@pytest.mark.parametrize("bad", [-13, 12])
def test_integers_out_of_range(bad, are_constant):
    x, index = pt.matrix("x"), pt.lvector("index")
    far = np.array([0, bad])
    given = [] if are_constant else [index]
    args = [] if are_constant else [far]
    i = pt.constant(far) if are_constant else index
    for taken in (x[i], x[i, i], pt.inc_subtensor(x[i], 1.0)):
        f = pytensor.function([x, *given], taken, mode=OURS)
        with pytest.raises(IndexError, match="out of bounds"):
            f(numbers(12, 12), *args)


# ------------------------------------------------------------------------------------------ buffers


def _buffers(outputs, inputs):
    graph = compiled_graph(pytensor.function(inputs, outputs, mode=OURS))
    order = graph.toposort()
    return order, share_buffers(graph, order)


def test_a_chain_needs_two_buffers():
    x = pt.matrix("x")
    y = x
    for _ in range(10):
        y = pt.exp(y)
    order, found = _buffers([y], [x])
    assert len(found) == len(order) - 1  # all but the result
    assert len(set(map(id, found.values()))) == 2


def test_what_leaves_the_function_has_no_buffer():
    x = pt.matrix("x")
    seen, hidden = pt.exp(x), pt.log(x)
    order, found = _buffers([seen.T, hidden.sum()], [x])
    names = {str(node.op): node in found for node in order if isinstance(node.op, Elemwise)}
    assert names == {"Exp": False, "Log": True}


def test_views_keep_a_buffer_alive():
    x = pt.matrix("x")
    first = pt.exp(x)
    later = pt.log(pt.abs(x - 1)) + pt.sqrt(pt.abs(x))
    agree([x], [(later.sum() * first.T).sum(axis=0)], (numbers(ROWS, COLUMNS),))


def test_the_mode_for_numpy_runs_on_it():
    assert isinstance(NUMPY.linker, ArrayLinker)


def test_branches_that_are_chosen_at_run_time():
    x, flag = pt.matrix("x"), pt.scalar("flag", dtype="bool")
    chosen = ifelse(flag, pt.exp(x), pt.log(pt.abs(x)) + 1)
    value = numbers(ROWS, COLUMNS)
    agree([x, flag], [chosen.sum(axis=0), chosen], (value, True), (value, False), (value, True))


def test_errors_are_those_of_pytensor():
    x = pt.matrix("x")
    messages = []
    for f in both([x], pt.linalg.cholesky(pt.exp(x))):
        with pytest.raises(ValueError, match="square but has the shape") as raised:
            f(numbers(2, 3))
        messages.append([str(raised.value), *getattr(raised.value, "__notes__", [])])
    assert messages[0] == messages[1]
