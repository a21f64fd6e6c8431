"""Graphs of one draw, made into graphs of all draws: vectorised if possible, else in a loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.graph.basic import Variable
from pytensor.graph.replace import graph_replace, vectorize_graph
from pytensor.graph.traversal import toposort
from pytensor.tensor.variable import TensorVariable

from pymc_flows.backends.functions import function_of
from pymc_flows.backends.graphs import join_batches, open_batches, switch_parameter_checks
from pymc_flows.backends.modes import NUMPY, locked
from pymc_flows.backends.ops import failing_op, has_loop, loops_in_batches, op_name
from pymc_flows.support.compat import MethodNotDefined, RandomVariable, change_dist_size

# Errors of PyTensor where an Op has no derivative.
NO_DERIVATIVE = (MethodNotDefined, NotImplementedError, TypeError)


class Batch(NamedTuple):
    """Graphs with a leading draw axis.

    Attributes
    ----------
    outputs : list of Variable
    reason : str
        Why draws are looped over, or should be, naming the Op; empty when not.
    """

    outputs: list[Variable]
    reason: str = ""


def vectorized(
    outputs: Sequence[Variable], rows: Mapping[Variable, Variable], what: str
) -> Batch | str:
    """Vectorise graphs, or say why they cannot be.

    Parameters
    ----------
    outputs : sequence of Variable
        Graphs of one draw.
    rows : mapping of Variable to Variable
        Inputs of the graphs, and their values with a leading draw axis.
    what : str
        What the graphs compute, for the reason.

    Returns
    -------
    Batch or str
        A batch with a reason repeats a loop of the graphs for each draw: it is better to loop over
        draws then. A string says why the graphs cannot be vectorised.
    """
    try:
        found = open_batches(join_batches(vectorize_graph(list(outputs), dict(rows))))
    except Exception as error:  # whatever an Op raises, draws can be looped over
        return f"vectorised over draws, {failing_op(error)}"
    loops = loops_in_batches(found)
    return Batch(found, f"{what} contains a {op_name(loops[0])}" if loops else "")


def batched(
    outputs: Sequence[Variable],
    rows: Mapping[Variable, Variable],
    what: str,
    *,
    fixed: Sequence[Variable] = (),
) -> Batch:
    """Vectorise graphs, or else evaluate them by one `pytensor.scan` over the draws.

    Parameters
    ----------
    outputs, rows, what
        As for `vectorized`.
    fixed : sequence of Variable
        Further inputs of the graphs, which are the same for all draws.
    """
    found = vectorized(outputs, rows, what)
    if isinstance(found, Batch) and not found.reason:
        return found
    reason = found.reason if isinstance(found, Batch) else found

    def one(*values: Variable) -> list[Variable]:
        given = dict(zip([*rows, *fixed], values, strict=True))
        return graph_replace(list(outputs), given, strict=False)

    return Batch(_scan(one, list(rows.values()), fixed), reason)


def _scan(
    one: Callable[..., list[Variable]], sequences: Sequence[Variable], fixed: Sequence[Variable]
) -> list[Variable]:
    results = pytensor.scan(
        one, sequences=list(sequences), non_sequences=list(fixed), return_updates=False
    )
    return list(results) if isinstance(results, list | tuple) else [results]


def loop_over_draws(
    fn: Callable[..., list[TensorVariable]],
    terms: Sequence[TensorVariable],
    inputs: Sequence[Variable],
    sequences: Sequence[TensorVariable],
    *,
    outer: Sequence[Variable] = (),
) -> list[TensorVariable]:
    """Scan ``fn(terms, *slices)`` over draws, with ``terms`` as graphs inside the scan.

    Parts of the terms that no draw changes are computed once, outside the scan. They include what
    the model itself draws at random (a minibatch), which must be the same for all draws of a step.

    Parameters
    ----------
    fn : callable
        Returns the results for a slice.
    terms : sequence of TensorVariable
        Log densities of one draw.
    inputs : sequence of Variable
        Variables that ``fn`` replaces in the terms, or differentiates by.
    sequences : sequence of TensorVariable
        Sliced along the first axis.
    outer : sequence of Variable
        Other variables that ``fn`` uses.
    """
    fixed = frontier(terms, inputs)
    # Vectorising would copy the fixed parts, and the scan would not know the copies again.
    held = {var: var.type() for var in fixed}
    inside = replaced(list(terms), held)

    def step(*args: TensorVariable) -> list[TensorVariable]:
        slices, inner = args[: len(sequences)], args[len(sequences) :]
        given = dict(zip([*held.values(), *outer], inner, strict=True))
        return replaced(fn(inside, *slices), given)

    return _scan(step, sequences, [*fixed, *outer])


def replaced(outputs: list[Variable], given: Mapping[Variable, Variable]) -> list[Variable]:
    """Replace variables of graphs; without any, the graphs are returned as they are."""
    return graph_replace(outputs, given, strict=False) if given else outputs


def in_micro_batches(
    z: TensorVariable, n_draws: int, micro_batch: int | None
) -> list[TensorVariable]:
    """Draws in batches, and a mask of those that count where some repeat to fill the last one."""
    if micro_batch is None:
        return [z]
    n_batches = -(-n_draws // micro_batch)
    missing = n_batches * micro_batch - n_draws
    rows = pt.concatenate([z, z[:missing]]) if missing else z
    rows = rows.reshape((n_batches, micro_batch, z.type.shape[1]))
    if not missing:
        return [rows]
    counts = np.arange(n_batches * micro_batch) < n_draws
    return [rows, pt.constant(counts.reshape((n_batches, micro_batch)))]


def batched_draws(
    outputs: Sequence[Variable],
    given: Mapping[Variable, Variable],
    what: str,
    *,
    keep_checks: bool,
) -> Batch:
    """Evaluate graphs of a draw of the model for all draws at once.

    Parameters
    ----------
    outputs : sequence of Variable
        Graphs of one draw.
    given : mapping of Variable to Variable
        Inputs of the graphs, and their values with a leading draw axis.
    what : str
        What the graphs compute, for the reason.
    keep_checks : bool
        Whether to keep PyMC's parameter checks, for each draw by itself.

    Returns
    -------
    Batch
        All with a leading draw axis, also those that no draw changes. A random variable that does
        not depend on the draws gets a value per draw.
    """
    n = next(iter(given.values())).shape[0]
    noise = _own_noise(outputs, given, n)
    dependent = dependent_variables(outputs, [*given, *noise])
    changing = [v for v in outputs if v in dependent]
    # Parts that no draw changes are computed once. They stay the same variables, so that PyMC can
    # still replace them (a minibatch by the whole data, say) when the graph is in use.
    fixed = frontier(changing, [*given, *noise])
    stand_ins = {v: v.type() for v in [*noise, *fixed]}
    core = replaced(changing, stand_ins)
    rows = {**given, **{stand_ins[v]: batch for v, batch in noise.items()}}
    core = switch_parameter_checks(core, rows, keep=keep_checks)
    found = batched(core, rows, what, fixed=[stand_ins[v] for v in fixed])
    held = {stand_ins[v]: v for v in fixed}
    new = dict(zip(changing, graph_replace(found.outputs, held, strict=False), strict=True))
    return Batch([_with_draw_axis(v, new.get(v, v), n) for v in outputs], found.reason)


def dependent_variables(outputs: Sequence[Variable], inputs: Iterable[Variable]) -> set[Variable]:
    """Variables of a graph that depend on ``inputs``, these included."""
    found = set(inputs)
    for node in toposort(outputs):
        if not found.isdisjoint(node.inputs):
            found.update(node.outputs)
    return found


def _own_noise(
    outputs: Sequence[Variable], given: Mapping[Variable, Variable], n: Variable
) -> dict[Variable, Variable]:
    """Random variables that no draw changes, and the same with a value for each draw."""
    found: dict[Variable, Variable] = {}
    dependent = set(given)
    for node in toposort(outputs):
        if not dependent.isdisjoint(node.inputs):
            dependent.update(node.outputs)
        elif isinstance(node.op, RandomVariable):
            value = node.outputs[1]
            found[value] = change_dist_size(value, (n,), expand=True)
            dependent.add(value)
    return found


def _with_draw_axis(old: Variable, new: Variable, n: Variable) -> Variable:
    return new if new.ndim > old.ndim else pt.broadcast_to(new, (n, *new.shape))


def compiled(
    inputs: Sequence[Variable], outputs: Sequence[Variable]
) -> Callable[..., list[np.ndarray]]:
    """Make a function of batched graphs, which threads may share.

    It runs in NumPy, and is compiled only for a loop, which NumPy cannot run for all draws at once.
    """
    if not has_loop(outputs):
        return function_of(inputs, outputs, mode=NUMPY)
    return locked(pytensor.function(inputs, outputs, on_unused_input="ignore"))


def frontier(outputs: Sequence[Variable], inputs: Iterable[Variable]) -> list[TensorVariable]:
    """Computed tensors that do not depend on ``inputs`` but feed a node that does.

    In the place of what is no tensor (an index, a slice) stand the tensors that it comes from.
    """
    dependent = set(inputs)
    found: dict[TensorVariable, None] = {}

    def visit(var: Variable) -> None:
        if var in dependent or var.owner is None:
            return
        if isinstance(var, TensorVariable):
            found[var] = None
        else:
            for parent in var.owner.inputs:
                visit(parent)

    for node in toposort(outputs):
        if not dependent.isdisjoint(node.inputs):
            dependent.update(node.outputs)
            for var in node.inputs:
                visit(var)
    return list(found)


def total_of(terms: list[TensorVariable]) -> TensorVariable:
    """Sum of scalars; 0 if there is none."""
    return pt.add(*terms) if len(terms) > 1 else terms[0] if terms else pt.zeros(())


def weighted_gradient(
    values: Sequence[TensorVariable], weights: Sequence[object], wrt: Sequence[Variable]
) -> list[TensorVariable]:
    """Gradients of the weighted sum of values over all draws."""
    total = sum(w * v.sum() for w, v in zip(weights, values, strict=True))
    return pytensor.grad(total, list(wrt), disconnected_inputs="ignore")
