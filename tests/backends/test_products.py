"""Products of data with a draw: one matrix for all draws, read both ways."""

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.graph.replace import vectorize_graph
from pytensor.graph.traversal import toposort

from pymc_flows.backends.modes import NUMPY, training_mode
from pymc_flows.backends.products import DataProduct, join_products
from pymc_flows.model.logp import ModelDensity
from pymc_flows.support.compat import SolveBase, compiled_graph


def products(outputs):
    return [node.op for node in toposort(outputs) if isinstance(node.op, DataProduct)]


FORMS = {
    "X @ b": lambda x, b: x @ b,
    "dot(X, b)": pt.dot,
    "b @ X.T": lambda x, b: b @ x.T,
    "X.T.T @ b": lambda x, b: pt.transpose(x.T) @ b,
    "dot(b, X.T)": lambda x, b: pt.dot(b, x.T),
}
AGAIN = ("X @ b", "dot(b, X.T)")  # both ways of the Op, on the backends that compile


@pytest.mark.parametrize(
    ("form", "backend"),
    [*((form, "numpy") for form in FORMS), *((f, b) for f in AGAIN for b in ("numba", "jax"))],
)
def test_equals_the_product_in_numpy(form, backend, rng):
    if backend == "jax":
        pytest.importorskip("jax")
    mode = NUMPY if backend == "numpy" else training_mode(backend)
    values, points, weights = (rng.normal(size=s) for s in ((7, 3), (2, 3), (2, 7)))
    x, b = pt.matrix("x", shape=(7, 3)), pt.vector("b", shape=(3,))
    [out] = join_products([FORMS[form](x, b)], [b])
    assert len(products([out])) == 1
    z = pt.matrix("z", shape=(2, 3))
    # From the outermost: one point, two points, and two batches of them.
    batches = [out, vectorize_graph(out, {b: z}), vectorize_graph(out, {b: pt.stack([z, -z])})]
    assert all(len(products([batch])) == 1 for batch in batches)
    grads = pytensor.grad((batches[1] * weights).sum(), [z, x])
    function = pytensor.function([x, b, z], [*batches, *grads], mode=mode, on_unused_input="ignore")
    one, two, four, by_z, by_x = function(values, points[0], points)
    np.testing.assert_allclose(one, values @ points[0], rtol=1e-12)
    np.testing.assert_allclose(two, points @ values.T, rtol=1e-12)
    np.testing.assert_allclose(four, np.stack([points, -points]) @ values.T, rtol=1e-12)
    np.testing.assert_allclose(by_z, weights @ values, rtol=1e-12)
    np.testing.assert_allclose(by_x, weights.T @ points, rtol=1e-12)


def test_a_matrix_for_each_draw(rng):
    x, b = pt.matrix("x", shape=(4, 3)), pt.vector("b", shape=(3,))
    xs, bs = pt.tensor3("xs", shape=(2, 4, 3)), pt.matrix("bs", shape=(2, 3))
    [out] = join_products([x @ b], [b])
    values = rng.normal(size=(2, 4, 3)), rng.normal(size=(2, 3))
    batched = vectorize_graph(out, {x: xs, b: bs})
    got = pytensor.function([xs, bs], batched, mode=NUMPY)(*values)
    np.testing.assert_allclose(got, np.einsum("dnp,dp->dn", *values), rtol=1e-12)


def test_what_is_left_alone():
    x, b, m = pt.matrix("x", shape=(4, 3)), pt.vector("b", shape=(3,)), pt.imatrix("m")
    for out, inputs in (
        (x @ b, [x, b]),  # the matrix belongs to the draw
        (m @ b, [b]),  # the types differ
        (x @ pt.stack([b, b], axis=1), [b]),  # not a vector
        (pt.dot(b, b), [b]),
    ):
        assert not products(join_products([out], inputs))


@pytest.mark.parametrize("backend", ["numba", "jax"])
def test_the_loop_over_steps_keeps_one_copy_of_the_data(backend, rng):
    if backend == "jax":
        pytest.importorskip("jax")
    x = rng.normal(size=(2_000, 3))
    with pm.Model() as model:
        b = pm.Normal("b", shape=3)
        pm.Normal("y", x @ b, observed=np.ones(2_000))
    z = pt.matrix(shape=(5, 3))
    _, grad, _ = ModelDensity(model).value_and_grad(z, weights=[1.0, 1.0], micro_batch=5)
    function = pytensor.function([z], grad, mode=training_mode(backend))
    nodes = function.maker.fgraph.toposort()
    assert [node.op.is_transposed for node in nodes if isinstance(node.op, DataProduct)] == [
        False,
        True,
    ]
    points = rng.normal(size=(5, 3))
    np.testing.assert_allclose(function(points), (1 - points @ x.T) @ x - points, rtol=1e-9)


def test_other_types_and_ranks_are_refused():
    with pytest.raises(TypeError, match="one type"):
        DataProduct(is_transposed=False)(pt.matrix(), pt.fvector())
    with pytest.raises(TypeError, match="a matrix"):
        DataProduct(is_transposed=False)(pt.vector(), pt.vector())


@pytest.mark.parametrize("shape", [(2, 5, 3), (5, 3), (2, 4, 5, 3)])
def test_rows_that_share_a_matrix_are_solved_for_at_once(shape, rng):
    """A triangle for each draw, and a row of data for each right-hand side."""
    draws = shape[:1] if len(shape) > 2 else ()
    triangles = np.tril(rng.normal(size=(*draws, 3, 3))) + 3 * np.eye(3)
    rows = rng.normal(size=shape)
    lower, right = pt.tensor("lower", shape=triangles.shape), pt.tensor("right", shape=shape)
    spread = lower if not draws else pt.expand_dims(lower, tuple(range(1, len(shape) - 1)))
    solved = pt.linalg.solve_triangular(spread, right, lower=True, b_ndim=1)
    solve = pytensor.function([lower, right], solved, mode=NUMPY)
    ones = (1,) * (len(shape) - 1 - len(draws))
    expected = np.linalg.inv(triangles).reshape(*draws, *ones, 3, 3) @ rows[..., None]
    np.testing.assert_allclose(solve(triangles, rows), expected[..., 0], rtol=1e-12)
    cores = [getattr(node.op, "core_op", node.op) for node in compiled_graph(solve).apply_nodes]
    [solver] = [op for op in cores if isinstance(op, SolveBase)]
    assert solver.b_ndim == 2
