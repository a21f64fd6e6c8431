"""Names of PyMC, PyTensor and JAX that may change: they are there, and do what is assumed.

A failure here, with a new version of one of them, says what to change in `support/compat.py`.
"""

import jax
import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from pymc.distributions.dist_math import check_parameters
from pymc.logprob.utils import ParameterValueError
from pytensor.compile.mode import Mode
from pytensor.graph.rewriting.db import RewriteDatabaseQuery

from pymc_flows.backends.modes import NUMPY, PLAIN, training_mode
from pymc_flows.support import compat


@pytest.mark.jax
def test_lazy_names_are_there():
    assert {name for name in compat._LAZY if not hasattr(compat, name)} == set()


# ------------------------------------------------------------------------------ rewrites, by effect


def test_failed_checks_become_minus_infinity_in_modes_that_name_the_rewrite():
    sigma = pt.scalar("sigma")
    checked = check_parameters(sigma * 2, sigma > 0)
    for mode in (NUMPY, training_mode("jax")):
        f = pytensor.function([sigma], checked, mode=mode)
        assert f(-1.0) == -np.inf
        assert f(1.0) == 2.0
    # Without its name it does not happen: the test tests something.
    without = Mode("py", RewriteDatabaseQuery(include=["fast_compile", "stabilize"]))
    with pytest.raises(ParameterValueError):
        pytensor.function([sigma], checked, mode=without)(-1.0)


def test_fills_become_allocations_in_the_mode_that_names_the_rewrite():
    x = pt.vector("x")
    filled = pt.second(x, pt.constant(2.0))

    def ops(mode):
        graph = compat.compiled_graph(pytensor.function([x], filled, mode=mode))
        return [type(node.op) for node in graph.toposort()]

    assert compat.Alloc in ops(PLAIN)
    assert compat.Alloc not in ops(Mode("py", None))


def test_slices_of_slices_are_left_alone_in_the_mode_that_names_the_rewrites():
    x = pt.matrix("x")
    part = x[:, 1:200][:, 2:9]

    def slices(mode):
        graph = compat.compiled_graph(pytensor.function([x], part, mode=mode))
        return sum("Subtensor" in str(node.op) for node in graph.toposort())

    assert slices(NUMPY) == 2
    assert slices(Mode("py", RewriteDatabaseQuery(include=["fast_compile"]))) == 1


def test_products_of_structured_matrices_are_left_alone_in_the_mode_that_names_the_rewrites():
    x, y = pt.vector("x"), pt.matrix("y")
    product = pt.diag(x) @ y

    def dots(mode):
        graph = compat.compiled_graph(pytensor.function([x, y], product, mode=mode))
        return sum("dot" in str(node.op).lower() for node in graph.toposort())

    assert dots(NUMPY) == 1
    assert dots(Mode("py", RewriteDatabaseQuery(include=["fast_compile", "stabilize"]))) == 0


# -------------------------------------------------------------------------------- what is assumed


def test_attributes_of_ops():
    x = pt.matrix("x")
    assert isinstance(pt.exp(x).owner.op.scalar_op, pytensor.scalar.Exp)
    assert pt.exp(x).owner.op.nfunc_spec[0] == "exp"
    assert x.T.owner.op.new_order == (1, 0)
    assert x.T.owner.op.input_ndim == 2
    assert pt.join(1, x, x).owner.op.axis == 1
    batched = pt.linalg.cholesky(pt.tensor3("a")).owner
    assert isinstance(batched.op, compat.Blockwise)
    assert batched.op.batch_ndim(batched) == 1
    assert type(batched.op.core_op).__name__ == "Cholesky"


def test_a_check_says_what_it_gives():
    sigma = pt.scalar("sigma")
    for flag in (True, False):
        checked = check_parameters(sigma, sigma > 0, can_be_replaced_by_ninf=flag)
        assert isinstance(checked.owner.op, compat.CheckParameterValue)
        assert checked.owner.op.can_be_replaced_by_ninf is flag


def test_a_scan_is_rebuilt_with_another_inner_graph():
    x = pt.vector("x")
    sums = pytensor.scan(lambda row, total: total + row, [x], [pt.zeros(())], return_updates=False)
    [node] = [n for n in pytensor.graph.traversal.toposort([sums]) if isinstance(n.op, compat.Scan)]
    inner = node.op.fgraph.unfreeze()
    rebuilt = compat.rebuild_scan(node.op, inner.inputs, [2 * inner.outputs[0]])
    [trace] = rebuilt.make_node(*node.inputs).outputs
    f = pytensor.function([x], trace[1:], mode=NUMPY)
    np.testing.assert_array_equal(f([1.0, 2.0]), [2.0, 8.0])


def test_the_python_linker_gives_thunks_with_cells_in_the_order_of_the_nodes():
    x = pt.vector("x")
    graph = compat.compiled_graph(
        pytensor.function([x], [pt.exp(x) + x.sum(), x], mode="FAST_COMPILE")
    )
    run, inputs, outputs, thunks, order = compat.PerformLinker().accept(graph.clone()).make_all()
    inputs[0].storage[0] = np.arange(3.0)
    for thunk, node in zip(thunks, order, strict=True):
        assert all(
            cell is run.storage_map[v] for cell, v in zip(thunk.inputs, node.inputs, strict=True)
        )
        thunk()
        assert thunk.outputs[0][0] is run.storage_map[node.outputs[0]][0]
    np.testing.assert_allclose(outputs[0].storage[0], np.exp(np.arange(3.0)) + 3)


def test_an_error_is_raised_again_with_a_hint():
    x = pt.vector("x")
    graph = compat.compiled_graph(pytensor.function([x], pt.exp(x), mode="FAST_COMPILE"))
    [node] = graph.toposort()

    def fails():
        try:
            raise KeyError("what failed")
        except KeyError:
            compat.raise_with_op(graph, node)

    with pytest.raises(KeyError, match="exception_verbosity"):
        fails()


def test_a_vm_calls_back_after_each_node():
    x, seen = pt.vector("x"), []

    def callback(*, node, storage_map, **_):
        seen.append(storage_map[node.outputs[0]][0])

    linker = compat.VMLinker(use_cloop=False, c_thunks=False, callback=callback)
    pytensor.function([x], pt.exp(x) + 1, mode=Mode(linker, None))([0.0])
    assert [float(value[0]) for value in seen][-2:] == [1.0, 2.0]


def test_the_query_of_a_mode_makes_the_same_mode():
    assert compat.query_of_mode(NUMPY) is NUMPY.provided_optimizer
    assert compat.query_of_mode(training_mode("jax")).include


def test_the_function_maker_of_a_mode_is_used():
    made = []

    class Maker(compat.FunctionMaker):
        def create(self, *args, **kwargs):
            made.append(self)
            return super().create(*args, **kwargs)

    class OwnMode(Mode):
        @property
        def function_maker(self):
            return Maker

    x = pt.scalar("x")
    assert pytensor.function([x], x + 1, mode=OwnMode("py", None))(1.0) == 2.0
    assert made


def test_jax_traces_a_compiled_function():
    data = pytensor.shared(np.arange(3.0))
    x = pt.vector("x", shape=(3,))
    call, rest = compat.jax_function(pytensor.function([x], [(x * data).sum()], mode="JAX"))
    [shape] = jax.eval_shape(lambda x: call(x, *rest), np.zeros(3))
    assert shape.shape == ()


@pytest.mark.parametrize(("double", "dtype"), [(True, "float64"), (False, "float32")])
def test_the_precision_of_jax_is_set_inside_of_a_block(double, dtype):
    before = jax.config.jax_enable_x64
    with compat.jax_precision(double=double):
        assert jax.numpy.zeros(1, dtype=float).dtype == dtype
    assert jax.config.jax_enable_x64 == before


def test_an_op_without_a_conversion_dispatches_to_the_general_one():
    class Unknown:
        pass

    general = compat.jax_funcify.dispatch(object)
    assert compat.jax_funcify.dispatch(Unknown) is general
    assert compat.jax_funcify.dispatch(compat.Elemwise) is not general


def test_generators_of_a_graph_get_updates():
    rng = pytensor.shared(np.random.default_rng(1))
    _, draw = pt.random.normal(rng=rng, return_next_rng=True)
    assert isinstance(draw.owner.op, compat.RandomVariable)
    assert isinstance(rng.type, compat.RandomGeneratorType)
    assert list(compat.collect_default_updates([draw])) == [rng]


def test_a_random_variable_gets_a_draw_axis():
    batched = compat.change_dist_size(pm.Normal.dist(pt.zeros(2)), (3,), expand=True)
    assert batched.type.shape == (3, 2)


def test_an_initial_point_takes_values():
    with pm.Model() as model:
        x = pm.Normal("x")
        pm.HalfNormal("y", pt.exp(x))
    point = compat.make_initial_point_fn(
        model=model, overrides={"y": np.e}, jitter_rvs=set(), return_transformed=True
    )(0)
    assert point["x"] == 0
    assert point["y_log__"] == pytest.approx(1)


def test_a_chain_of_transforms_lists_them():
    from pymc.distributions import transforms as tr

    chain = tr.Chain([tr.log, tr.ordered])
    assert isinstance(chain, compat.ChainedTransform)
    assert list(chain.transform_list) == [tr.log, tr.ordered]
    assert tr.circular.name == "circular"


def test_a_minibatch_is_seen():
    with pm.Model() as model:
        pm.Normal("y", observed=pm.Minibatch(np.zeros(20), batch_size=5), total_size=20)
    [y] = model.observed_RVs
    assert isinstance(y.owner.op, compat.MinibatchRandomVariable)


def test_a_deterministic_is_a_view():
    with pm.Model():
        x = pm.Deterministic("x", pt.zeros(2))
    assert isinstance(x.owner.op, compat.ViewOp)


def test_steps_and_progress_bars():
    assert compat.Competence.INCOMPATIBLE == 0
    with compat.CustomProgress(disable=True) as bar:
        task = bar.add_task("x", total=2)
        bar.update(task, completed=1)


def test_jax_asks_for_its_cache_again(tmp_path):
    folder, least = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"
    before = {name: getattr(jax.config, name) for name in (folder, least)}
    try:
        for path in (tmp_path / "a", tmp_path / "b"):
            jax.config.update(folder, str(path))
            jax.config.update(least, 0.0)
            compat.ask_for_jax_cache()
            jax.jit(lambda x, add=path.name == "b": x * 3 + add)(1.0)
            assert any(path.iterdir())
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compat.ask_for_jax_cache()
